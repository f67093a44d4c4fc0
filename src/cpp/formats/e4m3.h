// E4M3 (the "fn" kind: no infinity), an 8-bit element: sign, four exponent bits (bias 7), three mantissa bits;
// the magnitude 0x7f is NaN. The functions are `static` for the reason that bf16.h gives.
#pragma once

#include <cstdint>

#include "formats/bf16.h"

namespace mxfp4moe {

// What element.h needs to round to the element.
struct E4m3Element {
  static constexpr int kBits = 8;
  static constexpr int kMantissaBits = 3;
  static constexpr int kMinExponent = -6;  // the smallest normal value is 2^-6; subnormals are multiples of 2^-9
  static constexpr int kMaxExponent = 8;   // the largest value is 1.75 * 2^8
  static constexpr float kMax = 448.0f;
};

constexpr uint8_t kE4m3Nan = 0x7f;

// The exact value of a code, also of a subnormal one and of -0.
static constexpr float e4m3_value(uint8_t code) {
  if ((code & 0x7f) == kE4m3Nan) return __builtin_nanf("");
  const int exponent = (code >> 3) & 15;
  const int mantissa = exponent == 0 ? code & 7 : 8 | (code & 7);
  const float magnitude = mantissa * 0x1p-9f * (1 << (exponent == 0 ? 0 : exponent - 1));
  return code & 0x80 ? -magnitude : magnitude;
}

// The same value, computed on the bits for use at run time: once the exponent stands where float32 has it, multiplying
// by 2^120 corrects its bias, exactly for normal and subnormal codes alike.
static inline float e4m3_to_f32(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24;
  const uint32_t magnitude = code & 0x7fu;
  if (magnitude == kE4m3Nan) return f32_from_bits(sign | 0x7fc00000u);
  return f32_from_bits(sign | f32_bits(f32_from_bits(magnitude << 20) * 0x1p120f));
}

}  // namespace mxfp4moe
