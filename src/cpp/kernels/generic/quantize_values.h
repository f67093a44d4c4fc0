// What all quantizers share: values of every type as sixteen float32 lanes, codes and back.
// Included inside the namespace of a kernel table, after its simd.h.

struct Float32Values {
  static constexpr int64_t kBytes = 4;
  static F32 read(const uint8_t* p) { return load(reinterpret_cast<const float*>(p)); }
  static void write(uint8_t* p, F32 a) { store(reinterpret_cast<float*>(p), a); }
};
struct Float16Values {
  static constexpr int64_t kBytes = 2;
  static F32 read(const uint8_t* p) { return load_f16(reinterpret_cast<const uint16_t*>(p)); }
  static void write(uint8_t* p, F32 a) { store_f16(reinterpret_cast<uint16_t*>(p), a); }
};
struct BFloat16Values {
  static constexpr int64_t kBytes = 2;
  static F32 read(const uint8_t* p) { return load_bf16(reinterpret_cast<const uint16_t*>(p)); }
  static void write(uint8_t* p, F32 a) { store_bf16(reinterpret_cast<uint16_t*>(p), a); }
};

// The bits of non-negative floats are ordered as the floats are; infinity and NaN come last.
constexpr uint32_t kInfinityF32 = 0x7f800000u;
constexpr uint64_t kInfinityF64 = 0x7ff0000000000000u;
inline U32 magnitude_bits(F32 a) { return bit_and(bits(a), broadcast_u32(0x7fffffffu)); }

inline double load_f64(const uint8_t* p) {
  double a;
  std::memcpy(&a, p, 8);
  return a;
}
inline void store_f64(uint8_t* p, double a) { std::memcpy(p, &a, 8); }

// Reads n values, 0 <= n < 16, into the first lanes; the other lanes are zero.
template <class Values>
inline F32 read_first(const uint8_t* p, int64_t n) {
  alignas(64) uint8_t lanes[16 * Values::kBytes] = {};
  std::memcpy(lanes, p, static_cast<size_t>(n * Values::kBytes));
  return Values::read(lanes);
}

// Computes element_code of formats/element.h with the sign; the codes stand in the low bits of the lanes.
template <class Element>
inline U32 element_codes(F32 values) {
  using Round = RoundF32<Element>;
  const U32 min_exponent = broadcast_u32(Round::kMinExponentBits);
  const U32 sign = bit_and(bits(values), broadcast_u32(0x80000000u));
  const F32 v = min(from_bits(bit_xor(bits(values), sign)), broadcast(Element::kMax));
  const U32 exponent = max_u32(bit_and(bits(v), broadcast_u32(Round::kExponentMask)), min_exponent);
  const U32 unit = add_u32(exponent, broadcast_u32(Round::kUnitBits));
  const U32 count = sub_u32(bits(add(v, from_bits(unit))), unit);
  const U32 code = add_u32(count, shift_right<Round::kShift>(sub_u32(exponent, min_exponent)));
  return bit_or(code, shift_right<32 - Element::kBits>(sign));
}

template <class Element>
inline uint32_t element_code_signed(double value) {
  const uint64_t sign = f64_bits(value) >> 63;
  const uint32_t code = element_code<Element>(f64_from_bits(f64_bits(value) & ~(uint64_t{1} << 63)));
  return code | static_cast<uint32_t>(sign << (Element::kBits - 1));
}

// The bytes of sixteen codes.
template <class Element>
constexpr int64_t kCodeBytes = 16 * Element::kBits / 8;

template <class Element>
inline void store_codes(uint8_t* p, U32 codes) {
  if constexpr (Element::kBits == 4) {
    store_nibbles(p, codes);
  } else {
    store_bytes(p, codes);
  }
}

template <class Element>
constexpr Fp8TableF32 kFp8Values = make_fp8_table_f32<Element::kMantissaBits == 3 ? e4m3_value : e5m2_value>();

template <class Element>
inline F32 load_values(const uint8_t* codes) {
  if constexpr (Element::kBits == 4) {
    return lookup(kE2m1Values, load_nibbles(codes));
  } else {
    float values[16];  // gather instructions are no faster, and much slower where microcode guards them
    for (int i = 0; i < 16; ++i) values[i] = kFp8Values<Element>.values[codes[i]];
    return load(values);
  }
}

// Returns value `i` of the codes.
template <class Element>
inline float value_at(const uint8_t* codes, int64_t i) {
  if constexpr (Element::kBits == 4) {
    return e2m1_to_f32(codes[i / 2] >> (i % 2 * 4));
  } else {
    return kFp8Values<Element>.values[codes[i]];
  }
}

// Float32 products that may be rounded again to 16 bits without harm. Where a product is not exact its last bit is set
// to 1, so that it lies on the same side of every 16-bit value, and of every midpoint of two, as the exact product.
inline F32 mul_to_odd(F32 a, float scale) {
  float v[16];
  uint32_t r[16];
  store(v, a);
  for (int i = 0; i < 16; ++i) {
    const double exact = static_cast<double>(v[i]) * scale;  // 24 bits each
    const float nearest = static_cast<float>(exact);
    const double back = static_cast<double>(nearest);
    const uint32_t u = f32_bits(nearest);
    const bool above = (exact < 0 ? -exact : exact) > (back < 0 ? -back : back);
    const bool inexact = (exact < back) | (exact > back);
    r[i] = (u & 1u) == 0 && inexact ? (above ? u + 1 : u - 1) : u;
  }
  return from_bits(load_u32(r));
}

// Returns products in such a form that, after the caller has rounded them to the type of the result, the effect is that
// of a single rounding.
template <class Values>
inline F32 product(F32 a, float scale) {
  return Values::kBytes == 4 ? mul(a, broadcast(scale)) : mul_to_odd(a, scale);
}
