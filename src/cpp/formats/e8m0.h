// E8M0, the scale of the MX formats: byte s means 2^(s - 127), and 255 is NaN.
#pragma once

#include <cstdint>

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

// The values of all bytes as a table.
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

}  // namespace mxfp4moe
