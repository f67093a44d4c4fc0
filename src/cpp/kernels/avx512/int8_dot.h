// A panel as one zmm vector, and products of bytes by vpdpbusd of AVX-512 VNNI, which adds four products exactly.
// Included inside a kernel table's own namespace.

constexpr int kHalves = 1;
constexpr int kDirectTokens = 2, kTileSizes = 4;
constexpr int kByteOffset = 128;
constexpr bool kWideProducts = false;

using Bytes = __m512i;
using Ints = __m512i;
using Floats = __m512;

MXFP4MOE_INLINE Bytes load_weights(const uint8_t* p) { return _mm512_load_si512(p); }
MXFP4MOE_INLINE void store_weights(uint8_t* p, Bytes v) { _mm512_store_si512(p, v); }
MXFP4MOE_INLINE Ints load_ints(const int32_t* p) { return _mm512_loadu_si512(p); }
MXFP4MOE_INLINE void store_ints(int32_t* p, Ints v) { _mm512_storeu_si512(p, v); }
MXFP4MOE_INLINE Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
MXFP4MOE_INLINE void store_floats(float* p, Floats v) { _mm512_storeu_ps(p, v); }

MXFP4MOE_INLINE Bytes repeat(const void* four) {
  int32_t word;
  std::memcpy(&word, four, 4);
  return _mm512_set1_epi32(word);
}
MXFP4MOE_INLINE Ints repeat_pair(int16_t value) { return _mm512_set1_epi16(value); }

MXFP4MOE_INLINE Floats add_term(Floats sum, Floats integer, float x_scale, Floats w_scale) {
  return _mm512_add_ps(sum, _mm512_mul_ps(_mm512_mul_ps(integer, _mm512_set1_ps(x_scale)), w_scale));
}

template <bool kWide>
MXFP4MOE_INLINE Ints begin(Ints zeros, const int16_t (&sums)[2]) {
  return _mm512_madd_epi16(zeros, repeat(sums));
}
template <bool kWide>
MXFP4MOE_INLINE Ints dot(Ints acc, Bytes w, Bytes x) {
  return _mm512_dpbusd_epi32(acc, w, x);
}
template <bool kWide>
MXFP4MOE_INLINE Floats to_floats(Ints acc) {
  return _mm512_cvtepi32_ps(acc);
}
