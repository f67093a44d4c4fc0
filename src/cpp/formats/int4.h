// INT4 as tables: the difference of each code and each zero point, both of which are 0 to 15. A row holds the sixteen
// codes at one zero point.
#pragma once

#include <cstdint>

#include "formats/fp8.h"

namespace mxfp4moe {

struct Int4TableBf16 {
  alignas(64) uint16_t row[16][32];  // every code stands there twice, as in Mxfp4TableBf16
};
// The differences themselves, of which five bits in two's complement are the index.
struct Int4Differences {
  alignas(64) uint16_t values[32];
};
struct Int4TableF32 {
  alignas(64) float row[16][16];
};

constexpr Int4TableBf16 make_int4_table_bf16() {
  Int4TableBf16 t{};
  for (int zero = 0; zero < 16; ++zero)
    for (int i = 0; i < 32; ++i) t.row[zero][i] = exact_bf16(static_cast<float>((i & 15) - zero));
  return t;
}
constexpr Int4Differences make_int4_differences() {
  Int4Differences t{};
  for (int i = 0; i < 32; ++i) t.values[i] = exact_bf16(static_cast<float>(i < 16 ? i : i - 32));
  return t;
}
constexpr Int4TableF32 make_int4_table_f32() {
  Int4TableF32 t{};
  for (int zero = 0; zero < 16; ++zero)
    for (int i = 0; i < 16; ++i) t.row[zero][i] = static_cast<float>(i - zero);
  return t;
}

}  // namespace mxfp4moe
