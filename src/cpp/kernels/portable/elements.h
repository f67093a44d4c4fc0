// Decodes elements to float32 rows.
// Included inside a kernel table's own namespace, after portable/dot.h.

constexpr E8m0TableF32 kE8m0F32 = make_e8m0_table_f32();
constexpr Fp8TableF32 kE4m3F32 = make_fp8_table_f32<e4m3_value>();
typedef uint8_t Byte8 __attribute__((vector_size(8)));
typedef int8_t SignedByte8 __attribute__((vector_size(8)));
typedef uint16_t Word8 __attribute__((vector_size(16)));
typedef uint32_t Uint4 __attribute__((vector_size(16)));

MXFP4MOE_INLINE Vec scale_vec(const Vec& v, float scale) { return {{v.v[0] * scale, v.v[1] * scale}}; }
// A part of a K-block is in one of its halves.
template <class Part>
MXFP4MOE_INLINE Vec scale_halves(Part, const Vec& v, float first, float second) {
  return scale_vec(v, Part::value * kVecElements < kBlockK / 2 ? first : second);
}

MXFP4MOE_INLINE Vec scale_and_add(const Vec& v, float scale, float addend) {
  return {{v.v[0] * scale + addend, v.v[1] * scale + addend}};
}

using E2m1Scale = float;
MXFP4MOE_INLINE E2m1Scale e8m0_scale(uint8_t byte) { return kE8m0F32.values[byte]; }
MXFP4MOE_INLINE E2m1Scale e4m3_scale(uint8_t byte) { return kE4m3F32.values[byte]; }

// Codes are decoded by arithmetic, because no baseline instruction set has table look-ups for several lanes. The
// magnitudes 0 to 7 are 0, 1, 2, 3, 4, 6, 8 and 12 halves, and comparisons give -1 where they are true. The first two
// parts of a row are k < 16.
template <class ScaleOf, class F>
MXFP4MOE_INLINE void each_e2m1(const uint8_t* quad, ScaleOf&& scale_of, F&& f) {
  unroll<4>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
    unroll<kParts>([&](auto part) MXFP4MOE_INLINE_LAMBDA {
      const float half_scale = 0.5f * scale_of(i, Index<part.value / 2>{});
      Short8 words;
      std::memcpy(&words, quad + 16 * part.value, sizeof(words));
      const Short8 m = (words >> (4 * i.value)) & 7;
      const Short8 halves = m - (m > 4) - (m > 5) - (m > 6) * 3;
      const Short8 sign = (words << (12 - 4 * i.value)) >> 15;
      const Short8 value = (halves ^ sign) - sign;
      Int4 lanes;
      std::memcpy(&lanes, &value, sizeof(lanes));
      Vec row;
      row.v[0] = __builtin_convertvector((lanes << 16) >> 16, Float4) * half_scale;
      row.v[1] = __builtin_convertvector(lanes >> 16, Float4) * half_scale;
      f(i, part, row);
    });
  });
}

#include "kernels/generic/mxfp4_by_e2m1.h"

using Mxfp4 = Mxfp4ByE2m1;

constexpr int kE4m3Factor = 1;

