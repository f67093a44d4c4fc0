// Decodes MXFP4 to float32 rows.
// Included inside a kernel table's own namespace, after portable/dot.h.

constexpr E8m0TableF32 kE8m0F32 = make_e8m0_table_f32();

// Arithmetic instead of table look-ups, which no baseline can do for several lanes: the magnitudes 0..7 are the
// values 0, 1, 2, 3, 4, 6, 8, 12 in halves, and comparisons give -1 where true.
struct Mxfp4 {
  template <class F>
  static MXFP4MOE_INLINE void each_vec(const uint8_t* quad, const uint8_t* scales, F&& f) {
    unroll<4>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
      const float half_scale = 0.5f * kE8m0F32.values[scales[i.value]];
      unroll<kParts>([&](auto part) MXFP4MOE_INLINE_LAMBDA {
        Short8 words;
        std::memcpy(&words, quad + 16 * part.value, sizeof(words));
        const Short8 m = (words >> (4 * i.value)) & 7;
        const Short8 halves = m - (m > 4) - (m > 5) - (m > 6) * 3;
        const Short8 sign = (words << (12 - 4 * i.value)) >> 15;
        const Short8 value = (halves ^ sign) - sign;
        Int4 lanes;
        std::memcpy(&lanes, &value, sizeof(lanes));
        Vec row;
        row.v[0] = __builtin_convertvector((lanes << 16) >> 16, Float4) * half_scale;
        row.v[1] = __builtin_convertvector(lanes >> 16, Float4) * half_scale;
        f(i, part, row);
      });
    });
  }
};
