// Rounding to the small element formats (E2M1, E4M3, E5M2), and the choice of a block's E8M0 scale. `Element` names the
// exponents of its smallest normal and of its largest value, its largest value and its mantissa bits.
// The functions are `static` for the reason that bf16.h gives.
#pragma once

#include <cstdint>

#include "common/types.h"
#include "formats/bf16.h"
#include "formats/e2m1.h"
#include "formats/e4m3.h"
#include "formats/e5m2.h"

namespace mxfp4moe {

// The code of a magnitude is that of the nearest value; ties go to the even code, and what is larger than the largest
// value (infinity too) becomes the largest value.
//
// The spacing of the codes around v is 2^-mantissa_bits of v's power of two, or of the smallest normal value if v
// is less. A number whose last float32 bit has that weight is added: the addition rounds v, and the low bits of the
// sum count the spacings. Each power of two above the smallest normal one adds 2^mantissa_bits codes, an even number,
// so that an even count is an even code. kernels/generic/quantize_values.h does the same on vectors.
template <class Element>
struct RoundF32 {
  static constexpr int kShift = 23 - Element::kMantissaBits;
  static constexpr uint32_t kExponentMask = 0x7f800000u;
  static constexpr uint32_t kMinExponentBits = static_cast<uint32_t>(127 + Element::kMinExponent) << 23;
  static constexpr uint32_t kUnitBits = static_cast<uint32_t>(kShift) << 23;  // times 2^kShift
};

template <class Element>
static inline uint32_t element_code(float magnitude) {
  using Round = RoundF32<Element>;
  const float v = magnitude < Element::kMax ? magnitude : Element::kMax;
  const uint32_t of_v = f32_bits(v) & Round::kExponentMask;
  const uint32_t exponent = of_v > Round::kMinExponentBits ? of_v : Round::kMinExponentBits;
  const uint32_t unit = exponent + Round::kUnitBits;
  return f32_bits(v + f32_from_bits(unit)) - unit + ((exponent - Round::kMinExponentBits) >> Round::kShift);
}

template <class Element>
static inline uint32_t element_code(double magnitude) {
  constexpr int kShift = 52 - Element::kMantissaBits;
  constexpr uint64_t kMinExponentBits = static_cast<uint64_t>(1023 + Element::kMinExponent) << 52;
  const double v = magnitude < Element::kMax ? magnitude : static_cast<double>(Element::kMax);
  const uint64_t of_v = f64_bits(v) & 0x7ff0000000000000u;
  const uint64_t exponent = of_v > kMinExponentBits ? of_v : kMinExponentBits;
  const uint64_t unit = exponent + (static_cast<uint64_t>(kShift) << 52);
  const uint64_t count = f64_bits(v + f64_from_bits(unit)) - unit;
  return static_cast<uint32_t>(count + ((exponent - kMinExponentBits) >> kShift));
}

// The scale exponent e of a block comes from the bits of its largest magnitude, `amax`: an addend below the exponent
// field carries into it when the rule asks for the next exponent; then the largest exponent of the element is taken
// off. In terms of amax = m * 2^E with 1 <= m < 2, and of the mantissa m_max of the element's largest value (1.5 or
// 1.75), the next exponent is taken
//   floor: never;   ceil: m > 1;   rceil: m > m_max;   even: m rounded half up to the element's mantissa bits is 2.
// `mantissa_bits` belongs to the type that amax has: 23 for float32, 52 for float64.
template <class Element>
constexpr uint64_t scale_addend(ScaleRule rule, int mantissa_bits) {
  constexpr float kAboveMax = 2.0f - Element::kMax / (1 << Element::kMaxExponent);  // 2 - m_max: a power of two
  const uint64_t one = uint64_t{1} << mantissa_bits;
  return rule == ScaleRule::kCeil    ? one - 1
         : rule == ScaleRule::kRceil ? one / static_cast<uint64_t>(1.0f / kAboveMax) - 1
         : rule == ScaleRule::kEven  ? one >> (Element::kMantissaBits + 1)
                                     : 0;
}

// The scale byte of a block is e clamped to [-127, 127], plus 127. `amax_bits` are those of amax plus the addend.
template <class Element>
static inline uint32_t scale_byte(uint32_t amax_bits) {
  const uint32_t exponent = amax_bits >> 23;  // biased by 127, as the byte is
  return exponent < Element::kMaxExponent ? 0 : exponent - Element::kMaxExponent;
}

template <class Element>
static inline uint32_t scale_byte(uint64_t amax_bits) {
  const int64_t scale = static_cast<int64_t>(amax_bits >> 52) - 1023 + 127 - Element::kMaxExponent;
  return static_cast<uint32_t>(scale < 0 ? 0 : scale > 254 ? 254 : scale);
}

}  // namespace mxfp4moe
