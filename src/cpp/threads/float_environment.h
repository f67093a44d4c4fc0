// The floating-point environment of computations.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace mxfp4moe {

// Sets the default floating-point environment for as long as this object lives, so that no result depends on a caller's
// rounding mode or flushing of subnormals, and no caller sees the flags of this arithmetic.
class DefaultFloatEnvironment {
 public:
#if defined(__x86_64__)
  DefaultFloatEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~DefaultFloatEnvironment() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  DefaultFloatEnvironment() {
    asm volatile("mrs %0, fpcr\n\tmrs %1, fpsr" : "=r"(control_), "=r"(status_) : : "memory");
    set(0, 0);
  }
  ~DefaultFloatEnvironment() { set(control_, status_); }

 private:
  static void set(uint64_t control, uint64_t status) {
    asm volatile("msr fpcr, %0\n\tmsr fpsr, %1" : : "r"(control), "r"(status) : "memory");
  }

  uint64_t control_, status_;
#endif
};

}  // namespace mxfp4moe
