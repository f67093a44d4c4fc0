// Products of bytes by vpdpbusd of AVX-VNNI, which adds four products exactly.
// Included inside a kernel table's own namespace, after int8_vectors.h.

constexpr int kDirectTokens = 2, kTileSizes = 3;
constexpr int kByteOffset = 128;
constexpr bool kWideProducts = false;

template <bool kWide>
MXFP4MOE_INLINE Ints begin(Ints zeros, const int16_t (&sums)[2]) {
  return _mm256_madd_epi16(zeros, repeat(sums));
}
template <bool kWide>
MXFP4MOE_INLINE Ints dot(Ints acc, Bytes w, Bytes x) {
  return _mm256_dpbusd_avx_epi32(acc, w, x);
}
template <bool kWide>
MXFP4MOE_INLINE Floats to_floats(Ints acc) {
  return _mm256_cvtepi32_ps(acc);
}
