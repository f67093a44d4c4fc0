// The functions of a kernel table that are built on dot_gemm.h. An operand consists of rows of bfloat16 in their
// natural order. Included inside a kernel table's own namespace, after dot_gemm.h, activation.h and rows.h.

constexpr int64_t kMaxGroupTokens = 128;

inline int64_t padded_k(int64_t k) { return round_up(k, kBlockK); }

// A row can stand alone, so nothing is padded.
inline int64_t padded_tokens(int64_t num_tokens) { return num_tokens; }

inline int64_t operand_bytes(int64_t num_tokens, int64_t k) { return num_tokens * padded_k(k) * 2; }

// A group has as many tokens as keep its operand within three quarters of an L2 cache of 1 MiB, but at least sixteen if
// their copies as Elements stay within 3 MiB.
inline int64_t group_tokens(int64_t max_k) {
  const int64_t row = padded_k(max_k) * static_cast<int64_t>(sizeof(Element));
  const int64_t fit = (768 << 10) / row / kTokenTile * kTokenTile, limit = (3 << 20) / row;
  if (limit < kTokenTile) return limit < 1 ? 1 : limit;
  return fit < kTokenTile ? kTokenTile : fit > kMaxGroupTokens ? kMaxGroupTokens : fit;
}

// The parts of the scratch memory of a thread.
struct Scratch {
  Element* tokens;
  Element* slab;
  float* lanes;
  float* scales;
  float* sums[2];
  float* range_sums;  // [tokens][ranges], if the matrix has offsets
};

constexpr bool kWidens = sizeof(Element) != 2;

// The size grows with both arguments, so that what scratch_bytes() returns for the largest group and k suffices for
// every call.
inline int64_t carve_scratch(uint8_t* base, int64_t num_tokens, int64_t k, Scratch* s) {
  int64_t at = 0;
  const auto take = [&](int64_t bytes) {
    uint8_t* p = base == nullptr ? nullptr : base + at;
    at += round_up(bytes, 64);
    return p;
  };
  uint8_t* tokens = take(kWidens ? num_tokens * padded_k(k) * static_cast<int64_t>(sizeof(Element)) : 0);
  uint8_t* slab = take(kSlabBytes);
  uint8_t* lanes = take((num_tokens < kDirectTokens ? kDirectTokens : num_tokens) * kPanelRows * kLanes * 4);
  uint8_t* scales = take(scale_buffer_bytes(k));
  uint8_t* gate = take(num_tokens * kPanelRows * 4);
  uint8_t* up = take(num_tokens * kPanelRows * 4);
  uint8_t* range_sums = take(num_tokens * range_sum_floats(k) * 4);
  if (base != nullptr) {
    *s = {reinterpret_cast<Element*>(tokens),
          reinterpret_cast<Element*>(slab),
          reinterpret_cast<float*>(lanes),
          reinterpret_cast<float*>(scales),
          {reinterpret_cast<float*>(gate), reinterpret_cast<float*>(up)},
          reinterpret_cast<float*>(range_sums)};
  }
  return at;
}

inline int64_t scratch_bytes(int64_t num_tokens, int64_t k) { return carve_scratch(nullptr, num_tokens, k, nullptr); }

inline void pack_tokens(const PackTokensArgs& args) {
  const int64_t row = padded_k(args.hidden_size);
  uint16_t* out = reinterpret_cast<uint16_t*>(args.operand);
  uint8_t buffer[kValuesChunk * 4];
  for (int64_t t = 0; t < args.num_tokens; ++t) {
    for (int64_t k = 0; k < row; k += kValuesChunk) {
      const int64_t padded = row - k < kValuesChunk ? row - k : kValuesChunk;
      const int64_t n = args.hidden_size - k < padded ? args.hidden_size - k : padded;
      row_to_bf16(token_values(args, t, k, n, buffer), args.dtype, n, padded, out + t * row + k);
    }
  }
}

// Returns the operand as the GEMM reads it: itself, or a copy that is widened once for all panels of the call.
inline TokenRows widen_operand(const uint8_t* operand, int64_t num_tokens, int64_t k, Element* widened) {
  if (!kWidens) return {reinterpret_cast<const Element*>(operand), k, num_tokens};
  const uint16_t* from = reinterpret_cast<const uint16_t*>(operand);
  for (int64_t i = 0; i < num_tokens * k; i += kBlockK) widen_block(from + i, widened + i);
  return {widened, k, num_tokens};
}

