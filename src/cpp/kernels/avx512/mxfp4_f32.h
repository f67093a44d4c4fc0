// Decodes MXFP4 to float32 rows.
// Included inside a kernel table's own namespace, after avx512/dot_fma.h.

constexpr Mxfp4TableF32 kMxfp4F32 = make_mxfp4_table_f32();

// vpermps looks at the four low index bits of each 32-bit lane: nibble i is row i at even k, nibble 4 + i at odd k.
struct Mxfp4 {
  template <class F>
  static MXFP4MOE_INLINE void each_vec(const uint8_t* quad, const uint8_t* scales, F&& f) {
    const __m512i words = _mm512_loadu_si512(quad);
    unroll<4>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
      const __m512 table = _mm512_load_ps(kMxfp4F32.row[scales[i.value]]);
      f(i, Index<0>{}, _mm512_permutexvar_ps(_mm512_srli_epi32(words, 4 * i.value), table));
      f(i, Index<1>{}, _mm512_permutexvar_ps(_mm512_srli_epi32(words, 16 + 4 * i.value), table));
    });
  }
};
