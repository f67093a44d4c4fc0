// E2M1, the 4-bit element of MXFP4 and NVFP4: code = sign << 3 | index of the magnitude. Two codes stand in a byte,
// that of the even k in the low nibble. The function is `static` for the reason that bf16.h gives.
#pragma once

#include <cstdint>

namespace mxfp4moe {

// What element.h needs to round to the element.
struct E2m1Element {
  static constexpr int kBits = 4;
  static constexpr int kMantissaBits = 1;
  static constexpr int kMinExponent = 0;  // the smallest normal value is 1; 0.5 is subnormal
  static constexpr int kMaxExponent = 2;  // the largest value is 1.5 * 2^2
  static constexpr float kMax = 6.0f;
};

constexpr float kE2m1Values[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                   -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

static inline float e2m1_to_f32(uint8_t code) { return kE2m1Values[code & 15]; }

}  // namespace mxfp4moe