// Sums the tokens of an operand over each range of K, if the matrix has offsets.
inline void sum_ranges(const PackedMatrix& m, const uint8_t* operand, int64_t num_tokens, float* sums) {
  if (m.offsets == nullptr) return;
  const int64_t k = m.k_blocks * kBlockK, columns = range_columns(m.range_blocks);
  for (int64_t t = 0; t < num_tokens; ++t) {
    const uint16_t* x = reinterpret_cast<const uint16_t*>(operand) + t * k;
    for (int64_t range = 0; range < m.num_ranges; ++range) {
      const int64_t begin = range * columns, end = begin + columns < k ? begin + columns : k;
      F32 sum = load_bf16(x + begin);
      for (int64_t i = begin + 16; i < end; i += 16) sum = add(sum, load_bf16(x + i));
      float lanes[16];
      store(lanes, sum);
      for (int width = 8; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
      }
      sums[t * m.num_ranges + range] = lanes[0];
    }
  }
}

inline void add_offsets(const PanelView& panel, const float* range_sums, int64_t num_tokens, float* sums) {
  if (panel.offsets == nullptr) return;
  const auto offset_of = [&](int64_t range) {
    return panel.scale_rows == 1 ? broadcast(panel.offsets[range]) : load(panel.offsets + range * kPanelRows);
  };
  for (int64_t t = 0; t < num_tokens; ++t) {
    const float* x = range_sums + t * panel.num_ranges;
    const auto sum_of = [&](int64_t range) { return broadcast(x[range]); };
    float* sum = sums + t * kPanelRows;
    store(sum, add(load(sum), sum_of_offsets(panel.num_ranges, offset_of, sum_of)));
  }
}

// What store_pair needs.
struct GateUpEpilogue {
  const GateUpArgs& args;
  int64_t pair;
  const float* const* sums;  // of both panels

  template <class Functor>
  void store_panel(int first) const {
    constexpr int kInputs = Functor::kInputs;
    const ActivationParameters parameters(args.activation);
    const int64_t row = padded_k(args.intermediate_size), begin = (2 * pair + first) / kInputs * kPanelRows;
    uint16_t* out = reinterpret_cast<uint16_t*>(args.intermediate) + begin;
    const float* bias = args.w13.bias != nullptr ? args.w13.bias + (2 * pair + first) * kPanelRows : nullptr;
    const float* weights = args.input_weights;
    const float* inputs[kInputs];
    for (int i = 0; i < kInputs; ++i) inputs[i] = sums[first + i];
    const int64_t rows = args.intermediate_size - begin, num_tokens = args.num_tokens;
    for (int64_t t = 0; t < num_tokens; ++t) {
      F32 x[kInputs];
      for (int i = 0; i < kInputs; ++i) {
        x[i] = load(inputs[i] + t * kPanelRows);
        if (weights != nullptr) x[i] = mul(x[i], broadcast(weights[t]));
        if (bias != nullptr) x[i] = add(x[i], load(bias + i * kPanelRows));
      }
      store_bf16(out + t * row, activate<Functor>(x, parameters));
      // Padding is set to 0: computed, it would be NaN where 0 meets an infinite scale or router weight, and GEMM 2
      // would multiply that NaN by 0.
      for (int64_t r = rows < 0 ? 0 : rows; r < kPanelRows; ++r) out[t * row + r] = 0;
    }
  }
};

template <class Decoder>
void gate_up(const GateUpArgs& args) {
  Scratch s;
  const int64_t k = args.w13.k_blocks * kBlockK;
  carve_scratch(args.scratch, args.num_tokens, k, &s);
  const TokenRows tokens = widen_operand(args.operand, args.num_tokens, k, s.tokens);
  sum_ranges(args.w13, args.operand, args.num_tokens, s.range_sums);
  for (int64_t pair = args.pair_begin; pair < args.pair_end; ++pair) {
    for (int half = 0; half < 2; ++half) {
      const PanelView panel = panel_of<Decoder>(args.w13, 2 * pair + half, s.scales);
      panel_sums<Decoder>(panel, tokens, s.slab, s.lanes, s.sums[half]);
      add_offsets(panel, s.range_sums, args.num_tokens, s.sums[half]);
    }
    const GateUpEpilogue epilogue{args, pair, s.sums};
    with_activation(args.activation.kind, epilogue);
  }
}

template <class Decoder>
void accumulate(const AccumulateArgs& args) {
  Scratch s;
  const int64_t k = args.matrix.k_blocks * kBlockK;
  carve_scratch(args.scratch, args.num_tokens, k, &s);
  const TokenRows tokens = widen_operand(args.operand, args.num_tokens, k, s.tokens);
  sum_ranges(args.matrix, args.operand, args.num_tokens, s.range_sums);
  for (int64_t panel = args.panel_begin; panel < args.panel_end; ++panel) {
    const PanelView view = panel_of<Decoder>(args.matrix, panel, s.scales);
    panel_sums<Decoder>(view, tokens, s.slab, s.lanes, s.sums[0]);
    add_offsets(view, s.range_sums, args.num_tokens, s.sums[0]);
    add_panel(args, panel, s.sums[0]);
  }
}
