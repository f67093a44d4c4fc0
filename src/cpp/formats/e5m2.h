// E5M2, an 8-bit element: sign, five exponent bits (bias 15), two mantissa bits; the magnitude 0x7c is infinity,
// 0x7d to 0x7f are NaN. It is the upper byte of a float16. The functions are `static` for the reason that bf16.h gives.
#pragma once

#include <cstdint>

#include "formats/bf16.h"

namespace mxfp4moe {

// What element.h needs to round to the element.
struct E5m2Element {
  static constexpr int kBits = 8;
  static constexpr int kMantissaBits = 2;
  static constexpr int kMinExponent = -14;  // the smallest normal value is 2^-14; subnormals are multiples of 2^-16
  static constexpr int kMaxExponent = 15;   // the largest value is 1.75 * 2^15
  static constexpr float kMax = 57344.0f;
};

// The exact value of a code, also of a subnormal one and of -0.
static constexpr float e5m2_value(uint8_t code) {
  const int exponent = (code >> 2) & 31;
  if (exponent == 31 && (code & 3) != 0) return __builtin_nanf("");
  const int mantissa = exponent == 0 ? code & 3 : 4 | (code & 3);
  float magnitude = mantissa * 0x1p-16f;
  for (int e = 1; e < exponent; ++e) magnitude *= 2.0f;
  if (exponent == 31) magnitude = __builtin_inff();
  return code & 0x80 ? -magnitude : magnitude;
}

static inline float e5m2_to_f32(uint8_t code) { return f16_to_f32(static_cast<uint16_t>(code << 8)); }

}  // namespace mxfp4moe
