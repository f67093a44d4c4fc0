// A 32-bit word that threads can wait on. They spin for a moment, then they sleep.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#endif
#if defined(__linux__) && defined(SYS_futex)
#define MXFP4MOE_FUTEX 1
#else
#define MXFP4MOE_FUTEX 0
#include <condition_variable>
#include <mutex>
#endif

namespace mxfp4moe {

class WaitWord {
 public:
  std::atomic<uint32_t> value{0};

  // A sleeping thread takes about as long as kSpin to wake, so that a longer spin costs CPU time and gains nothing.
  // Where more threads than processors wait for each other, even that only keeps the others from their work.
  static constexpr std::chrono::microseconds kSpin{50}, kBriefSpin{2};

  // Returns the first value seen that is not `expected`, or `expected` after about `limit`.
  uint32_t spin_while(uint32_t expected, std::chrono::microseconds limit = kSpin) const {
    using Clock = std::chrono::steady_clock;
    constexpr int kSpinsPerLook = 16;  // reading the clock costs about as much as a spin
    const Clock::time_point deadline = Clock::now() + limit;
    do {
      for (int i = 0; i < kSpinsPerLook; ++i) {
        const uint32_t now = value.load(std::memory_order_acquire);
        if (now != expected) return now;
        relax();
      }
    } while (Clock::now() < deadline);
    return expected;
  }

#if MXFP4MOE_FUTEX
  // Sleeps if the value is `expected`, for at most `limit_ms`, or without a limit if it is 0; may return at any time.
  void sleep_while(uint32_t expected, int limit_ms = 0) {
    const timespec limit{limit_ms / 1000, limit_ms % 1000 * 1000000};
    syscall(SYS_futex, &value, FUTEX_WAIT_PRIVATE, expected, limit_ms > 0 ? &limit : nullptr, nullptr, 0);
  }

  // Wakes every thread that sleeps here; the value must have been changed before.
  void wake_all() { syscall(SYS_futex, &value, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0); }
#else
  void sleep_while(uint32_t expected, int limit_ms = 0) {
    std::unique_lock<std::mutex> hold(lock_);
    if (value.load(std::memory_order_acquire) != expected) return;
    if (limit_ms > 0) {
      changed_.wait_for(hold, std::chrono::milliseconds(limit_ms));
    } else {
      changed_.wait(hold);
    }
  }

  void wake_all() {
    // The lock closes the gap between a sleeper's look at the value and its wait.
    std::lock_guard<std::mutex> hold(lock_);
    changed_.notify_all();
  }
#endif

 private:
  static void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

#if !MXFP4MOE_FUTEX
  std::mutex lock_;
  std::condition_variable changed_;
#endif
};

static_assert(!MXFP4MOE_FUTEX || sizeof(WaitWord) == 4, "a futex is 32 bits");

}  // namespace mxfp4moe
