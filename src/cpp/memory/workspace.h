// Scratch memory of a call, kept between calls so that a call costs no page faults.
#pragma once

#include <cstdint>

namespace mxfp4moe {

// Between calls, at most this much stays allocated in total.
constexpr int64_t kMaxRetainedBytes = 64 << 20;

// A block of at least `bytes` bytes, owned for as long as this object lives; contents are undefined.
class Workspace {
 public:
  explicit Workspace(int64_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  uint8_t* data() const { return data_; }  // null if the system has no memory left

 private:
  uint8_t* data_;
};

// Hands out consecutive parts of a block; with a null base it only adds up their sizes.
class Arena {
 public:
  explicit Arena(uint8_t* base) : base_(base) {}
  template <class T>
  T* take(int64_t count) {
    uint8_t* p = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return reinterpret_cast<T*>(p);
  }
  int64_t used() const { return used_; }

 private:
  uint8_t* base_;
  int64_t used_ = 0;
};

}  // namespace mxfp4moe
