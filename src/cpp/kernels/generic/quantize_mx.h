// The MX formats: blocks of 32 with an E8M0 scale. Every step is exact or rounds as the format demands, so that all
// kernel tables give the same bytes. Included inside the namespace of a kernel table.

// Writes a block that is all zero, or not finite: its codes are zero.
template <class Element>
inline void write_empty_block(const MxArgs& args, int64_t block, uint8_t scale) {
  std::memset(args.codes + block * 2 * kCodeBytes<Element>, 0, 2 * kCodeBytes<Element>);
  args.scales[block] = scale;
}

template <class Element, class Values>
inline void quantize_mx_blocks(const MxArgs& args) {
  const uint32_t addend = static_cast<uint32_t>(scale_addend<Element>(args.scale_rule, 23));
  for (int64_t block = 0; block < args.num_blocks; ++block) {
    const uint8_t* p = args.values + block * kBlockK * Values::kBytes;
    const F32 first = Values::read(p);
    const F32 second = Values::read(p + 16 * Values::kBytes);
    const uint32_t amax = reduce_max_u32(max_u32(magnitude_bits(first), magnitude_bits(second)));
    if (amax == 0 || amax >= kInfinityF32) {
      write_empty_block<Element>(args, block, amax == 0 ? 0 : kE8m0Nan);
      continue;
    }
    const uint32_t scale = scale_byte<Element>(amax + addend);
    const F32 inverse_scale =
        from_bits(broadcast_u32((254u - scale) << 23));  // always a normal number, as scale <= 253
    uint8_t* codes = args.codes + block * 2 * kCodeBytes<Element>;
    store_codes<Element>(codes, element_codes<Element>(mul(first, inverse_scale)));
    store_codes<Element>(codes + kCodeBytes<Element>, element_codes<Element>(mul(second, inverse_scale)));
    args.scales[block] = static_cast<uint8_t>(scale);
  }
}

// float64 has a range of its own and must not be rounded to float32 first.
template <class Element>
inline void quantize_mx_blocks_f64(const MxArgs& args) {
  const uint64_t addend = scale_addend<Element>(args.scale_rule, 52);
  for (int64_t block = 0; block < args.num_blocks; ++block) {
    double values[kBlockK];
    std::memcpy(values, args.values + block * sizeof(values), sizeof(values));
    uint64_t amax = 0;
    for (int i = 0; i < kBlockK; ++i) {
      const uint64_t magnitude = f64_bits(values[i]) & ~(uint64_t{1} << 63);
      amax = magnitude > amax ? magnitude : amax;
    }
    if (amax == 0 || amax >= kInfinityF64) {
      write_empty_block<Element>(args, block, amax == 0 ? 0 : kE8m0Nan);
      continue;
    }
    const uint32_t scale = scale_byte<Element>(amax + addend);
    const double inverse_scale = f64_from_bits(static_cast<uint64_t>(1023 + 127 - scale) << 52);
    uint32_t lanes[kBlockK];
    for (int i = 0; i < kBlockK; ++i) lanes[i] = element_code_signed<Element>(values[i] * inverse_scale);
    uint8_t* codes = args.codes + block * 2 * kCodeBytes<Element>;
    store_codes<Element>(codes, load_u32(lanes));
    store_codes<Element>(codes + kCodeBytes<Element>, load_u32(lanes + 16));
    args.scales[block] = static_cast<uint8_t>(scale);
  }
}

template <class Element>
inline void quantize_mx_element(const MxArgs& args) {
  switch (args.dtype) {
    case DType::kFloat32: return quantize_mx_blocks<Element, Float32Values>(args);
    case DType::kFloat16: return quantize_mx_blocks<Element, Float16Values>(args);
    case DType::kBFloat16: return quantize_mx_blocks<Element, BFloat16Values>(args);
    case DType::kFloat64: return quantize_mx_blocks_f64<Element>(args);
  }
}

inline void quantize_mx(const MxArgs& args) {
  switch (args.element) {
    case MxElement::kE2m1: return quantize_mx_element<E2m1Element>(args);
    case MxElement::kE4m3: return quantize_mx_element<E4m3Element>(args);
    case MxElement::kE5m2: return quantize_mx_element<E5m2Element>(args);
  }
}

// Code times scale is exact in float32 unless it is too large; the smallest product, 2^-143, is subnormal. So a value
// is rounded only once where the result has 16 bits.
template <class Element, class Values>
inline void dequantize_mx_blocks(const MxValuesArgs& args) {
  for (int64_t block = 0; block < args.num_blocks; ++block) {
    const uint8_t* codes = args.codes + block * 2 * kCodeBytes<Element>;
    uint8_t* p = args.values + block * kBlockK * Values::kBytes;
    const F32 scale = broadcast(e8m0_to_f32(args.scales[block]));
    Values::write(p, mul(load_values<Element>(codes), scale));
    Values::write(p + 16 * Values::kBytes, mul(load_values<Element>(codes + kCodeBytes<Element>), scale));
  }
}

// In float64 every value is finite and exact.
template <class Element>
inline void dequantize_mx_blocks_f64(const MxValuesArgs& args) {
  for (int64_t block = 0; block < args.num_blocks; ++block) {
    const uint8_t* codes = args.codes + block * 2 * kCodeBytes<Element>;
    const double scale = e8m0_to_f64(args.scales[block]);
    for (int i = 0; i < kBlockK; ++i) {
      store_f64(args.values + (block * kBlockK + i) * 8, static_cast<double>(value_at<Element>(codes, i)) * scale);
    }
  }
}

template <class Element>
inline void dequantize_mx_element(const MxValuesArgs& args) {
  switch (args.dtype) {
    case DType::kFloat32: return dequantize_mx_blocks<Element, Float32Values>(args);
    case DType::kFloat16: return dequantize_mx_blocks<Element, Float16Values>(args);
    case DType::kBFloat16: return dequantize_mx_blocks<Element, BFloat16Values>(args);
    case DType::kFloat64: return dequantize_mx_blocks_f64<Element>(args);
  }
}

inline void dequantize_mx(const MxValuesArgs& args) {
  switch (args.element) {
    case MxElement::kE2m1: return dequantize_mx_element<E2m1Element>(args);
    case MxElement::kE4m3: return dequantize_mx_element<E4m3Element>(args);
    case MxElement::kE5m2: return dequantize_mx_element<E5m2Element>(args);
  }
}
