#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace mxfp4moe::platform {

// Does what platform/linux/sleepers.h says, with a condition variable in place of a futex.
class Sleepers {
 public:
  void sleep_while(std::atomic<uint32_t>& word, uint32_t expected, int limit_ms) {
    std::unique_lock<std::mutex> hold(lock_);
    if (word.load(std::memory_order_acquire) != expected) return;
    if (limit_ms > 0) {
      changed_.wait_for(hold, std::chrono::milliseconds(limit_ms));
    } else {
      changed_.wait(hold);
    }
  }

  void wake_all(std::atomic<uint32_t>&) {
    // The lock closes the gap between a sleeper's look at the word and its wait.
    std::lock_guard<std::mutex> hold(lock_);
    changed_.notify_all();
  }

 private:
  std::mutex lock_;
  std::condition_variable changed_;
};

}  // namespace mxfp4moe::platform