// Once the bits stand where float32 has them, multiplying by a power of two corrects the bias of the exponent, for
// subnormals too. Magnitudes from kSpecial on get the exponent of infinity and NaN.
template <int kShift, int kExponent, int kSpecial, uint32_t kSpecialBits>
MXFP4MOE_INLINE Float4 fp8_to_f32(const Uint4& codes) {
  const Uint4 magnitude = codes & 0x7f;
  const float factor = __builtin_bit_cast(float, static_cast<uint32_t>(127 + kExponent) << 23);
  Float4 value;
  const Uint4 shifted = magnitude << kShift;
  std::memcpy(&value, &shifted, sizeof(value));
  value *= factor;
  Uint4 bits;
  std::memcpy(&bits, &value, sizeof(bits));
  bits |= (codes & 0x80) << 24;
  bits |= reinterpret_cast<Uint4>(reinterpret_cast<Int4>(magnitude) >= kSpecial) & kSpecialBits;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

template <int kShift, int kExponent, int kSpecial, uint32_t kSpecialBits, class F>
MXFP4MOE_INLINE void each_fp8(const uint8_t* quad, F&& f) {
  unroll<4>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
    unroll<kParts>([&](auto part) MXFP4MOE_INLINE_LAMBDA {
      Byte8 bytes;
      std::memcpy(&bytes, quad + i.value / 2 * 64 + 16 * part.value + i.value % 2 * 8, sizeof(bytes));
      const Word8 words = __builtin_convertvector(bytes, Word8);
      Uint4 lanes;
      std::memcpy(&lanes, &words, sizeof(lanes));
      const Vec row = {{fp8_to_f32<kShift, kExponent, kSpecial, kSpecialBits>(lanes & 0xffff),
                        fp8_to_f32<kShift, kExponent, kSpecial, kSpecialBits>(lanes >> 16)}};
      f(i, part, row);
    });
  });
}
template <class F>
MXFP4MOE_INLINE void each_e4m3(const uint8_t* quad, F&& f) {
  each_fp8<20, 120, 0x7f, 0x7fc00000u>(quad, f);
}
template <class F>
MXFP4MOE_INLINE void each_e5m2(const uint8_t* quad, F&& f) {
  each_fp8<21, 112, 0x7c, 0x7f800000u>(quad, f);
}

// Small integers in the words of 32-bit lanes, those of the even and those of the odd k.
MXFP4MOE_INLINE Vec integers_to_f32(const Short8& words) {
  Int4 lanes;
  std::memcpy(&lanes, &words, sizeof(lanes));
  return {{__builtin_convertvector((lanes << 16) >> 16, Float4), __builtin_convertvector(lanes >> 16, Float4)}};
}

constexpr int kCheapestInt4Zero = 0, kCheapestInt8Zero = 0;
template <class ZeroOf, class F>
MXFP4MOE_INLINE void each_int4(const uint8_t* quad, ZeroOf&& zero_of, F&& f) {
  unroll<4>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
    const int16_t zero = static_cast<int16_t>(zero_of(i));
    unroll<kParts>([&](auto part) MXFP4MOE_INLINE_LAMBDA {
      Short8 words;
      std::memcpy(&words, quad + 16 * part.value, sizeof(words));
      f(i, part, integers_to_f32(((words >> (4 * i.value)) & 15) - zero));
    });
  });
}

template <class ZeroOf, class F>
MXFP4MOE_INLINE void each_int8(const uint8_t* quad, ZeroOf&& zero_of, F&& f) {
  unroll<4>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
    const int16_t zero = static_cast<int16_t>(zero_of(i));
    unroll<kParts>([&](auto part) MXFP4MOE_INLINE_LAMBDA {
      SignedByte8 bytes;
      std::memcpy(&bytes, quad + i.value / 2 * 64 + 16 * part.value + i.value % 2 * 8, sizeof(bytes));
      f(i, part, integers_to_f32(__builtin_convertvector(bytes, Short8) - zero));
    });
  });
}

template <class F>
MXFP4MOE_INLINE void each_bf16(const uint8_t* quad, F&& f) {
  unroll<4>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
    unroll<kParts>([&](auto part) MXFP4MOE_INLINE_LAMBDA {
      Uint4 lanes;
      std::memcpy(&lanes, quad + 64 * i.value + 16 * part.value, sizeof(lanes));
      const Uint4 even = lanes << 16, odd = lanes & 0xffff0000u;
      Vec row;
      std::memcpy(&row.v[0], &even, sizeof(even));
      std::memcpy(&row.v[1], &odd, sizeof(odd));
      f(i, part, row);
    });
  });
}

#include "kernels/generic/scaled_int4_by_int4.h"
#include "kernels/generic/mxfp8_by_values.h"

template <WeightFormat kFormat>
using Mxfp8 = Mxfp8ByValues<kFormat>;
