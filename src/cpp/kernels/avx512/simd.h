// Sixteen float32 lanes in one zmm register. See portable/simd.h, which defines each function in plain C++.
// This header is included inside the namespace of one kernel table; it must not be included anywhere else.

using F32 = __m512;
using U32 = __m512i;

inline F32 load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F32 a) { _mm512_storeu_ps(p, a); }
inline F32 broadcast(float a) { return _mm512_set1_ps(a); }
inline F32 add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
inline F32 sub(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
inline F32 mul(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
inline F32 div(F32 a, F32 b) { return _mm512_div_ps(a, b); }
inline F32 mul_add(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
inline F32 min(F32 a, F32 b) { return _mm512_min_ps(a, b); }
inline F32 max(F32 a, F32 b) { return _mm512_max_ps(a, b); }
inline F32 select_less(F32 a, F32 b, F32 x, F32 y) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
inline F32 round_even(F32 a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

inline U32 bits(F32 a) { return _mm512_castps_si512(a); }
inline F32 from_bits(U32 a) { return _mm512_castsi512_ps(a); }
inline U32 broadcast_u32(uint32_t a) { return _mm512_set1_epi32(static_cast<int>(a)); }
inline U32 load_u32(const uint32_t* p) { return _mm512_loadu_si512(p); }
inline U32 bit_and(U32 a, U32 b) { return _mm512_and_si512(a, b); }
inline U32 bit_or(U32 a, U32 b) { return _mm512_or_si512(a, b); }
inline U32 bit_xor(U32 a, U32 b) { return _mm512_xor_si512(a, b); }
inline U32 add_u32(U32 a, U32 b) { return _mm512_add_epi32(a, b); }
inline U32 sub_u32(U32 a, U32 b) { return _mm512_sub_epi32(a, b); }
inline U32 max_u32(U32 a, U32 b) { return _mm512_max_epu32(a, b); }
template <int N>
inline U32 shift_left(U32 a) {
  return _mm512_slli_epi32(a, N);
}
template <int N>
inline U32 shift_right(U32 a) {
  return _mm512_srli_epi32(a, N);
}
inline uint32_t reduce_max_u32(U32 a) { return _mm512_reduce_max_epu32(a); }

inline F32 load_bf16(const uint16_t* p) {
  const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}
inline U32 round_bf16(F32 a) {
  const __m512i u = _mm512_castps_si512(a);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  return _mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16);
}
inline void store_bf16(uint16_t* p, F32 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(round_bf16(a)));
}
inline F32 load_f16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store_f16(uint16_t* p, F32 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

inline U32 load_nibbles(const uint8_t* p) {
  const __m512i bytes = _mm512_cvtepu8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  return _mm512_and_si512(_mm512_or_si512(bytes, _mm512_slli_epi64(bytes, 28)), _mm512_set1_epi32(15));
}
inline void store_nibbles(uint8_t* p, U32 a) {
  // The odd lane of each 64-bit pair moves down to bits 4..7; the conversion drops all above.
  const __m512i codes = _mm512_and_si512(a, _mm512_set1_epi32(15));
  const __m512i pairs = _mm512_or_si512(codes, _mm512_srli_epi64(codes, 28));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm512_cvtepi64_epi8(pairs));
}
inline void store_bytes(uint8_t* p, U32 a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a)); }
inline F32 lookup(const float* table, U32 index) { return _mm512_permutexvar_ps(index, _mm512_loadu_ps(table)); }

// Keeps a vector that is used several times in a register. Without the asm the compiler would load it anew for each
// use, but a port loads only one zmm a cycle. Where SIMDe stands in for the instructions there is no such register.
template <class V>
MXFP4MOE_INLINE V in_register(V v) {
#ifdef __AVX512F__
  asm("" : "+v"(v));
#endif
  return v;
}

// 64 bytes of weights.
MXFP4MOE_INLINE U32 load_words(const uint8_t* p) { return in_register(_mm512_loadu_si512(p)); }

// The piece of that number of 16 bytes of each of four times 64 bytes.
template <class Unit>
MXFP4MOE_INLINE __m512i pieces(const uint8_t* p, Unit) {
  constexpr int kPair = Unit::value < 2 ? 0x44 : 0xee;
  const __m512i first = _mm512_shuffle_i32x4(_mm512_loadu_si512(p), _mm512_loadu_si512(p + 64), kPair);
  const __m512i second = _mm512_shuffle_i32x4(_mm512_loadu_si512(p + 128), _mm512_loadu_si512(p + 192), kPair);
  return _mm512_shuffle_i32x4(first, second, Unit::value % 2 == 0 ? 0x88 : 0xdd);
}
