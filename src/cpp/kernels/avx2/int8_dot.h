// Products of bytes by vpmaddubsw, which adds the products of neighbours in 16 bits and saturates.
// Included inside a kernel table's own namespace, after int8_vectors.h.

constexpr int kDirectTokens = 2, kTileSizes = 3;
constexpr int kByteOffset = 0;  // signed codes stay as they are
constexpr bool kWideProducts = true;

// Codes of at most 24: two products are at most 2 * 24 * 127 = 6096, so that nothing saturates. The sums of a K-block
// may pass 16 bits and wrap around; without the zero points they do not, because 16 products of a weight of at most
// 15 by 127 are at most 30480.
template <bool kWide>
MXFP4MOE_INLINE Ints begin(Ints zeros, const int16_t (&sums)[2]) {
  return kWide ? _mm256_madd_epi16(zeros, repeat(sums)) : _mm256_mullo_epi16(zeros, repeat(sums));
}

// Signed codes: their magnitudes, at most 128, times activations of their sign. Two products are at most
// 2 * 128 * 127 = 32512, so that nothing saturates, but only these two are added in 16 bits.
template <bool kWide>
MXFP4MOE_INLINE Ints dot(Ints acc, Bytes w, Bytes x) {
  if constexpr (kWide) {
    const __m256i products = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
  } else {
    return _mm256_add_epi16(acc, _mm256_maddubs_epi16(w, x));
  }
}

template <bool kWide>
MXFP4MOE_INLINE Floats to_floats(Ints acc) {
  return _mm256_cvtepi32_ps(kWide ? acc : _mm256_madd_epi16(acc, _mm256_set1_epi16(1)));
}
