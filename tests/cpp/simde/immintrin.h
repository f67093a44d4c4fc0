// AVX-512 for a CPU without it: SIMDe's definitions of its types and intrinsics, which consist of AVX2, and here those
// that SIMDe 0.8 lacks or that it computes otherwise than the instruction does. Found before the compiler's own header
// in a build with -DMXFP4MOE_SIMDE=<folder of SIMDe's headers>; it takes GCC.
#pragma once
#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#undef __m512
#undef __m512i
#undef __m512d
#undef __m512bh
#define __m512 simde__m512
#define __m512i simde__m512i
#define __m512d simde__m512d
#define __m512bh simde__m512bh
#define __mmask8 simde__mmask8
#define __mmask16 simde__mmask16
#define __mmask32 simde__mmask32
#define __mmask64 simde__mmask64

namespace by_simde {

template <class T, int kCount>
struct Lanes {
  T v[kCount];
};

template <class To, class From>
inline To cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

// convert<Result, To, kResult, From, kLanes>(a): lanes of From, each converted as C++ does; the rest of the result is
// zero.
template <class Result, class To, int kResult, class From, int kLanes, class Vector>
inline Result convert(const Vector& a) {
  const auto from = cast<Lanes<From, kLanes>>(a);
  Lanes<To, kResult> to{};
  for (int i = 0; i < kLanes; ++i) to.v[i] = static_cast<To>(from.v[i]);
  return cast<Result>(to);
}

inline __m256i cvtepi32_epi16(__m512i a) { return convert<__m256i, int16_t, 16, int32_t, 16>(a); }
inline __m128i cvtepi32_epi8(__m512i a) { return convert<__m128i, int8_t, 16, int32_t, 16>(a); }
inline __m128i cvtepi64_epi8(__m512i a) { return convert<__m128i, int8_t, 16, int64_t, 8>(a); }
inline __m512i cvtepi8_epi32(__m128i a) { return convert<__m512i, int32_t, 16, int8_t, 16>(a); }
inline __m512i cvtepu8_epi32(__m128i a) { return convert<__m512i, int32_t, 16, uint8_t, 16>(a); }
inline __m512i cvtepu8_epi64(__m128i a) {
  const auto from = cast<Lanes<uint8_t, 16>>(a);
  Lanes<uint64_t, 8> to;
  for (int i = 0; i < 8; ++i) to.v[i] = from.v[i];
  return cast<__m512i>(to);
}

template <int kOrder>
inline __m512 permute_ps(__m512 a) {
  const auto from = cast<Lanes<float, 16>>(a);
  Lanes<float, 16> to;
  for (int i = 0; i < 16; ++i) to.v[i] = from.v[i / 4 * 4 + (kOrder >> i % 4 * 2 & 3)];
  return cast<__m512>(to);
}

inline __m512i mulhi_epu16(__m512i a, __m512i b) {
  auto x = cast<Lanes<uint16_t, 32>>(a);
  const auto y = cast<Lanes<uint16_t, 32>>(b);
  for (int i = 0; i < 32; ++i) x.v[i] = static_cast<uint16_t>(uint32_t{x.v[i]} * y.v[i] >> 16);
  return cast<__m512i>(x);
}
inline __mmask32 cmpeq_epi16_mask(__m512i a, __m512i b) {
  const auto x = cast<Lanes<uint16_t, 32>>(a), y = cast<Lanes<uint16_t, 32>>(b);
  uint32_t mask = 0;
  for (int i = 0; i < 32; ++i) mask |= uint32_t{x.v[i] == y.v[i]} << i;
  return mask;
}

// To the nearest, which is all that the kernels ask for.
inline __m256i cvtps_ph(__m512 a) {
  const auto x = cast<Lanes<__m256, 2>>(a);
  return cast<__m256i>(Lanes<__m128i, 2>{{_mm256_cvtps_ph(x.v[0], 0), _mm256_cvtps_ph(x.v[1], 0)}});
}
inline __m512 cvtph_ps(__m256i a) {
  const auto x = cast<Lanes<__m128i, 2>>(a);
  return cast<__m512>(Lanes<__m256, 2>{{_mm256_cvtph_ps(x.v[0]), _mm256_cvtph_ps(x.v[1])}});
}
// SIMDe's own rounds twice where it was not told that there is a fused instruction.
inline __m512 fmadd_ps(__m512 a, __m512 b, __m512 c) {
  const auto x = cast<Lanes<__m256, 2>>(a), y = cast<Lanes<__m256, 2>>(b), z = cast<Lanes<__m256, 2>>(c);
  return cast<__m512>(
      Lanes<__m256, 2>{{_mm256_fmadd_ps(x.v[0], y.v[0], z.v[0]), _mm256_fmadd_ps(x.v[1], y.v[1], z.v[1])}});
}

// SIMDe's own writes zeros after the lanes of the mask.
inline void mask_storeu_epi32(void* p, __mmask16 mask, __m512i a) {
  const auto x = cast<Lanes<int32_t, 16>>(a);
  for (int i = 0; i < 16; ++i) {
    if ((mask >> i & 1) != 0) __builtin_memcpy(static_cast<char*>(p) + 4 * i, &x.v[i], 4);
  }
}

// Two fused steps, that of odd k first; what is subnormal counts as zero, as an operand and as a sum. SIMDe's own does
// neither. The operation is in Intel's manual under VDPBF16PS.
inline __m256 flush(__m256 a) {
  const __m256 sign = _mm256_and_ps(a, _mm256_set1_ps(-0.0f));
  const __m256 subnormal = _mm256_cmp_ps(_mm256_xor_ps(a, sign), _mm256_set1_ps(1.17549435e-38f), _CMP_LT_OQ);
  return _mm256_blendv_ps(a, sign, subnormal);
}
inline __m256 odd_bf16(__m256i a) {
  return flush(_mm256_castsi256_ps(_mm256_and_si256(a, _mm256_set1_epi32(static_cast<int>(0xffff0000u)))));
}
inline __m256 even_bf16(__m256i a) { return flush(_mm256_castsi256_ps(_mm256_slli_epi32(a, 16))); }
inline __m512 dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
  auto s = cast<Lanes<__m256, 2>>(sum);
  const auto x = cast<Lanes<__m256i, 2>>(a), y = cast<Lanes<__m256i, 2>>(b);
  for (int i = 0; i < 2; ++i) {
    s.v[i] = flush(_mm256_fmadd_ps(odd_bf16(x.v[i]), odd_bf16(y.v[i]), flush(s.v[i])));
    s.v[i] = flush(_mm256_fmadd_ps(even_bf16(x.v[i]), even_bf16(y.v[i]), s.v[i]));
  }
  return cast<__m512>(s);
}

}  // namespace by_simde

