// Decodes elements to bfloat16 rows, for kernels whose Vec is a zmm register of 32 bfloat16. Needs AVX512_VBMI.
// Included inside a kernel table's own namespace, after shift_words<N>(words), with which the kernels choose the
// instruction that shifts.

constexpr Mxfp4TableBf16 kMxfp4Bf16 = make_mxfp4_table_bf16();
constexpr Nvfp4TableBf16 kNvfp4Bf16 = make_nvfp4_table_bf16();
constexpr E8m0TableF32 kE8m0F32 = make_e8m0_table_f32();
constexpr Fp8ByteTables kE4m3Bytes = make_fp8_byte_tables<e4m3_value>();
constexpr Fp8ByteTables kE5m2Bytes = make_fp8_byte_tables<e5m2_value>();
constexpr Fp8ByteTables kE4m3Tagged = make_tagged_fp8_byte_tables<e4m3_value>();
constexpr Fp8ByteTables kE5m2Tagged = make_tagged_fp8_byte_tables<e5m2_value>();
constexpr int kE4m3Factor = 1;

// The 32 words of a quad hold one code of each of four rows. vpermw uses five bits of a word as the index, so that a
// shift brings the code of the next row down. The bit above the code does no harm, because the table holds the codes
// twice.
struct Mxfp4 {
  static constexpr WeightFormat kFormat = WeightFormat::kMxfp4;
  static constexpr int kSumFactor = 1;

  template <class F>
  static MXFP4MOE_INLINE void each_vec(const uint8_t* quad, const uint8_t* scales, F&& f) {
    const __m512i words = load_words(quad);
    unroll<4>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
      const __m512i table = _mm512_load_si512(kMxfp4Bf16.row[scales[i.value]]);
      f(i, Index<0>{}, _mm512_permutexvar_epi16(shift_words<4 * i.value>(words), table));
    });
  }
};

// The values of the sixteen codes at one scale.
using E2m1Scale = const uint16_t*;
MXFP4MOE_INLINE E2m1Scale e4m3_scale(uint8_t byte) { return kNvfp4Bf16.row[byte]; }

// One table serves both scales of a row: bit 4 of the index says which half of the K-block a code belongs to.
template <class ScaleOf, class F>
MXFP4MOE_INLINE void each_e2m1(const uint8_t* quad, ScaleOf&& scale_of, F&& f) {
  const __m512i words = load_words(quad);
  const __m512i second_half = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(16), 1);
  unroll<4>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
    const __m256i first = _mm256_load_si256(reinterpret_cast<const __m256i*>(scale_of(i, Index<0>{})));
    const __m256i second = _mm256_load_si256(reinterpret_cast<const __m256i*>(scale_of(i, Index<1>{})));
    const __m512i table = _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
    // (words & 15) | second_half
    const __m512i index =
        _mm512_ternarylogic_epi32(shift_words<4 * i.value>(words), _mm512_set1_epi16(15), second_half, 0xea);
    f(i, Index<0>{}, _mm512_permutexvar_epi16(index, table));
  });
}

// The seven bits of a magnitude look up the low and the high byte of the bfloat16; the sign is that of the code.
// Unpacking gives the two rows of a pair.
template <class F>
MXFP4MOE_INLINE void each_fp8(const Fp8ByteTables& tables, const uint8_t* quad, F&& f) {
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
  unroll<2>([&](auto pair) MXFP4MOE_INLINE_LAMBDA {
    const __m512i codes = _mm512_loadu_si512(quad + 64 * pair.value);
    const __m512i low =
        _mm512_permutex2var_epi8(_mm512_load_si512(tables.low), codes, _mm512_load_si512(tables.low + 64));
    const __m512i high =
        _mm512_permutex2var_epi8(_mm512_load_si512(tables.high), codes, _mm512_load_si512(tables.high + 64));
    const __m512i signed_high = _mm512_ternarylogic_epi32(high, codes, sign, 0xf8);  // high | (codes & sign)
    f(Index<2 * pair.value>{}, Index<0>{}, _mm512_unpacklo_epi8(low, signed_high));
    f(Index<2 * pair.value + 1>{}, Index<0>{}, _mm512_unpackhi_epi8(low, signed_high));
  });
}
template <class F>
MXFP4MOE_INLINE void each_e4m3(const uint8_t* quad, F&& f) {
  each_fp8(kE4m3Bytes, quad, f);
}
template <class F>
MXFP4MOE_INLINE void each_e5m2(const uint8_t* quad, F&& f) {
  each_fp8(kE5m2Bytes, quad, f);
}

