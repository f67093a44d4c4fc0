// FP8 with a float32 scale for each scale block, a rectangle of values. This header is included inside the namespace of
// a kernel table.

// Returns the largest magnitude of a scale block. It is infinity or NaN if the block holds one; with `finite_only`
// those count as zero.
template <class Values>
inline double scale_block_amax_f32(const ScaleBlockArgs& args, bool finite_only) {
  const F32 limit = from_bits(broadcast_u32(finite_only ? kInfinityF32 : 0x7fffffffu));
  const int64_t whole = args.columns / 16 * 16;
  U32 largest = broadcast_u32(0);
  const auto include = [&](F32 v) {
    const F32 a = from_bits(magnitude_bits(v));
    // Infinity and NaN are not less than the limit, so the selection makes them zero.
    largest = max_u32(largest, finite_only ? bits(select_less(a, limit, a, broadcast(0.0f))) : bits(a));
  };
  for (int64_t row = 0; row < args.rows; ++row) {
    const uint8_t* p = args.values + row * args.stride * Values::kBytes;
    for (int64_t k = 0; k < whole; k += 16) include(Values::read(p + k * Values::kBytes));
    if (whole < args.columns) include(read_first<Values>(p + whole * Values::kBytes, args.columns - whole));
  }
  return f32_from_bits(reduce_max_u32(largest));
}

inline double scale_block_amax_f64(const ScaleBlockArgs& args, bool finite_only) {
  uint64_t largest = 0;
  for (int64_t row = 0; row < args.rows; ++row) {
    for (int64_t k = 0; k < args.columns; ++k) {
      const double v = load_f64(args.values + (row * args.stride + k) * 8);
      const uint64_t magnitude = f64_bits(v) & ~(uint64_t{1} << 63);
      if (magnitude > largest && !(finite_only && magnitude >= kInfinityF64)) largest = magnitude;
    }
  }
  return f64_from_bits(largest);
}

inline double scale_block_amax(const ScaleBlockArgs& args, bool finite_only) {
  switch (args.dtype) {
    case DType::kFloat32: return scale_block_amax_f32<Float32Values>(args, finite_only);
    case DType::kFloat16: return scale_block_amax_f32<Float16Values>(args, finite_only);
    case DType::kBFloat16: return scale_block_amax_f32<BFloat16Values>(args, finite_only);
    case DType::kFloat64: return scale_block_amax_f64(args, finite_only);
  }
  return 0.0;
}

template <class Values>
inline void quantize_scale_block_f32(const ScaleBlockArgs& args, float scale, uint8_t* codes) {
  const F32 divisor = broadcast(scale);
  const int64_t whole = args.columns / 16 * 16;
  for (int64_t row = 0; row < args.rows; ++row) {
    const uint8_t* p = args.values + row * args.stride * Values::kBytes;
    uint8_t* to = codes + row * args.stride;
    for (int64_t k = 0; k < whole; k += 16) {
      store_bytes(to + k, element_codes<E4m3Element>(div(Values::read(p + k * Values::kBytes), divisor)));
    }
    if (whole < args.columns) {
      uint8_t last[16];
      const F32 v = read_first<Values>(p + whole * Values::kBytes, args.columns - whole);
      store_bytes(last, element_codes<E4m3Element>(div(v, divisor)));
      std::memcpy(to + whole, last, static_cast<size_t>(args.columns - whole));
    }
  }
}

inline void quantize_scale_block_f64(const ScaleBlockArgs& args, float scale, uint8_t* codes) {
  for (int64_t row = 0; row < args.rows; ++row) {
    for (int64_t k = row * args.stride; k < row * args.stride + args.columns; ++k) {
      codes[k] = static_cast<uint8_t>(element_code_signed<E4m3Element>(load_f64(args.values + k * 8) / scale));
    }
  }
}

inline void quantize_scale_block(const ScaleBlockArgs& args, float scale, uint8_t* codes) {
  switch (args.dtype) {
    case DType::kFloat32: return quantize_scale_block_f32<Float32Values>(args, scale, codes);
    case DType::kFloat16: return quantize_scale_block_f32<Float16Values>(args, scale, codes);
    case DType::kBFloat16: return quantize_scale_block_f32<BFloat16Values>(args, scale, codes);
    case DType::kFloat64: return quantize_scale_block_f64(args, scale, codes);
  }
}

template <class Values>
inline void dequantize_scale_block_f32(const ScaleBlockValuesArgs& args) {
  const int64_t whole = args.columns / 16 * 16;
  for (int64_t row = 0; row < args.rows; ++row) {
    const uint8_t* codes = args.codes + row * args.stride;
    uint8_t* p = args.values + row * args.stride * Values::kBytes;
    for (int64_t k = 0; k < whole; k += 16) {
      Values::write(p + k * Values::kBytes, product<Values>(load_values<E4m3Element>(codes + k), args.scale));
    }
    if (whole < args.columns) {
      const size_t n = static_cast<size_t>(args.columns - whole);
      uint8_t last_codes[16] = {};
      alignas(64) uint8_t last[16 * Values::kBytes];
      std::memcpy(last_codes, codes + whole, n);
      Values::write(last, product<Values>(load_values<E4m3Element>(last_codes), args.scale));
      std::memcpy(p + whole * Values::kBytes, last, n * Values::kBytes);
    }
  }
}

inline void dequantize_scale_block_f64(const ScaleBlockValuesArgs& args) {
  for (int64_t row = 0; row < args.rows; ++row) {
    for (int64_t k = row * args.stride; k < row * args.stride + args.columns; ++k) {
      store_f64(args.values + k * 8, static_cast<double>(value_at<E4m3Element>(args.codes, k)) * args.scale);
    }
  }
}

inline void dequantize_scale_block(const ScaleBlockValuesArgs& args) {
  switch (args.dtype) {
    case DType::kFloat32: return dequantize_scale_block_f32<Float32Values>(args);
    case DType::kFloat16: return dequantize_scale_block_f32<Float16Values>(args);
    case DType::kBFloat16: return dequantize_scale_block_f32<BFloat16Values>(args);
    case DType::kFloat64: return dequantize_scale_block_f64(args);
  }
}
