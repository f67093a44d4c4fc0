// Decodes elements to float32 rows.
// Included inside a kernel table's own namespace, after avx2/dot.h.

// At the e8m0 bytes from 2 to this one, every value of e2m1 is zero or a normal bfloat16.
constexpr int kMaxOrdinaryScale = 252;

// The tables say by how much a scale is below the largest ordinary one. The number stands in the place of the exponent
// of a bfloat16, in the low and in the high half of a lane.
struct ExponentDeductions {
  uint32_t low[256], high[256];
};
constexpr ExponentDeductions make_exponent_deductions() {
  ExponentDeductions t{};
  for (uint32_t s = 0; s <= kMaxOrdinaryScale; ++s) {
    t.low[s] = (kMaxOrdinaryScale - s) << 7;
    t.high[s] = t.low[s] << 16;
  }
  return t;
}
constexpr ExponentDeductions kExponentDeductions = make_exponent_deductions();
constexpr E8m0TableF32 kE8m0F32 = make_e8m0_table_f32();
constexpr Fp8TableF32 kE4m3F32 = make_fp8_table_f32<e4m3_value>();

// The low and the high bytes of the bfloat16 of the sixteen codes at scale byte s, for byte shuffles. -0 becomes 0.
struct CodeBytes {
  alignas(16) uint8_t low[16], high[16];
};
constexpr CodeBytes make_code_bytes(int s) {
  CodeBytes t{};
  for (int code = 0; code < 16; ++code) {
    const uint16_t value = code == 8 ? 0 : mxfp4_bf16(code, s);
    t.low[code] = static_cast<uint8_t>(value);
    t.high[code] = static_cast<uint8_t>(value >> 8);
  }
  return t;
}

MXFP4MOE_INLINE __m256i load_table(const uint8_t* p) {
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
}

// Two byte shuffles give the high and the low bytes of the bfloat16 of 32 codes. The codes belong to two rows: they are
// the low (or the high) nibbles of the even and of the odd bytes. Unpacked, the values stand side by side in 32-bit
// lanes, that of row kFirst in the low half, that of row kFirst + 2 in the high half.
template <int kFirst, int kHalf>
MXFP4MOE_INLINE void code_words(const uint8_t* quad, const CodeBytes& table, __m256i (&words)[2]) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(quad + 32 * kHalf));
  const __m256i nibbles = kFirst == 0 ? bytes : _mm256_srli_epi16(bytes, 4);
  const __m256i codes = _mm256_and_si256(nibbles, _mm256_set1_epi8(15));
  const __m256i high = _mm256_shuffle_epi8(load_table(table.high), codes);
  const __m256i low = _mm256_shuffle_epi8(load_table(table.low), codes);
  words[0] = _mm256_unpacklo_epi8(low, high);
  words[1] = _mm256_unpackhi_epi8(low, high);
}

constexpr CodeBytes kUnscaled = make_code_bytes(127), kMaxOrdinary = make_code_bytes(kMaxOrdinaryScale);

MXFP4MOE_INLINE Vec scale_vec(Vec v, float scale) { return _mm256_mul_ps(v, _mm256_set1_ps(scale)); }
// A part of a K-block is in one of its halves.
template <class Part>
MXFP4MOE_INLINE Vec scale_halves(Part, const Vec& v, float first, float second) {
  return scale_vec(v, Part::value * kVecElements < kBlockK / 2 ? first : second);
}
MXFP4MOE_INLINE Vec scale_and_add(Vec v, float scale, float addend) {
  return _mm256_fmadd_ps(v, _mm256_set1_ps(scale), _mm256_set1_ps(addend));
}

using E2m1Scale = float;
MXFP4MOE_INLINE E2m1Scale e8m0_scale(uint8_t byte) { return kE8m0F32.values[byte]; }
MXFP4MOE_INLINE E2m1Scale e4m3_scale(uint8_t byte) { return kE4m3F32.values[byte]; }

// The first two vectors of a row are k < 16.
template <class ScaleOf, class F>
MXFP4MOE_INLINE void each_e2m1(const uint8_t* quad, ScaleOf&& scale_of, F&& f) {
  unroll<2>([&](auto first) MXFP4MOE_INLINE_LAMBDA {
    constexpr Index<first.value + 2> second{};
    unroll<2>([&](auto half) MXFP4MOE_INLINE_LAMBDA {
      __m256i words[2];
      code_words<first.value, half.value>(quad, kUnscaled, words);
      unroll<2>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
        constexpr Index<2 * half.value + i.value> part{};
        f(first, part, scale_vec(low_halves(words[i.value]), scale_of(first, half)));
        f(second, part, scale_vec(high_halves(words[i.value]), scale_of(second, half)));
      });
    });
  });
}

// Where all scales of a panel are ordinary, a saturating subtraction lowers the exponents and leaves zeros as they are.
// It runs on a port that FMAs do not use.
struct OrdinaryMxfp4 {
  static constexpr WeightFormat kFormat = WeightFormat::kMxfp4;
  static constexpr int kSumFactor = 1;
  static constexpr int kMinScale = 2, kMaxScale = kMaxOrdinaryScale;

