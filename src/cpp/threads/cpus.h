// Which processors this process may use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <thread>

#include "platform/exported.h"

namespace mxfp4moe {

// The processors that a thread may run on. The mask is empty if the system does not tell them.
class AffinityMask {
 public:
  static AffinityMask of_caller();

  int count() const;
  bool operator==(const AffinityMask& other) const;
  AffinityMask without(int cpu) const;

  // Binds a thread to these processors, unless there are none; false if it cannot be done.
  bool bind(std::thread& thread) const;

 private:
  using Word = uint64_t;
  static constexpr int kWordBits = 8 * sizeof(Word), kMaxCpus = 1 << 13;  // no Linux kernel is built for more

  size_t num_words_ = 0;
  Word words_[kMaxCpus / kWordBits] = {};
};

// Returns the smaller of the size of the caller's affinity mask and the CPU quota of the control group rounded up, but
// at least 1. The quota is looked up once.
int available_cpus(const AffinityMask& mask);
int available_cpus() MXFP4MOE_EXPORTED(available_cpus);

}  // namespace mxfp4moe
