// Decodes elements to float32 rows: a K-block is the even k, then the odd k.
// Included inside a kernel table's own namespace, after avx512/dot_fma.h.

constexpr Mxfp4TableF32 kMxfp4F32 = make_mxfp4_table_f32();
constexpr E8m0TableF32 kE8m0F32 = make_e8m0_table_f32();
constexpr Fp8TableF32 kE4m3F32 = make_fp8_table_f32<e4m3_value>();

MXFP4MOE_INLINE Vec scale_vec(Vec v, float scale) { return _mm512_mul_ps(v, _mm512_set1_ps(scale)); }
// Both parts of a K-block, the even k and the odd ones, have k < 16 in their first eight lanes.
MXFP4MOE_INLINE Vec halves(float first, float second) {
  return _mm512_mask_broadcastss_ps(_mm512_set1_ps(first), 0xff00, _mm_set_ss(second));
}
template <class Part>
MXFP4MOE_INLINE Vec scale_halves(Part, Vec v, float first, float second) {
  return _mm512_mul_ps(v, halves(first, second));
}
MXFP4MOE_INLINE Vec scale_and_add(Vec v, float scale, float addend) {
  return _mm512_fmadd_ps(v, _mm512_set1_ps(scale), _mm512_set1_ps(addend));
}

// vpermps uses the four low bits of each 32-bit lane as the index. Nibble i of a lane is the code of row i at the even
// k, nibble 4 + i that at the odd k.
struct Mxfp4 {
  static constexpr WeightFormat kFormat = WeightFormat::kMxfp4;
  static constexpr int kSumFactor = 1;

  template <class F>
  static MXFP4MOE_INLINE void each_vec(const uint8_t* quad, const uint8_t* scales, F&& f) {
    const __m512i words = load_words(quad);
    unroll<4>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
      const __m512 table = _mm512_load_ps(kMxfp4F32.row[scales[i.value]]);
      f(i, Index<0>{}, _mm512_permutexvar_ps(_mm512_srli_epi32(words, 4 * i.value), table));
      f(i, Index<1>{}, _mm512_permutexvar_ps(_mm512_srli_epi32(words, 16 + 4 * i.value), table));
    });
  }
};

using E2m1Scale = float;
MXFP4MOE_INLINE E2m1Scale e4m3_scale(uint8_t byte) { return kE4m3F32.values[byte]; }

template <class ScaleOf, class F>
MXFP4MOE_INLINE void each_e2m1(const uint8_t* quad, ScaleOf&& scale_of, F&& f) {
  const __m512i words = load_words(quad);
  const __m512 values = _mm512_loadu_ps(kE2m1Values);
  unroll<4>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
    const __m512 scale = halves(scale_of(i, Index<0>{}), scale_of(i, Index<1>{}));
    f(i, Index<0>{}, _mm512_mul_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(words, 4 * i.value), values), scale));
    f(i, Index<1>{}, _mm512_mul_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(words, 16 + 4 * i.value), values), scale));
  });
}

// Codes are converted by way of float16, for which there is an instruction. e5m2 is the upper byte of a float16. e4m3
// moved right by one bit is a float16 of 1/2^8 of the value, which is why kE4m3Factor is 2^8; NaN must be put in.
constexpr int kE4m3Factor = 256;
MXFP4MOE_INLINE __m512i e4m3_to_f16(__m512i upper_bytes) {
  const __m512i values =
      _mm512_and_si512(_mm512_srai_epi16(upper_bytes, 1), _mm512_set1_epi16(static_cast<short>(0xbf80)));
  const __m512i nan = _mm512_set1_epi16(0x3f80);
  return _mm512_mask_mov_epi16(values, _mm512_cmpeq_epi16_mask(_mm512_and_si512(values, nan), nan),
                               _mm512_set1_epi16(0x7e00));
}

