// What the tile kernels need beside simd.h: partial stores and a 16 x 16 transpose.
// Included inside a kernel table's own namespace, after avx512/simd.h.

// Stores (and loads) the first n lanes, 1 <= n <= 16.
inline void store_first(uint32_t* p, U32 a, int64_t n) {
  _mm512_mask_storeu_epi32(p, static_cast<__mmask16>((1u << n) - 1), a);
}
inline F32 load_first(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}

// Makes columns of rows: parts of 32, then of 64, then of 128 bits change places in pairs.
inline void transpose16(U32 r[16]) {
  __m512i t[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// 32 k of a row as bfloat16.
using Vec = __m512i;
inline void store_vec(uint16_t* p, Vec a) { _mm512_storeu_si512(p, a); }

// The shift is the high half of a product, because beside tile operations vpmulhuw has more free ports than vpsrlw.
template <int N>
MXFP4MOE_INLINE __m512i shift_words(__m512i v) {
  return N == 0 ? v : _mm512_mulhi_epu16(v, _mm512_set1_epi16(static_cast<short>(1 << ((16 - N) & 15))));
}
