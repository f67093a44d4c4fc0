// The 8-bit elements as tables. e4m3 and e5m2 have at most four significant bits, so that each value, also a subnormal
// one, is a normal bfloat16 (or zero, infinity or NaN).
#pragma once

#include <cstdint>

#include "formats/e4m3.h"
#include "formats/e5m2.h"

namespace mxfp4moe {

constexpr uint16_t exact_bf16(float value) { return static_cast<uint16_t>(__builtin_bit_cast(uint32_t, value) >> 16); }

struct Fp8TableF32 {
  alignas(64) float values[256];
};
template <float (*kValue)(uint8_t)>
constexpr Fp8TableF32 make_fp8_table_f32() {
  Fp8TableF32 t{};
  for (int code = 0; code < 256; ++code) t.values[code] = kValue(static_cast<uint8_t>(code));
  return t;
}

// The low and the high byte of the bfloat16 of each magnitude in tables of their own, for byte permutations.
struct Fp8ByteTables {
  alignas(64) uint8_t low[128];
  alignas(64) uint8_t high[128];
};
template <float (*kValue)(uint8_t)>
constexpr Fp8ByteTables make_fp8_byte_tables() {
  Fp8ByteTables t{};
  for (int code = 0; code < 128; ++code) {
    const uint16_t bits = exact_bf16(kValue(static_cast<uint8_t>(code)));
    t.low[code] = static_cast<uint8_t>(bits);
    t.high[code] = static_cast<uint8_t>(bits >> 8);
  }
  return t;
}

// The same tables with a tag: the lowest bit, which no value needs, is set in all values but zero, infinity and NaN.
// Those are the values whose exponents a scale changes.
template <float (*kValue)(uint8_t)>
constexpr Fp8ByteTables make_tagged_fp8_byte_tables() {
  Fp8ByteTables t = make_fp8_byte_tables<kValue>();
  for (int code = 0; code < 128; ++code) {
    const int bits = t.high[code] << 8 | t.low[code];
    if (bits != 0 && bits < 0x7f80) t.low[code] |= 1;
  }
  return t;
}

}  // namespace mxfp4moe
