// NVFP4 as tables: the value of each e2m1 code times that of each e4m3 scale code. Every such product has at most six
// significant bits and is therefore exactly a bfloat16.
#pragma once

#include <cstdint>

#include "formats/e2m1.h"
#include "formats/fp8.h"

namespace mxfp4moe {

struct Nvfp4TableBf16 {
  alignas(64) uint16_t row[256][16];
};

constexpr Nvfp4TableBf16 make_nvfp4_table_bf16() {
  Nvfp4TableBf16 t{};
  for (int s = 0; s < 256; ++s) {
    for (int code = 0; code < 16; ++code) {
      // A product with NaN is no constant expression, so NaN is written down.
      const bool is_nan = (s & 0x7f) == kE4m3Nan;
      const float value = is_nan ? __builtin_nanf("") : kE2m1Values[code] * e4m3_value(static_cast<uint8_t>(s));
      t.row[s][code] = exact_bf16(value);
    }
  }
  return t;
}

}  // namespace mxfp4moe
