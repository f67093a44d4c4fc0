// Decodes MXFP4 to bfloat16 rows: a quad's 32 words hold one code of each of four rows. vpermw looks at five index
// bits, so a shift brings the next row's code down and the bits above it do no harm: the table holds the codes
// twice. Which instruction shifts is the kernels' choice: shift_words<N>(words).
// Included inside a kernel table's own namespace; Vec is a zmm register of 32 bfloat16.

constexpr Mxfp4TableBf16 kMxfp4Bf16 = make_mxfp4_table_bf16();

struct Mxfp4 {
  template <class F>
  static MXFP4MOE_INLINE void each_vec(const uint8_t* quad, const uint8_t* scales, F&& f) {
    const __m512i words = _mm512_loadu_si512(quad);
    unroll<4>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
      const __m512i table = _mm512_load_si512(kMxfp4Bf16.row[scales[i.value]]);
      f(i, Index<0>{}, _mm512_permutexvar_epi16(shift_words<4 * i.value>(words), table));
    });
  }
};
