// Decodes MXFP4 to float32 rows, without a table in memory.
// Included inside a kernel table's own namespace, after avx2/dot.h.

constexpr E8m0TableF32 kE8m0F32 = make_e8m0_table_f32();

// Two pshufb give the high and low bytes of the bfloat16 of 32 codes: of two rows, whose codes are the low (or high)
// nibbles of the even and of the odd bytes. Unpacked they stand side by side in 32-bit lanes, one row's value in the
// low half, the other's in the high half. Times the scale, a power of two, they are exact.
struct Mxfp4 {
  // Words of rows (first, first + 2) in four ymm, in the order of the k.
  static MXFP4MOE_INLINE void row_pair(const __m256i (&codes)[2], __m256i (&words)[4]) {
    const __m256i high = _mm256_setr_epi8(0, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40, -128, -65, -65, -65, -64, -64, -64, -64,
                                          0, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40, -128, -65, -65, -65, -64, -64, -64, -64);
    const __m256i low = _mm256_setr_epi8(0, 0, -128, -64, 0, 0x40, -128, -64, 0, 0, -128, -64, 0, 0x40, -128, -64,
                                         0, 0, -128, -64, 0, 0x40, -128, -64, 0, 0, -128, -64, 0, 0x40, -128, -64);
    unroll<2>([&](auto v) MXFP4MOE_INLINE_LAMBDA {
      const __m256i h = _mm256_shuffle_epi8(high, codes[v.value]);
      const __m256i l = _mm256_shuffle_epi8(low, codes[v.value]);
      words[2 * v.value] = _mm256_unpacklo_epi8(l, h);
      words[2 * v.value + 1] = _mm256_unpackhi_epi8(l, h);
    });
  }

  template <class F>
  static MXFP4MOE_INLINE void each_row(const uint8_t* quad, const uint8_t* scales, F&& f) {
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    unroll<2>([&](auto first) MXFP4MOE_INLINE_LAMBDA {
      __m256i codes[2], words[4];
      unroll<2>([&](auto v) MXFP4MOE_INLINE_LAMBDA {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(quad + 32 * v.value));
        codes[v.value] = _mm256_and_si256(first.value == 0 ? bytes : _mm256_srli_epi16(bytes, 4), nibble);
      });
      row_pair(codes, words);
      const __m256 scale0 = _mm256_broadcast_ss(kE8m0F32.values + scales[first.value]);
      const __m256 scale1 = _mm256_broadcast_ss(kE8m0F32.values + scales[first.value + 2]);
      Vec row[kParts];
      unroll<kParts>([&](auto v) MXFP4MOE_INLINE_LAMBDA {
        row[v.value] = _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(words[v.value], 16)), scale0);
      });
      f(Index<first.value>{}, row);
      unroll<kParts>([&](auto v) MXFP4MOE_INLINE_LAMBDA {
        row[v.value] = _mm256_mul_ps(_mm256_castsi256_ps(_mm256_and_si256(words[v.value], upper)), scale1);
      });
      f(Index<first.value + 2>{}, row);
    });
  }
};