#undef _mm512_cvtepi32_epi16
#undef _mm512_cvtepi32_epi8
#undef _mm512_cvtepi64_epi8
#undef _mm512_cvtepi8_epi32
#undef _mm512_cvtepu8_epi32
#undef _mm512_cvtepu8_epi64
#undef _mm512_permute_ps
#undef _mm512_mulhi_epu16
#undef _mm512_cmpeq_epi16_mask
#undef _mm512_cvtps_ph
#undef _mm512_cvtph_ps
#undef _mm512_fmadd_ps
#undef _mm512_mask_storeu_epi32
#undef _mm512_dpbf16_ps
#define _mm512_cvtepi32_epi16 by_simde::cvtepi32_epi16
#define _mm512_cvtepi32_epi8 by_simde::cvtepi32_epi8
#define _mm512_cvtepi64_epi8 by_simde::cvtepi64_epi8
#define _mm512_cvtepi8_epi32 by_simde::cvtepi8_epi32
#define _mm512_cvtepu8_epi32 by_simde::cvtepu8_epi32
#define _mm512_cvtepu8_epi64 by_simde::cvtepu8_epi64
#define _mm512_permute_ps(a, order) by_simde::permute_ps<order>(a)
#define _mm512_mulhi_epu16 by_simde::mulhi_epu16
#define _mm512_cmpeq_epi16_mask by_simde::cmpeq_epi16_mask
#define _mm512_cvtps_ph(a, mode) by_simde::cvtps_ph(a)
#define _mm512_cvtph_ps by_simde::cvtph_ps
#define _mm512_fmadd_ps by_simde::fmadd_ps
#define _mm512_mask_storeu_epi32 by_simde::mask_storeu_epi32
#define _mm512_dpbf16_ps by_simde::dpbf16_ps
#define _mm256_dpbusd_avx_epi32 simde_mm256_dpbusd_epi32
