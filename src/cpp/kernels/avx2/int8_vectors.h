// A panel as two ymm vectors, for kernels on activations of eight bits: even rows and odd rows.
// Included inside a kernel table's own namespace, before int8_dot.h of it.

constexpr int kHalves = 2;

using Bytes = __m256i;
using Ints = __m256i;
using Floats = __m256;

MXFP4MOE_INLINE void halves(__m256i even, __m256i odd, __m256i (&out)[2]) {
  out[0] = even;
  out[1] = odd;
}
MXFP4MOE_INLINE void halves(__m256 even, __m256 odd, __m256 (&out)[2]) {
  out[0] = even;
  out[1] = odd;
}

MXFP4MOE_INLINE Bytes load_weights(const uint8_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
MXFP4MOE_INLINE void store_weights(uint8_t* p, Bytes v) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), v); }
MXFP4MOE_INLINE Ints load_ints(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
MXFP4MOE_INLINE void store_ints(int32_t* p, Ints v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
MXFP4MOE_INLINE Floats load_floats(const float* p) { return _mm256_loadu_ps(p); }
MXFP4MOE_INLINE void store_floats(float* p, Floats v) { _mm256_storeu_ps(p, v); }

MXFP4MOE_INLINE Bytes repeat(const void* four) {
  int32_t word;
  std::memcpy(&word, four, 4);
  return _mm256_set1_epi32(word);
}
MXFP4MOE_INLINE Ints repeat_pair(int16_t value) { return _mm256_set1_epi16(value); }

MXFP4MOE_INLINE Floats add_term(Floats sum, Floats integer, float x_scale, Floats w_scale) {
  return _mm256_add_ps(sum, _mm256_mul_ps(_mm256_mul_ps(integer, _mm256_set1_ps(x_scale)), w_scale));
}
