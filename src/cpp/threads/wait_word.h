// A 32-bit word that threads can wait on. They spin for a moment, then they sleep.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

#include "platform/sleepers.h"

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

  // Sleeps if the value is `expected`, for at most `limit_ms`, or without a limit if it is 0; may return at any time.
  void sleep_while(uint32_t expected, int limit_ms = 0) { sleepers_.sleep_while(value, expected, limit_ms); }

  // Wakes every thread that sleeps here; the value must have been changed before.
  void wake_all() { sleepers_.wake_all(value); }

 private:
  static void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  platform::Sleepers sleepers_;
};

}  // namespace mxfp4moe
