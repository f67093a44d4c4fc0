// Decodes MXFP4 to bfloat16 rows.
// Included inside a kernel table's own namespace, after portable/tile_lanes.h.

constexpr Mxfp4TableBf16 kMxfp4Bf16 = make_mxfp4_table_bf16();

struct Mxfp4 {
  template <class F>
  static MXFP4MOE_INLINE void each_vec(const uint8_t* quad, const uint8_t* scales, F&& f) {
    unroll<4>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
      const uint16_t* table = kMxfp4Bf16.row[scales[i.value]];
      Vec row;
      for (int k = 0; k < kBlockK; ++k) row.v[k] = table[(quad[2 * k + i.value / 2] >> (4 * (i.value & 1))) & 15];
      f(i, Index<0>{}, row);
    });
  }
};
