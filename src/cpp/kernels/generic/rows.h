// Rows of floats: converted to bfloat16 on entry, added up, and converted to the type of the result on exit.
// Included inside a kernel table's own namespace, after simd.h.

// Rounds `n` values at `p` to bfloat16 at `out`, and writes zeros from there up to `padded`.
inline void row_to_bf16(const uint8_t* p, DType dtype, int64_t n, int64_t padded, uint16_t* out) {
  int64_t k = 0;
  if (dtype == DType::kBFloat16) {
    std::memcpy(out, p, static_cast<size_t>(n) * 2);
    k = n;
  } else if (dtype == DType::kFloat32) {
    for (; k + 16 <= n; k += 16) store_bf16(out + k, load(reinterpret_cast<const float*>(p) + k));
    for (; k < n; ++k) out[k] = f32_to_bf16(reinterpret_cast<const float*>(p)[k]);
  } else {
    for (; k + 16 <= n; k += 16) store_bf16(out + k, load_f16(reinterpret_cast<const uint16_t*>(p) + k));
    for (; k < n; ++k) out[k] = f32_to_bf16(f16_to_f32(reinterpret_cast<const uint16_t*>(p)[k]));
  }
  for (; k < padded; ++k) out[k] = 0;
}

// Values of a token are packed so many at a time.
constexpr int64_t kValuesChunk = 512;

// Returns `n` values of a token of the group, those of the columns of the operand from k on: where they stand, or
// gathered in `buffer`.
inline const uint8_t* token_values(const PackTokensArgs& args, int64_t token, int64_t k, int64_t n,
                                   uint8_t (&buffer)[kValuesChunk * 4]) {
  const uint8_t* row = args.hidden_states + args.tokens[token] * args.row_stride;
  const int64_t bytes = value_bytes(args.dtype);
  if (args.columns == nullptr) return row + k * bytes;
  for (int64_t i = 0; i < n; ++i) {
    std::memcpy(buffer + i * bytes, row + args.columns[k + i] * bytes, static_cast<size_t>(bytes));
  }
  return buffer;
}

// Adds router_weight * (sum + bias) to the accumulators, from the sums [tokens][16] of a panel.
inline void add_panel(const AccumulateArgs& args, int64_t panel, const float* sums) {
  const bool has_bias = args.matrix.bias != nullptr;
  const F32 bias = has_bias ? load(args.matrix.bias + panel * kPanelRows) : broadcast(0.0f);
  for (int64_t t = 0; t < args.num_tokens; ++t) {
    float* sum = args.accumulators + args.tokens[t] * args.accumulator_stride + panel * kPanelRows;
    F32 value = load(sums + t * kPanelRows);
    if (has_bias) value = add(value, bias);
    if (args.router_weights != nullptr) value = mul(value, broadcast(args.router_weights[t]));
    store(sum, add(load(sum), value));
  }
}

inline void store_output(const StoreArgs& args) {
  for (int64_t t = 0; t < args.num_tokens; ++t) {
    const float* from = args.accumulators + t * args.accumulator_stride;
    uint8_t* to = args.out + t * args.out_stride;
    int64_t n = 0;
    if (args.dtype == DType::kFloat32) {
      std::memcpy(to, from, static_cast<size_t>(args.num_columns) * 4);
    } else if (args.dtype == DType::kBFloat16) {
      uint16_t* row = reinterpret_cast<uint16_t*>(to);
      for (; n + 16 <= args.num_columns; n += 16) store_bf16(row + n, load(from + n));
      for (; n < args.num_columns; ++n) row[n] = f32_to_bf16(from[n]);
    } else {
      uint16_t* row = reinterpret_cast<uint16_t*>(to);
      for (; n + 16 <= args.num_columns; n += 16) store_f16(row + n, load(from + n));
      for (; n < args.num_columns; ++n) row[n] = f32_to_f16(from[n]);
    }
  }
}
