// E2M1, the 4-bit element of MXFP4 and NVFP4: code = sign << 3 | index of the magnitude. Two codes a byte, even k
// in the low nibble. `static`, as in bf16.h: each kernel table keeps a copy of its own.
#pragma once

#include <cstdint>

namespace mxfp4moe {

// What rounding to the element needs; see element.h.
struct E2m1Element {
  static constexpr int kBits = 4;
  static constexpr int kMantissaBits = 1;
  static constexpr int kMinExponent = 0;  // of the smallest normal value, 1; 0.5 is subnormal
  static constexpr int kMaxExponent = 2;  // of the largest value
  static constexpr float kMax = 6.0f;
};

constexpr float kE2m1Values[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                   -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

static inline float e2m1_to_f32(uint8_t code) { return kE2m1Values[code & 15]; }

}  // namespace mxfp4moe
