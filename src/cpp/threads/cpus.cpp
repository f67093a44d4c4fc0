#include "threads/cpus.h"

#include <algorithm>
#include <atomic>
#include <climits>
#include <iterator>
#include <thread>

#include "platform/system.h"

namespace mxfp4moe {

AffinityMask AffinityMask::of_caller() {
  AffinityMask mask;
  mask.num_words_ = platform::cpus_of_caller(mask.words_, std::size(mask.words_));
  return mask;
}

int AffinityMask::count() const {
  int count = 0;
  for (size_t i = 0; i < num_words_; ++i) count += __builtin_popcountll(words_[i]);
  return count;
}

bool AffinityMask::operator==(const AffinityMask& other) const {
  return num_words_ == other.num_words_ && std::equal(words_, words_ + num_words_, other.words_);
}

AffinityMask AffinityMask::without(int cpu) const {
  AffinityMask mask = *this;
  const size_t word = static_cast<size_t>(cpu / kWordBits);
  if (word < num_words_) mask.words_[word] &= ~(Word{1} << cpu % kWordBits);
  return mask;
}

bool AffinityMask::bind(std::thread& thread) const {
  return count() > 0 && platform::bind_thread(thread, words_, num_words_);
}

int available_cpus(const AffinityMask& mask) {
  static std::atomic<int> quota{0};  // 0 means that it has not been looked up
  int limit = quota.load(std::memory_order_relaxed);
  if (limit == 0) {
    limit = platform::cpu_quota();
    quota.store(limit, std::memory_order_relaxed);
  }
  const int cpus = mask.count();
  if (cpus > 0) limit = std::min(limit, cpus);
  if (limit == INT_MAX) limit = static_cast<int>(std::thread::hardware_concurrency());
  return std::max(limit, 1);
}

int available_cpus() { return available_cpus(AffinityMask::of_caller()); }

}  // namespace mxfp4moe
