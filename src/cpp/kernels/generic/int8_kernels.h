// The kernels on activations of eight bits as a table. An operand consists of rows of QuantizedBlock.
// Included last inside a kernel table's own namespace, after int8_gemm.h and activation.h.

constexpr int64_t kMaxGroupTokens = 128;

inline int64_t num_k_blocks(int64_t k) { return ceil_div(k, kBlockK); }

// A row can stand alone, so nothing is padded.
inline int64_t padded_tokens(int64_t num_tokens) { return num_tokens; }

inline int64_t operand_bytes(int64_t num_tokens, int64_t k) {
  return num_tokens * num_k_blocks(k) * static_cast<int64_t>(sizeof(QuantizedBlock));
}

// A group has as many tokens as keep its operand within three quarters of an L2 cache of 1 MiB, but at least sixteen.
inline int64_t group_tokens(int64_t max_k) {
  const int64_t fit = (768 << 10) / operand_bytes(1, max_k) / kTokenTile * kTokenTile;
  return fit < kTokenTile ? kTokenTile : fit > kMaxGroupTokens ? kMaxGroupTokens : fit;
}

// The parts of the scratch memory of a thread.
struct Int8Scratch {
  PanelMemory panel;
  float* sums[2];
  float* intermediates;  // [tokens][32], a K-block of GEMM 2
  float* range_sums;     // [tokens][ranges], if the matrix has offsets
};

inline int64_t carve_scratch(uint8_t* base, int64_t num_tokens, int64_t k, Int8Scratch* s) {
  int64_t at = 0;
  const auto take = [&](int64_t bytes) {
    uint8_t* p = base == nullptr ? nullptr : base + at;
    at += round_up(bytes, 64);
    return p;
  };
  uint8_t* slab = take(kInt8SlabBlocks * static_cast<int64_t>(sizeof(DecodedBlock)));
  uint8_t* scales = take(scale_buffer_bytes(k));
  uint8_t* gate = take(num_tokens * kPanelRows * 4);
  uint8_t* up = take(num_tokens * kPanelRows * 4);
  uint8_t* intermediates = take(num_tokens * kBlockK * 4);
  uint8_t* range_sums = take(num_tokens * range_sum_floats(k) * 4);
  if (base != nullptr) {
    *s = {{reinterpret_cast<DecodedBlock*>(slab), reinterpret_cast<float*>(scales)},
          {reinterpret_cast<float*>(gate), reinterpret_cast<float*>(up)},
          reinterpret_cast<float*>(intermediates),
          reinterpret_cast<float*>(range_sums)};
  }
  return at;
}

inline int64_t scratch_bytes(int64_t num_tokens, int64_t k) { return carve_scratch(nullptr, num_tokens, k, nullptr); }

inline void pack_tokens(const PackTokensArgs& args) {
  QuantizedBlock* out = reinterpret_cast<QuantizedBlock*>(args.operand);
  uint8_t buffer[kValuesChunk * 4];
  for (int64_t t = 0; t < args.num_tokens; ++t, out += num_k_blocks(args.hidden_size)) {
    for (int64_t k = 0; k < args.hidden_size; k += kValuesChunk) {
      const int64_t left = args.hidden_size - k, n = left < kValuesChunk ? left : kValuesChunk;
      quantize_row(token_values(args, t, k, n, buffer), args.dtype, n, out + k / kBlockK);
    }
  }
}

// The tokens of an operand for a matrix. If that has offsets, they are summed over each of its ranges of K.
inline TokenBlocks token_blocks(const PackedMatrix& m, const uint8_t* operand, int64_t num_tokens, float* range_sums) {
  const TokenBlocks tokens{reinterpret_cast<const QuantizedBlock*>(operand), m.k_blocks, num_tokens, range_sums};
  if (m.offsets != nullptr) sum_ranges(m, tokens, range_sums);
  return tokens;
}

// What store_pair needs.
struct GateUpEpilogue {
  const GateUpArgs& args;
  int64_t pair;
  const Int8Scratch& scratch;

  template <class Functor>
  void store_panel(int first) const {
    constexpr int kInputs = Functor::kInputs;
    const ActivationParameters parameters(args.activation);
    const int64_t begin = (2 * pair + first) / kInputs * kPanelRows, rows = args.intermediate_size - begin;
    const float* bias = args.w13.bias != nullptr ? args.w13.bias + (2 * pair + first) * kPanelRows : nullptr;
    float* out = scratch.intermediates + begin % kBlockK;
    for (int64_t t = 0; t < args.num_tokens; ++t, out += kBlockK) {
      F32 x[kInputs];
      for (int i = 0; i < kInputs; ++i) {
        x[i] = load(scratch.sums[first + i] + t * kPanelRows);
        if (args.input_weights != nullptr) x[i] = mul(x[i], broadcast(args.input_weights[t]));
        if (bias != nullptr) x[i] = add(x[i], load(bias + i * kPanelRows));
      }
      store(out, activate<Functor>(x, parameters));
      // Padding is set to 0: computed, it would be NaN where 0 meets an infinite scale or router weight.
      for (int64_t r = rows < 0 ? 0 : rows; r < kPanelRows; ++r) out[r] = 0;
    }
  }
};

inline void gate_up(const GateUpArgs& args) {
  Int8Scratch s;
  carve_scratch(args.scratch, args.num_tokens, args.w13.k_blocks * kBlockK, &s);
  const TokenBlocks tokens = token_blocks(args.w13, args.operand, args.num_tokens, s.range_sums);
  const int64_t pairs = block_pairs(args.w13, args.intermediate_size);
  QuantizedBlock* out = reinterpret_cast<QuantizedBlock*>(args.intermediate);
  const int64_t out_stride = num_k_blocks(args.intermediate_size);
  for (int64_t pair = args.pair_begin; pair < args.pair_end; ++pair) {
    for (int half = 0; half < 2; ++half) {
      int8_panel_sums(args.w13, 2 * pair + half, tokens, s.panel, s.sums[half]);
    }
    with_activation(args.activation.kind, GateUpEpilogue{args, pair, s});
    if ((pair + 1) % pairs != 0) continue;
    for (int64_t t = 0; t < args.num_tokens; ++t) {
      quantize_block(s.intermediates + t * kBlockK, out + t * out_stride + pair / pairs);
    }
  }
}

inline void accumulate(const AccumulateArgs& args) {
  Int8Scratch s;
  carve_scratch(args.scratch, args.num_tokens, args.matrix.k_blocks * kBlockK, &s);
  const TokenBlocks tokens = token_blocks(args.matrix, args.operand, args.num_tokens, s.range_sums);
  for (int64_t panel = args.panel_begin; panel < args.panel_end; ++panel) {
    int8_panel_sums(args.matrix, panel, tokens, s.panel, s.sums[0]);
    add_panel(args, panel, s.sums[0]);
  }
}

constexpr GemmKernels make_int8_kernels() {
  GemmKernels kernels{};
  kernels.group_tokens = group_tokens;
  kernels.padded_tokens = padded_tokens;
  kernels.operand_bytes = operand_bytes;
  kernels.scratch_bytes = scratch_bytes;
  kernels.scales_halves = true;
  kernels.whole_blocks = true;
  kernels.pack_tokens = pack_tokens;
  for (int i = 0; i < kNumWeightFormats; ++i) {
    const WeightFormat format = static_cast<WeightFormat>(i);
    const bool is_e2m1 = format == WeightFormat::kMxfp4 || format == WeightFormat::kNvfp4;
    if (is_e2m1 || is_integer(format)) kernels.weights[i] = {gate_up, accumulate};
  }
  return kernels;
}
