// NVFP4: blocks of 16 with an E4M3 scale, and a float32 scale for the tensor. A block fills the sixteen lanes.
// Included inside the namespace of a kernel table.

// Writes the scale of a block and returns its code. Where the scale is zero, or a value is not finite, the codes of the
// block are set to zero and 0 is returned.
template <class Float>
inline uint8_t nvfp4_scale(const Nvfp4Args& args, int64_t block, Float amax, bool finite) {
  const uint32_t code = element_code<E4m3Element>(amax / Float(6) / Float(args.tensor_scale));
  const uint8_t scale = finite ? static_cast<uint8_t>(code) : kE4m3Nan;
  args.scales[block] = scale;
  if (scale == 0 || !finite) std::memset(args.blocks + block * 8, 0, 8);
  return finite ? scale : 0;
}

template <class Values>
inline void quantize_nvfp4_f32(const Nvfp4Args& args) {
  for (int64_t block = 0; block < args.num_blocks; ++block) {
    const F32 values = Values::read(args.values + block * 16 * Values::kBytes);
    const uint32_t amax = reduce_max_u32(magnitude_bits(values));
    const uint8_t scale = nvfp4_scale(args, block, f32_from_bits(amax), amax < kInfinityF32);
    if (scale == 0) continue;
    const F32 divisor = broadcast(kFp8Values<E4m3Element>.values[scale] * args.tensor_scale);
    store_nibbles(args.blocks + block * 8, element_codes<E2m1Element>(div(values, divisor)));
  }
}

inline void quantize_nvfp4_f64(const Nvfp4Args& args) {
  for (int64_t block = 0; block < args.num_blocks; ++block) {
    double values[16];
    std::memcpy(values, args.values + block * sizeof(values), sizeof(values));
    uint64_t amax = 0;
    for (int i = 0; i < 16; ++i) {
      const uint64_t magnitude = f64_bits(values[i]) & ~(uint64_t{1} << 63);
      amax = magnitude > amax ? magnitude : amax;
    }
    const uint8_t scale = nvfp4_scale(args, block, f64_from_bits(amax), amax < kInfinityF64);
    if (scale == 0) continue;
    const double divisor = static_cast<double>(kFp8Values<E4m3Element>.values[scale]) * args.tensor_scale;
    uint32_t codes[16];
    for (int i = 0; i < 16; ++i) codes[i] = element_code_signed<E2m1Element>(values[i] / divisor);
    store_nibbles(args.blocks + block * 8, load_u32(codes));
  }
}

inline void quantize_nvfp4(const Nvfp4Args& args) {
  switch (args.dtype) {
    case DType::kFloat32: return quantize_nvfp4_f32<Float32Values>(args);
    case DType::kFloat16: return quantize_nvfp4_f32<Float16Values>(args);
    case DType::kBFloat16: return quantize_nvfp4_f32<BFloat16Values>(args);
    case DType::kFloat64: return quantize_nvfp4_f64(args);
  }
}

// The product of an element and a block scale is exact in float32.
template <class Values>
inline void dequantize_nvfp4_f32(const Nvfp4ValuesArgs& args) {
  for (int64_t block = 0; block < args.num_blocks; ++block) {
    const F32 scale = broadcast(kFp8Values<E4m3Element>.values[args.scales[block]]);
    const F32 values = mul(load_values<E2m1Element>(args.blocks + block * 8), scale);
    Values::write(args.values + block * 16 * Values::kBytes, product<Values>(values, args.tensor_scale));
  }
}

inline void dequantize_nvfp4_f64(const Nvfp4ValuesArgs& args) {
  for (int64_t block = 0; block < args.num_blocks; ++block) {
    const double scale = static_cast<double>(kFp8Values<E4m3Element>.values[args.scales[block]]) * args.tensor_scale;
    for (int i = 0; i < 16; ++i) {
      const double value = static_cast<double>(value_at<E2m1Element>(args.blocks + block * 8, i)) * scale;
      store_f64(args.values + (block * 16 + i) * 8, value);
    }
  }
}

inline void dequantize_nvfp4(const Nvfp4ValuesArgs& args) {
  switch (args.dtype) {
    case DType::kFloat32: return dequantize_nvfp4_f32<Float32Values>(args);
    case DType::kFloat16: return dequantize_nvfp4_f32<Float16Values>(args);
    case DType::kBFloat16: return dequantize_nvfp4_f32<BFloat16Values>(args);
    case DType::kFloat64: return dequantize_nvfp4_f64(args);
  }
}
