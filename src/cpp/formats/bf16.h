// bfloat16 and float16 as scalars. The functions are `static` on purpose: each kernel table keeps a copy compiled with
// its own flags, so that the linker can never pick the instructions of one table for another.
#pragma once

#include <cstdint>
#include <cstring>

namespace mxfp4moe {

static inline float f32_from_bits(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

static inline uint32_t f32_bits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}

static inline double f64_from_bits(uint64_t u) {
  double f;
  std::memcpy(&f, &u, 8);
  return f;
}

static inline uint64_t f64_bits(double f) {
  uint64_t u;
  std::memcpy(&u, &f, 8);
  return u;
}

static inline float bf16_to_f32(uint16_t b) { return f32_from_bits(static_cast<uint32_t>(b) << 16); }

// Rounds to nearest even. The usual carry trick turns some NaNs into infinity or zero, so NaN is tested for.
static inline uint16_t f32_to_bf16(float f) {
  const uint32_t u = f32_bits(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

// A float32 number is the sum of at most kMaxBf16Terms bfloat16 numbers of its sign, the largest first: each has the
// leading 8 significant bits of what is left. The sum is exact from 2^-110 on; below, bits smaller than 2^-133 are
// dropped. Infinity and NaN are all in the first term.
constexpr int kMaxBf16Terms = 3;

static inline uint16_t leading_bf16(float f) {
  const uint32_t u = f32_bits(f);
  // Truncation keeps a finite number finite, but may take all bits of a NaN.
  return (u & 0x7fffffffu) > 0x7f800000u ? static_cast<uint16_t>(0x7fc0) : static_cast<uint16_t>(u >> 16);
}

// Returns what is left of a number without its first term.
static inline float without_bf16(float f) {
  return (f32_bits(f) & 0x7f800000u) == 0x7f800000u ? 0.0f : f - bf16_to_f32(leading_bf16(f));
}

static inline uint16_t bf16_term(float f, int64_t term) {
  for (int64_t t = 0; t < term; ++t) f = without_bf16(f);
  return leading_bf16(f);
}

static inline float f16_to_f32(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t magnitude = h & 0x7fffu;
  if (magnitude >= 0x7c00u) return f32_from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Normal and subnormal numbers are treated alike: the bits are placed as if the bias were that of float32, then
  // multiplied by 2^112, which is exact.
  return f32_from_bits(sign | f32_bits(f32_from_bits(magnitude << 13) * f32_from_bits(0x77800000u)));
}

// Rounds to nearest even; too large a number becomes infinity, and NaN stays NaN.
static inline uint16_t f32_to_f16(float f) {
  const uint32_t u = f32_bits(f);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((a >> 13) & 0x1ffu));
  if (a >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 65536 or more
  if (a < 0x38800000u) {                                               // below 2^-14: fixed point of 2^-24
    const float fixed = f32_from_bits(a) + 0.5f;                       // the last bit of 0.5f is 2^-24
    return static_cast<uint16_t>(sign | (f32_bits(fixed) - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | ((a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13));
}

}  // namespace mxfp4moe