template <class ToF16, class F>
MXFP4MOE_INLINE void each_fp8(const uint8_t* quad, ToF16&& to_f16, F&& f) {
  alignas(64) static constexpr uint16_t kEvenThenOdd[32] = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30,
                                                            1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
  const __m512i order = _mm512_load_si512(kEvenThenOdd);
  const auto emit = [&](auto row, __m512i upper_bytes) MXFP4MOE_INLINE_LAMBDA {
    const __m512i halves = _mm512_permutexvar_epi16(order, to_f16(upper_bytes));
    f(row, Index<0>{}, _mm512_cvtph_ps(_mm512_castsi512_si256(halves)));
    f(row, Index<1>{}, _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1)));
  };
  unroll<2>([&](auto pair) MXFP4MOE_INLINE_LAMBDA {
    const __m512i codes = load_words(quad + 64 * pair.value);
    emit(Index<2 * pair.value>{}, _mm512_unpacklo_epi8(_mm512_setzero_si512(), codes));
    emit(Index<2 * pair.value + 1>{}, _mm512_unpackhi_epi8(_mm512_setzero_si512(), codes));
  });
}
template <class F>
MXFP4MOE_INLINE void each_e4m3(const uint8_t* quad, F&& f) {
  each_fp8(quad, [](__m512i v) MXFP4MOE_INLINE_LAMBDA { return e4m3_to_f16(v); }, f);
}
template <class F>
MXFP4MOE_INLINE void each_e5m2(const uint8_t* quad, F&& f) {
  each_fp8(quad, [](__m512i v) MXFP4MOE_INLINE_LAMBDA { return v; }, f);
}

// The differences of the sixteen codes and each zero point.
constexpr Int4TableF32 kInt4F32 = make_int4_table_f32();
constexpr int kCheapestInt4Zero = 0, kCheapestInt8Zero = 0;
template <class ZeroOf, class F>
MXFP4MOE_INLINE void each_int4(const uint8_t* quad, ZeroOf&& zero_of, F&& f) {
  const __m512i words = load_words(quad);
  unroll<4>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
    const __m512 table = _mm512_load_ps(kInt4F32.row[zero_of(i)]);
    f(i, Index<0>{}, _mm512_permutexvar_ps(_mm512_srli_epi32(words, 4 * i.value), table));
    f(i, Index<1>{}, _mm512_permutexvar_ps(_mm512_srli_epi32(words, 16 + 4 * i.value), table));
  });
}

// The table of a row is scaled, which takes one operation for all of its weights in a K-block.
template <class ScaleOf, class AddendOf, class F>
MXFP4MOE_INLINE void each_scaled_int4(const uint8_t* quad, ScaleOf&& scale_of, AddendOf&& addend_of, F&& f) {
  const __m512i words = load_words(quad);
  const __m512 codes = in_register(_mm512_load_ps(kInt4F32.row[kCheapestInt4Zero]));
  unroll<4>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
    const __m512 table = in_register(scale_and_add(codes, scale_of(i), addend_of(i)));
    f(i, Index<0>{}, _mm512_permutexvar_ps(_mm512_srli_epi32(words, 4 * i.value), table));
    f(i, Index<1>{}, _mm512_permutexvar_ps(_mm512_srli_epi32(words, 16 + 4 * i.value), table));
  });
}

// Codes plus 128 become floats by standing in the mantissa of 2^23, which a subtraction takes away together with the
// zero point.
template <class ZeroOf, class F>
MXFP4MOE_INLINE void each_int8(const uint8_t* quad, ZeroOf&& zero_of, F&& f) {
  const __m512i power = _mm512_set1_epi32(0x4b000000), zero = _mm512_setzero_si512();
  const auto emit = [&](auto row, __m512i words) MXFP4MOE_INLINE_LAMBDA {
    const __m512 number = _mm512_set1_ps(static_cast<float>((1 << 23) + 128 + zero_of(row)));
    // (words & 0xffff) | power
    const __m512i even = _mm512_ternarylogic_epi32(words, _mm512_set1_epi32(0xffff), power, 0xea);
    const __m512i odd = _mm512_or_si512(_mm512_srli_epi32(words, 16), power);
    f(row, Index<0>{}, _mm512_sub_ps(_mm512_castsi512_ps(even), number));
    f(row, Index<1>{}, _mm512_sub_ps(_mm512_castsi512_ps(odd), number));
  };
  unroll<2>([&](auto pair) MXFP4MOE_INLINE_LAMBDA {
    const __m512i codes =
        _mm512_xor_si512(load_words(quad + 64 * pair.value), _mm512_set1_epi8(static_cast<char>(0x80)));
    emit(Index<2 * pair.value>{}, _mm512_unpacklo_epi8(codes, zero));
    emit(Index<2 * pair.value + 1>{}, _mm512_unpackhi_epi8(codes, zero));
  });
}

template <class F>
MXFP4MOE_INLINE void each_bf16(const uint8_t* quad, F&& f) {
  unroll<4>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
    const __m512i words = _mm512_loadu_si512(quad + 64 * i.value);
    f(i, Index<0>{}, low_halves(words));
    f(i, Index<1>{}, high_halves(words));
  });
}

#include "kernels/generic/mxfp8_by_values.h"

template <WeightFormat kFormat>
using Mxfp8 = Mxfp8ByDividedValues<kFormat>;