// The differences of the sixteen codes and each zero point.
constexpr Int4TableBf16 kInt4Bf16 = make_int4_table_bf16();
constexpr int kCheapestInt4Zero = 0, kCheapestInt8Zero = 0;
template <class ZeroOf, class F>
MXFP4MOE_INLINE void each_int4(const uint8_t* quad, ZeroOf&& zero_of, F&& f) {
  const __m512i words = load_words(quad);
  unroll<4>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
    const __m512i table = _mm512_load_si512(kInt4Bf16.row[zero_of(i)]);
    f(i, Index<0>{}, _mm512_permutexvar_epi16(shift_words<4 * i.value>(words), table));
  });
}

// Codes plus 128 become floats by standing in the mantissa of 2^23, which a subtraction takes away together with the
// zero point. The upper halves of the differences are exact.
template <class ZeroOf, class F>
MXFP4MOE_INLINE void each_int8(const uint8_t* quad, ZeroOf&& zero_of, F&& f) {
  const __m512i power = _mm512_set1_epi32(0x4b000000), zero = _mm512_setzero_si512();
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const auto emit = [&](auto row, __m512i words) MXFP4MOE_INLINE_LAMBDA {
    const __m512 number = _mm512_set1_ps(static_cast<float>((1 << 23) + 128 + zero_of(row)));
    // (words & ~upper) | power
    const __m512i even = _mm512_ternarylogic_epi32(words, upper, power, 0xba);
    const __m512i odd = _mm512_or_si512(_mm512_srli_epi32(words, 16), power);
    const __m512i even_value = _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(even), number));
    const __m512i odd_value = _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(odd), number));
    // (even_value >> 16) | (odd_value & upper)
    f(row, Index<0>{}, _mm512_ternarylogic_epi32(_mm512_srli_epi32(even_value, 16), odd_value, upper, 0xf8));
  };
  unroll<2>([&](auto pair) MXFP4MOE_INLINE_LAMBDA {
    const __m512i codes =
        _mm512_xor_si512(_mm512_loadu_si512(quad + 64 * pair.value), _mm512_set1_epi8(static_cast<char>(0x80)));
    emit(Index<2 * pair.value>{}, _mm512_unpacklo_epi8(codes, zero));
    emit(Index<2 * pair.value + 1>{}, _mm512_unpackhi_epi8(codes, zero));
  });
}

template <class F>
MXFP4MOE_INLINE void each_bf16(const uint8_t* quad, F&& f) {
  unroll<4>([&](auto i) MXFP4MOE_INLINE_LAMBDA { f(i, Index<0>{}, _mm512_loadu_si512(quad + 64 * i.value)); });
}

// Multiplies even and odd k as float32 by a power of two. The upper halves of the products are exact.
MXFP4MOE_INLINE __m512i scale_vec(__m512i v, float scale) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const __m512 factor = _mm512_set1_ps(scale);
  const __m512 even = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(v, 16)), factor);
  const __m512 odd = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_and_si512(v, upper)), factor);
  // (even >> 16) | (odd & upper)
  return _mm512_ternarylogic_epi32(_mm512_srli_epi32(_mm512_castps_si512(even), 16), _mm512_castps_si512(odd), upper,
                                   0xf8);
}

#include "kernels/generic/mxfp8_by_values.h"

// What a scale adds to two bfloat16 of tagged values: its exponent, and -1, which takes the tag away.
struct ExponentAddends {
  uint32_t pair[256];
};
constexpr ExponentAddends make_exponent_addends() {
  ExponentAddends t{};
  for (int s = 0; s < 256; ++s) t.pair[s] = static_cast<uint16_t>((s - 127) * 128 - 1) * 0x10001u;
  return t;
}
constexpr ExponentAddends kExponentAddends = make_exponent_addends();

// Where all scales of a panel are ordinary, one addition takes the place of two multiplications in float32.
template <WeightFormat kFormat_>
struct OrdinaryMxfp8 {
  static constexpr WeightFormat kFormat = kFormat_;
  static constexpr int kSumFactor = 1;
  static constexpr int kMinScale = kMinMxfp8Scale<kFormat>, kMaxScale = kMaxMxfp8Scale<kFormat>;

  template <class F>
  static MXFP4MOE_INLINE void each_vec(const uint8_t* quad, const uint8_t* scales, F&& f) {
    constexpr const Fp8ByteTables& tables = kFormat == WeightFormat::kMxfp8E4m3 ? kE4m3Tagged : kE5m2Tagged;
    each_fp8(tables, quad, [&](auto row, auto part, const Vec& vec) MXFP4MOE_INLINE_LAMBDA {
      const __m512i exponent = _mm512_set1_epi32(static_cast<int>(kExponentAddends.pair[scales[row.value]]));
      const __mmask32 tagged = _mm512_test_epi16_mask(vec, _mm512_set1_epi16(1));
      f(row, part, _mm512_mask_add_epi16(vec, tagged, vec, exponent));
    });
  }
};

template <WeightFormat kFormat>
struct Mxfp8 : Mxfp8ByValues<kFormat> {
  using Ordinary = OrdinaryMxfp8<kFormat>;
};
