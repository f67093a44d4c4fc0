// Decodes elements to rows of bfloat16, one by one.
// Included inside a kernel table's own namespace, after portable/tile_lanes.h.

constexpr Mxfp4TableBf16 kMxfp4Bf16 = make_mxfp4_table_bf16();
constexpr Nvfp4TableBf16 kNvfp4Bf16 = make_nvfp4_table_bf16();
constexpr E8m0TableF32 kE8m0F32 = make_e8m0_table_f32();
constexpr Fp8TableF32 kE4m3F32 = make_fp8_table_f32<e4m3_value>();
constexpr Fp8TableF32 kE5m2F32 = make_fp8_table_f32<e5m2_value>();
constexpr int kE4m3Factor = 1;

// The values of the sixteen codes at one scale.
using E2m1Scale = const uint16_t*;
MXFP4MOE_INLINE E2m1Scale e8m0_scale(uint8_t byte) { return kMxfp4Bf16.row[byte]; }
MXFP4MOE_INLINE E2m1Scale e4m3_scale(uint8_t byte) { return kNvfp4Bf16.row[byte]; }

template <class ScaleOf, class F>
MXFP4MOE_INLINE void each_e2m1(const uint8_t* quad, ScaleOf&& scale_of, F&& f) {
  unroll<4>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
    const E2m1Scale tables[2] = {scale_of(i, Index<0>{}), scale_of(i, Index<1>{})};
    Vec row;
    for (int k = 0; k < kBlockK; ++k) {
      row.v[k] = tables[k / 16][(quad[2 * k + i.value / 2] >> (4 * (i.value & 1))) & 15];
    }
    f(i, Index<0>{}, row);
  });
}

#include "kernels/generic/mxfp4_by_e2m1.h"

using Mxfp4 = Mxfp4ByE2m1;

template <class F>
MXFP4MOE_INLINE void each_fp8(const Fp8TableF32& table, const uint8_t* quad, F&& f) {
  unroll<4>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
    const uint8_t* codes = quad + i.value / 2 * 64 + i.value % 2 * 8;
    Vec row;
    for (int k = 0; k < kBlockK; ++k) row.v[k] = exact_bf16(table.values[codes[k / 8 * 16 + k % 8]]);
    f(i, Index<0>{}, row);
  });
}
template <class F>
MXFP4MOE_INLINE void each_e4m3(const uint8_t* quad, F&& f) {
  each_fp8(kE4m3F32, quad, f);
}
template <class F>
MXFP4MOE_INLINE void each_e5m2(const uint8_t* quad, F&& f) {
  each_fp8(kE5m2F32, quad, f);
}

template <class ZeroOf, class F>
MXFP4MOE_INLINE void each_int4(const uint8_t* quad, ZeroOf&& zero_of, F&& f) {
  unroll<4>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
    const int zero = zero_of(i);
    Vec row;
    for (int k = 0; k < kBlockK; ++k) {
      const int code = (quad[2 * k + i.value / 2] >> (4 * (i.value & 1))) & 15;
      row.v[k] = exact_bf16(static_cast<float>(code - zero));
    }
    f(i, Index<0>{}, row);
  });
}

template <class ZeroOf, class F>
MXFP4MOE_INLINE void each_int8(const uint8_t* quad, ZeroOf&& zero_of, F&& f) {
  unroll<4>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
    const uint8_t* codes = quad + i.value / 2 * 64 + i.value % 2 * 8;
    const int zero = zero_of(i);
    Vec row;
    for (int k = 0; k < kBlockK; ++k) {
      row.v[k] = exact_bf16(static_cast<float>(static_cast<int8_t>(codes[k / 8 * 16 + k % 8]) - zero));
    }
    f(i, Index<0>{}, row);
  });
}

template <class F>
MXFP4MOE_INLINE void each_bf16(const uint8_t* quad, F&& f) {
  unroll<4>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
    Vec row;
    std::memcpy(row.v, quad + 64 * i.value, sizeof(row.v));
    f(i, Index<0>{}, row);
  });
}

MXFP4MOE_INLINE Vec scale_vec(const Vec& v, float scale) {
  Vec row;
  for (int k = 0; k < kBlockK; ++k) row.v[k] = exact_bf16(bf16_to_f32(v.v[k]) * scale);
  return row;
}

#include "kernels/generic/mxfp8_by_values.h"

template <WeightFormat kFormat>
using Mxfp8 = Mxfp8ByValues<kFormat>;