  template <class F>
  static MXFP4MOE_INLINE void each_vec(const uint8_t* quad, const uint8_t* scales, F&& f) {
    unroll<2>([&](auto first) MXFP4MOE_INLINE_LAMBDA {
      constexpr Index<first.value + 2> second{};
      const __m256i exponents =
          _mm256_or_si256(_mm256_set1_epi32(static_cast<int>(kExponentDeductions.low[scales[first.value]])),
                          _mm256_set1_epi32(static_cast<int>(kExponentDeductions.high[scales[second.value]])));
      unroll<2>([&](auto half) MXFP4MOE_INLINE_LAMBDA {
        __m256i words[2];
        code_words<first.value, half.value>(quad, kMaxOrdinary, words);
        unroll<2>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
          constexpr Index<2 * half.value + i.value> part{};
          const __m256i scaled = _mm256_subs_epu16(words[i.value], exponents);
          f(first, part, low_halves(scaled));
          f(second, part, high_halves(scaled));
        });
      });
    });
  }
};

#include "kernels/generic/mxfp4_by_e2m1.h"

struct Mxfp4 : Mxfp4ByE2m1 {
  using Ordinary = OrdinaryMxfp4;
};

// Codes are converted by way of float16, for which there is an instruction. e5m2 is the upper byte of a float16. e4m3
// moved right by one bit is a float16 of 1/2^8 of the value, which is why kE4m3Factor is 2^8; NaN must be put in.
constexpr int kE4m3Factor = 256;
MXFP4MOE_INLINE __m256i e4m3_to_f16(__m256i upper_bytes) {
  const __m256i values =
      _mm256_and_si256(_mm256_srai_epi16(upper_bytes, 1), _mm256_set1_epi16(static_cast<short>(0xbf80)));
  const __m256i nan = _mm256_set1_epi16(0x3f80);
  return _mm256_or_si256(values, _mm256_cmpeq_epi16(_mm256_and_si256(values, nan), nan));
}

// Unpacking bytes gives sixteen k of one row of the pair. Their middle quarters change places, because dot.h orders k
// so.
template <class ToF16, class F>
MXFP4MOE_INLINE void each_fp8(const uint8_t* quad, ToF16&& to_f16, F&& f) {
  unroll<2>([&](auto pair) MXFP4MOE_INLINE_LAMBDA {
    unroll<2>([&](auto half) MXFP4MOE_INLINE_LAMBDA {
      const __m256i codes =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(quad + 64 * pair.value + 32 * half.value));
      unroll<2>([&](auto row) MXFP4MOE_INLINE_LAMBDA {
        const __m256i zero = _mm256_setzero_si256();
        const __m256i bytes = row.value == 0 ? _mm256_unpacklo_epi8(zero, codes) : _mm256_unpackhi_epi8(zero, codes);
        const __m256i halves = _mm256_permute4x64_epi64(to_f16(bytes), 0xd8);
        constexpr Index<2 * pair.value + row.value> index{};
        f(index, Index<2 * half.value>{}, _mm256_cvtph_ps(_mm256_castsi256_si128(halves)));
        f(index, Index<2 * half.value + 1>{}, _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1)));
      });
    });
  });
}
template <class F>
MXFP4MOE_INLINE void each_e4m3(const uint8_t* quad, F&& f) {
  each_fp8(quad, [](__m256i v) MXFP4MOE_INLINE_LAMBDA { return e4m3_to_f16(v); }, f);
}
template <class F>
MXFP4MOE_INLINE void each_e5m2(const uint8_t* quad, F&& f) {
  each_fp8(quad, [](__m256i v) MXFP4MOE_INLINE_LAMBDA { return v; }, f);
}

// Small integers become floats by standing in the mantissa of a power of two, which a subtraction takes away together
// with the zero point: 0x4300 over 7 bits is a bfloat16 of 128 + code, 0x47 over a byte, 8 bits apart, a float32 of
// 2^15 + code.
MXFP4MOE_INLINE Vec subtract(Vec v, int number) { return _mm256_sub_ps(v, _mm256_set1_ps(static_cast<float>(number))); }

constexpr int kCheapestInt4Zero = -128;  // with this zero point the float is the result, and 0 is subtracted
template <class ZeroOf, class F>
MXFP4MOE_INLINE void each_int4(const uint8_t* quad, ZeroOf&& zero_of, F&& f) {
  const __m256i power = _mm256_set1_epi8(0x43);
  unroll<2>([&](auto first) MXFP4MOE_INLINE_LAMBDA {
    constexpr Index<first.value + 2> second{};
    unroll<2>([&](auto half) MXFP4MOE_INLINE_LAMBDA {
      const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(quad + 32 * half.value));
      const __m256i nibbles = first.value == 0 ? bytes : _mm256_srli_epi16(bytes, 4);
      const __m256i codes = _mm256_and_si256(nibbles, _mm256_set1_epi8(15));
      unroll<2>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
        constexpr Index<2 * half.value + i.value> part{};
        const __m256i words = i.value == 0 ? _mm256_unpacklo_epi8(codes, power) : _mm256_unpackhi_epi8(codes, power);
        f(first, part, subtract(low_halves(words), 128 + zero_of(first)));
        f(second, part, subtract(high_halves(words), 128 + zero_of(second)));
      });
    });
  });
}

