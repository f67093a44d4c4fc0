// MXFP4 quantization, written once over the SIMD vocabulary. Included inside the namespace of a kernel table,
// after its simd.h. Every step is exact or rounds as the format demands, so all tables give the same bytes.

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

// A block that is all zero, or not finite: no codes.
inline void write_empty_block(const QuantizeArgs& args, int64_t block, uint8_t scale) {
  std::memset(args.blocks + block * 16, 0, 16);
  args.scales[block] = scale;
}

// The codes of `values` / 2^e in the low nibbles. See formats/e2m1.h for the rounding.
inline U32 e2m1_codes(F32 values, F32 inverse_scale) {
  const U32 sign = bit_and(bits(values), broadcast_u32(0x80000000u));
  const F32 v = mul(from_bits(bit_xor(bits(values), sign)), inverse_scale);
  const F32 to_2 = mul_add(v, broadcast(2.0f), broadcast(kE2m1RoundF32));
  const F32 to_4 = add(v, broadcast(kE2m1RoundF32 + 2.0f));
  const F32 to_6 = mul_add(v, broadcast(0.5f), broadcast(kE2m1RoundF32 + 4.0f));
  const F32 index = min(min(to_2, to_4), min(to_6, broadcast(kE2m1RoundF32 + 7.0f)));
  return bit_or(bits(index), shift_right<28>(sign));
}

template <class Values>
inline void quantize_blocks(const QuantizeArgs& args) {
  const uint32_t addend = static_cast<uint32_t>(e2m1_scale_addend(args.scale_rule, 23));
  const U32 magnitude = broadcast_u32(0x7fffffffu);
  for (int64_t block = 0; block < args.num_blocks; ++block) {
    const uint8_t* p = args.values + block * kBlockK * Values::kBytes;
    const F32 first = Values::read(p);
    const F32 second = Values::read(p + 16 * Values::kBytes);
    // The bits of non-negative floats are ordered as the floats are; infinity and NaN come last.
    const uint32_t amax = reduce_max_u32(max_u32(bit_and(bits(first), magnitude), bit_and(bits(second), magnitude)));
    if (amax == 0 || amax >= 0x7f800000u) {
      write_empty_block(args, block, amax == 0 ? 0 : kE8m0Nan);
      continue;
    }
    const uint32_t scale = e2m1_scale_f32(amax + addend);
    const F32 inverse_scale = from_bits(broadcast_u32((254u - scale) << 23));  // scale <= 253: always normal
    store_nibbles(args.blocks + block * 16, e2m1_codes(first, inverse_scale));
    store_nibbles(args.blocks + block * 16 + 8, e2m1_codes(second, inverse_scale));
    args.scales[block] = static_cast<uint8_t>(scale);
  }
}

// float64 has a range of its own and must not be rounded to float32 first.
inline void quantize_blocks_f64(const QuantizeArgs& args) {
  const uint64_t addend = e2m1_scale_addend(args.scale_rule, 52);
  for (int64_t block = 0; block < args.num_blocks; ++block) {
    double magnitudes[kBlockK];
    uint64_t signs[kBlockK];
    uint64_t amax = 0;
    for (int i = 0; i < kBlockK; ++i) {
      uint64_t u;
      std::memcpy(&u, args.values + (block * kBlockK + i) * 8, 8);
      const uint64_t magnitude = u & 0x7fffffffffffffffu;
      magnitudes[i] = f64_from_bits(magnitude);
      signs[i] = u >> 63;
      amax = magnitude > amax ? magnitude : amax;
    }
    if (amax == 0 || amax >= 0x7ff0000000000000u) {
      write_empty_block(args, block, amax == 0 ? 0 : kE8m0Nan);
      continue;
    }
    const uint32_t scale = e2m1_scale_f64(amax + addend);
    const double inverse_scale = f64_from_bits(static_cast<uint64_t>(1023 + 127 - scale) << 52);
    uint32_t codes[kBlockK];
    for (int i = 0; i < kBlockK; ++i) {
      const double v = magnitudes[i] * inverse_scale;
      const double to_2 = v * 2.0 + kE2m1RoundF64;
      const double to_4 = v + (kE2m1RoundF64 + 2.0);
      const double to_6 = v * 0.5 + (kE2m1RoundF64 + 4.0);
      const double to_4_or_2 = to_2 < to_4 ? to_2 : to_4;
      const double to_6_or_7 = to_6 < kE2m1RoundF64 + 7.0 ? to_6 : kE2m1RoundF64 + 7.0;
      const double index = to_4_or_2 < to_6_or_7 ? to_4_or_2 : to_6_or_7;
      codes[i] = static_cast<uint32_t>(f64_bits(index) | signs[i] << 3);
    }
    store_nibbles(args.blocks + block * 16, load_u32(codes));
    store_nibbles(args.blocks + block * 16 + 8, load_u32(codes + 16));
    args.scales[block] = static_cast<uint8_t>(scale);
  }
}

inline void quantize_mxfp4(const QuantizeArgs& args) {
  switch (args.dtype) {
    case DType::kFloat32: return quantize_blocks<Float32Values>(args);
    case DType::kFloat16: return quantize_blocks<Float16Values>(args);
    case DType::kBFloat16: return quantize_blocks<BFloat16Values>(args);
    case DType::kFloat64: return quantize_blocks_f64(args);
  }
}

// Code times scale is exact in float32 (2^-128 is a subnormal) unless it overflows; so is the one rounding to 16 bits.
template <class Values>
inline void dequantize_blocks(const DequantizeArgs& args) {
  for (int64_t block = 0; block < args.num_blocks; ++block) {
    const uint8_t* codes = args.blocks + block * 16;
    uint8_t* p = args.values + block * kBlockK * Values::kBytes;
    const F32 scale = broadcast(e8m0_to_f32(args.scales[block]));
    Values::write(p, mul(lookup(kE2m1Values, load_nibbles(codes)), scale));
    Values::write(p + 16 * Values::kBytes, mul(lookup(kE2m1Values, load_nibbles(codes + 8)), scale));
  }
}

// In float64 nothing overflows.
inline void dequantize_blocks_f64(const DequantizeArgs& args) {
  for (int64_t block = 0; block < args.num_blocks; ++block) {
    const double scale = e8m0_to_f64(args.scales[block]);
    double values[kBlockK];
    for (int i = 0; i < kBlockK; ++i) {
      values[i] = static_cast<double>(e2m1_to_f32(args.blocks[block * 16 + i / 2] >> (i % 2 * 4))) * scale;
    }
    std::memcpy(args.values + block * kBlockK * 8, values, sizeof(values));
  }
}

inline void dequantize_mxfp4(const DequantizeArgs& args) {
  switch (args.dtype) {
    case DType::kFloat32: return dequantize_blocks<Float32Values>(args);
    case DType::kFloat16: return dequantize_blocks<Float16Values>(args);
    case DType::kBFloat16: return dequantize_blocks<BFloat16Values>(args);
    case DType::kFloat64: return dequantize_blocks_f64(args);
  }
}

constexpr QuantizeKernels kQuantizeKernels = {quantize_mxfp4, dequantize_mxfp4};
