// E8M0, the scale of the MX formats: byte s means 2^(s-127), 255 is NaN; and how a block's scale is chosen.
#pragma once

#include <cstdint>

#include "common/types.h"
#include "formats/bf16.h"

namespace mxfp4moe {

constexpr uint8_t kE8m0Nan = 255;

static inline float e8m0_to_f32(uint8_t scale) {
  if (scale == kE8m0Nan) return f32_from_bits(0x7fc00000u);
  return f32_from_bits(scale == 0 ? 0x00400000u : static_cast<uint32_t>(scale) << 23);  // 2^-127 is subnormal
}

static inline double e8m0_to_f64(uint8_t scale) {
  if (scale == kE8m0Nan) return static_cast<double>(e8m0_to_f32(scale));
  return f64_from_bits((static_cast<uint64_t>(scale) + (1023 - 127)) << 52);
}

// The same as a table.
struct E8m0TableF32 {
  alignas(64) float values[256];
};

constexpr E8m0TableF32 make_e8m0_table_f32() {
  E8m0TableF32 t{};
  float power = 0x1p-127f;
  for (int s = 0; s < 255; ++s) {
    t.values[s] = power;
    if (s < 254) power *= 2.0f;
  }
  t.values[255] = __builtin_nanf("");
  return t;
}

// The exponent e of a block comes from the bits of its largest magnitude, `amax`: an addend below the exponent
// field carries into it when the rule asks for the next exponent; then the element's own largest exponent (2) is
// taken off. In terms of amax = m * 2^E with 1 <= m < 2, the next exponent is taken
//   floor: never;   ceil: m > 1;   rceil: m > 1.5 (amax > 6 * 2^(E-2));   even: m >= 1.75 (rounds up to 2).
constexpr int kE2m1MaxExponent = 2;

// `mantissa_bits`: of the type that amax has, 23 or 52.
constexpr uint64_t e2m1_scale_addend(ScaleRule rule, int mantissa_bits) {
  const uint64_t one = uint64_t{1} << mantissa_bits;
  return rule == ScaleRule::kCeil    ? one - 1
         : rule == ScaleRule::kRceil ? one / 2 - 1
         : rule == ScaleRule::kEven  ? one / 4
                                     : 0;
}

// The scale byte of a block, from amax's bits with the addend added. Everything below 2^-125 gives byte 0.
static inline uint32_t e2m1_scale_f32(uint32_t amax_bits) {
  const uint32_t exponent = amax_bits >> 23;  // biased by 127, as the byte is
  return exponent < kE2m1MaxExponent ? 0 : exponent - kE2m1MaxExponent;
}

static inline uint32_t e2m1_scale_f64(uint64_t amax_bits) {
  const int64_t scale = static_cast<int64_t>(amax_bits >> 52) - 1023 + 127 - kE2m1MaxExponent;
  return static_cast<uint32_t>(scale < 0 ? 0 : scale > 254 ? 254 : scale);
}

}  // namespace mxfp4moe