constexpr int kCheapestInt8Zero = -(1 << 15) - 128;  // as above
template <class ZeroOf, class F>
MXFP4MOE_INLINE void each_int8(const uint8_t* quad, ZeroOf&& zero_of, F&& f) {
  const __m256i power = _mm256_set1_epi16(0x4700), zero = _mm256_setzero_si256();
  unroll<2>([&](auto pair) MXFP4MOE_INLINE_LAMBDA {
    unroll<2>([&](auto half) MXFP4MOE_INLINE_LAMBDA {
      const __m256i bytes =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(quad + 64 * pair.value + 32 * half.value));
      const __m256i codes = _mm256_xor_si256(bytes, _mm256_set1_epi8(static_cast<char>(0x80)));  // plus 128
      unroll<2>([&](auto row) MXFP4MOE_INLINE_LAMBDA {
        constexpr Index<2 * pair.value + row.value> index{};
        const __m256i words = row.value == 0 ? _mm256_unpacklo_epi8(zero, codes) : _mm256_unpackhi_epi8(zero, codes);
        const int number = zero_of(index) - kCheapestInt8Zero;
        f(index, Index<2 * half.value>{}, subtract(_mm256_castsi256_ps(_mm256_unpacklo_epi16(words, power)), number));
        f(index, Index<2 * half.value + 1>{},
          subtract(_mm256_castsi256_ps(_mm256_unpackhi_epi16(words, power)), number));
      });
    });
  });
}

template <class F>
MXFP4MOE_INLINE void each_bf16(const uint8_t* quad, F&& f) {
  unroll<4>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
    unroll<2>([&](auto half) MXFP4MOE_INLINE_LAMBDA {
      const uint8_t* p = quad + 64 * i.value + 32 * half.value;
      const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
      const __m256i zero = _mm256_setzero_si256();
      f(i, Index<2 * half.value>{}, _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, words)));
      f(i, Index<2 * half.value + 1>{}, _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, words)));
    });
  });
}

#include "kernels/generic/scaled_int4_by_int4.h"
#include "kernels/generic/mxfp8_by_values.h"

// The value of e8m0 byte s times 2^120, as float32.
struct E4m3Scales {
  float values[256];
};
constexpr int kMaxE4m3Scale = 134;  // whose value here is 2^127
constexpr E4m3Scales make_e4m3_scales() {
  E4m3Scales t{};
  float value = 0x1p127f;
  for (int s = kMaxE4m3Scale; s >= 0; --s, value /= 2) t.values[s] = value;
  return t;
}
constexpr E4m3Scales kE4m3Scales = make_e4m3_scales();

// Where no code of a panel is NaN and no scale is too large, the bits of e4m3 stand where those of a bfloat16 are,
// 2^120 below their value, subnormal ones too: this takes half of the operations that float16 takes.
struct FiniteMxfp8E4m3 {
  static constexpr WeightFormat kFormat = WeightFormat::kMxfp8E4m3;
  static constexpr int kSumFactor = 1;
  static constexpr int kMinScale = kMinMxfp8Scale<kFormat>, kMaxScale = kMaxE4m3Scale;
  static constexpr int kMaxCode = 0x7e;

  template <class F>
  static MXFP4MOE_INLINE void each_vec(const uint8_t* quad, const uint8_t* scales, F&& f) {
    unroll<2>([&](auto pair) MXFP4MOE_INLINE_LAMBDA {
      unroll<2>([&](auto half) MXFP4MOE_INLINE_LAMBDA {
        const __m256i codes =
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(quad + 64 * pair.value + 32 * half.value));
        unroll<2>([&](auto row) MXFP4MOE_INLINE_LAMBDA {
          constexpr Index<2 * pair.value + row.value> index{};
          const __m256i zero = _mm256_setzero_si256();
          const __m256i bytes = row.value == 0 ? _mm256_unpacklo_epi8(zero, codes) : _mm256_unpackhi_epi8(zero, codes);
          const __m256i mask = _mm256_set1_epi16(static_cast<short>(0x87f0));
          const __m256i words = _mm256_and_si256(_mm256_srai_epi16(bytes, 4), mask);
          const float scale = kE4m3Scales.values[scales[index.value]];
          f(index, Index<2 * half.value>{}, scale_vec(_mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, words)), scale));
          f(index, Index<2 * half.value + 1>{},
            scale_vec(_mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, words)), scale));
        });
      });
    });
  }
};

template <WeightFormat kFormat>
struct Mxfp8 : Mxfp8ByValues<kFormat> {};
template <>
struct Mxfp8<WeightFormat::kMxfp8E4m3> : Mxfp8ByValues<WeightFormat::kMxfp8E4m3> {
  using Ordinary = FiniteMxfp8E4m3;
};
