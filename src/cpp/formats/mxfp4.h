// MXFP4 as tables: the exact value of each e2m1 code times 2^(s - 127), for each e8m0 scale byte s. Products that are
// subnormal, too large (infinity) or NaN (s = 255) are already right in the table, so that a weight costs one look-up
// and no multiplication. A row holds the sixteen codes at one scale.
#pragma once

#include <cstdint>

namespace mxfp4moe {

// The bfloat16 bits of code * 2^(scale - 127). A code has a sign, two exponent bits (bias 1) and one mantissa bit.
constexpr uint16_t mxfp4_bf16(int code, int scale) {
  const int sign = (code & 8) << 12;
  const int magnitude = code & 7;
  if (scale == 255) return 0x7fc0;
  if (magnitude == 0) return static_cast<uint16_t>(sign);
  // magnitude 1 is the subnormal 0.5 = 2^-1; the others are (1 + m / 2) 2^(e - 1).
  const int exponent = scale + (magnitude == 1 ? -1 : (magnitude >> 1) - 1);  // biased by 127
  const int fraction = magnitude == 1 ? 0 : (magnitude & 1) << 6;
  if (exponent >= 255) return static_cast<uint16_t>(sign | 0x7f80);
  if (exponent >= 1) return static_cast<uint16_t>(sign | exponent << 7 | fraction);
  return static_cast<uint16_t>(sign | (0x80 | fraction) >> (1 - exponent));
}

struct Mxfp4TableBf16 {
  alignas(
      64) uint16_t row[256][32];  // every code stands there twice, so that the top bit of a 5-bit index does not matter
};
struct Mxfp4TableF32 {
  alignas(64) uint32_t row[256][16];
};

constexpr Mxfp4TableBf16 make_mxfp4_table_bf16() {
  Mxfp4TableBf16 t{};
  for (int s = 0; s < 256; ++s)
    for (int i = 0; i < 32; ++i) t.row[s][i] = mxfp4_bf16(i & 15, s);
  return t;
}
constexpr Mxfp4TableF32 make_mxfp4_table_f32() {
  Mxfp4TableF32 t{};
  for (int s = 0; s < 256; ++s)
    for (int i = 0; i < 16; ++i) t.row[s][i] = static_cast<uint32_t>(mxfp4_bf16(i, s)) << 16;
  return t;
}

}  // namespace mxfp4moe
