#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

namespace mxfp4moe::platform {

// The threads that sleep until one word changes, always the same.
class Sleepers {
 public:
  static_assert(sizeof(std::atomic<uint32_t>) == 4, "a futex is 32 bits");

  // Sleeps if the word is `expected`, for at most `limit_ms`, or without a limit if it is 0; may return at any time.
  void sleep_while(std::atomic<uint32_t>& word, uint32_t expected, int limit_ms) {
    const timespec limit{limit_ms / 1000, limit_ms % 1000 * 1000000};
    syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, expected, limit_ms > 0 ? &limit : nullptr, nullptr, 0);
  }

  // Wakes them all; the word must have been changed before.
  void wake_all(std::atomic<uint32_t>& word) {
    syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
  }
};

}  // namespace mxfp4moe::platform
