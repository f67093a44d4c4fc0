// The functions of a kernel table that are built on tile_gemm.h. An operand consists of blocks of 16 tokens,
// [k / 2][token][2] bfloat16, which is what a B tile loads. A group of more than 32 tokens is padded to whole blocks,
// so that all its tiles are alike. Included inside a kernel table's own namespace.

constexpr int64_t kMaxGroupTokens = 256;

inline int64_t padded_k(int64_t k) { return round_up(k, kBlockK); }

inline int64_t padded_tokens(int64_t num_tokens) {
  return num_tokens <= 2 * kTokenTile ? num_tokens : round_up(num_tokens, kTokenTile);
}

inline int64_t operand_bytes(int64_t num_tokens, int64_t k) { return num_tokens * padded_k(k) * 2; }

// A group has as many tokens as keep its operand within three quarters of an L2 cache of 2 MiB.
inline int64_t group_tokens(int64_t max_k) {
  const int64_t fit = (1536 << 10) / (padded_k(max_k) * 2) / kTokenTile * kTokenTile;
  return fit < 64 ? 64 : fit > kMaxGroupTokens ? kMaxGroupTokens : fit;
}

struct Scratch {
  uint16_t* slab;
  float* scales;  // of two panels
  float* sums;
  float* range_sums;
};

constexpr int64_t kSlabBytes = kSlabBlocks * 2 * kTileElements * 2;

inline Scratch carve_scratch(uint8_t* base, int64_t num_tokens, int64_t k) {
  float* scales = reinterpret_cast<float*>(base + kSlabBytes);
  float* sums = scales + 2 * panel_scale_floats(k);
  return {reinterpret_cast<uint16_t*>(base), scales, sums, sums + ceil_div(num_tokens, kTokenTile) * kSumFloats};
}

inline int64_t scratch_bytes(int64_t num_tokens, int64_t k) {
  const int64_t of_block = kSumFloats + range_sum_floats(k) * kTokenTile;
  return kSlabBytes + (2 * panel_scale_floats(k) + ceil_div(num_tokens, kTokenTile) * of_block) * 4;
}

inline TokenBlocks token_blocks(const uint8_t* operand, int64_t num_tokens, int64_t k) {
  const int64_t padded = padded_tokens(num_tokens);
  const int64_t count = ceil_div(padded, kTokenTile);
  return {reinterpret_cast<const uint16_t*>(operand), k, count, padded - (count - 1) * kTokenTile};
}

// Gathers up to sixteen tokens, 512 k at a time: rows of pairs (k, k + 1) become columns.
inline void pack_tokens(const PackTokensArgs& args) {
  constexpr int64_t kChunk = kValuesChunk;
  alignas(64) uint16_t rows[kTokenTile][kChunk];
  uint8_t buffer[kValuesChunk * 4];
  std::memset(rows, 0, sizeof(rows));
  const int64_t width = args.padded_tokens;
  uint32_t* out = reinterpret_cast<uint32_t*>(args.operand);
  for (int64_t k = 0; k < padded_k(args.hidden_size); k += kChunk) {
    const int64_t padded = padded_k(args.hidden_size) - k < kChunk ? padded_k(args.hidden_size) - k : kChunk;
    const int64_t n = args.hidden_size - k < padded ? args.hidden_size - k : padded;
    for (int64_t t = 0; t < args.num_tokens; ++t) {
      row_to_bf16(token_values(args, t, k, n, buffer), args.dtype, n, padded, rows[t]);
    }
    if (width == 1) {
      std::memcpy(out, rows[0], static_cast<size_t>(padded) * 2);
      out += padded / 2;
      continue;
    }
    for (int64_t pair = 0; pair < padded / 2; pair += 16) {
      U32 r[16];
      for (int t = 0; t < 16; ++t) r[t] = load_u32(reinterpret_cast<const uint32_t*>(rows[t]) + pair);
      transpose16(r);
      for (int i = 0; i < 16; ++i, out += width) store_first(out, r[i], width);
    }
  }
}

// What store_pair needs.
struct GateUpEpilogue {
  const GateUpArgs& args;
  const TokenBlocks& blocks;  // those of GEMM 1; the intermediate has the same numbers of tokens
  int64_t pair;
  const float* sums;

  template <class Functor>
  void store_panel(int first) const {
    constexpr int kInputs = Functor::kInputs;
    const ActivationParameters parameters(args.activation);
    const int64_t row = padded_k(args.intermediate_size), begin = (2 * pair + first) / kInputs * kPanelRows;
    const float* bias = args.w13.bias != nullptr ? args.w13.bias + (2 * pair + first) * kPanelRows : nullptr;
    const int64_t rows = args.intermediate_size - begin;
    for (int64_t b = 0; b < blocks.count; ++b) {
      const int64_t width = blocks.tokens(b);
      const int64_t real = args.num_tokens - b * kTokenTile < width ? args.num_tokens - b * kTokenTile : width;
      const F32 weights =
          args.input_weights != nullptr ? load_first(args.input_weights + b * kTokenTile, real) : broadcast(1.0f);
      const float* c = sums + b * kSumFloats + first * (kSumFloats / 2);
      uint32_t* out = reinterpret_cast<uint32_t*>(args.intermediate) + b * kTokenTile * row / 2 + begin / 2 * width;
      // Two rows, rounded and side by side, are one row of the B tile of GEMM 2.
      for (int r = 0; r < kPanelRows; r += 2, out += width) {
        U32 rounded[2];
        for (int i = 0; i < 2; ++i) {
          // Padding is set to 0: computed, it would be NaN where 0 meets an infinite scale or router weight, and GEMM 2
          // would multiply that NaN by 0.
          if (r + i >= rows) {
            rounded[i] = broadcast_u32(0);
            continue;
          }
          F32 x[kInputs];
          for (int p = 0; p < kInputs; ++p) {
            x[p] = load(c + p * (kSumFloats / 2) + (r + i) * kTokenTile);
            if (args.input_weights != nullptr) x[p] = mul(x[p], weights);
            if (bias != nullptr) x[p] = add(x[p], broadcast(bias[p * kPanelRows + r + i]));
          }
          rounded[i] = round_bf16(activate<Functor>(x, parameters));
        }
        store_first(out, bit_or(rounded[0], shift_left<16>(rounded[1])), width);
      }
    }
  }
};

template <class Decoder>
void gate_up(const GateUpArgs& args) {
  const int64_t k = args.w13.k_blocks * kBlockK;
  const Scratch s = carve_scratch(args.scratch, args.num_tokens, k);
  const TokenBlocks blocks = token_blocks(args.operand, args.num_tokens, k);
  sum_ranges(args.w13, blocks, s.range_sums);
  configure_for(blocks);
  for (int64_t pair = args.pair_begin; pair < args.pair_end; ++pair) {
    const PanelPair panels = panel_pair<Decoder>(args.w13, 2 * pair, 2 * pair + 1, s.scales);
    pair_sums<Decoder>(panels, blocks, s.slab, s.sums);
    add_offsets(panels, s.range_sums, blocks.count, s.sums);
    const GateUpEpilogue epilogue{args, blocks, pair, s.sums};
    with_activation(args.activation.kind, epilogue);
  }
  tile_release();
}

// Adds the sums of one panel and one token block to the accumulators; the transpose gives each token its 16 rows.
inline void combine(const AccumulateArgs& args, int64_t panel, int64_t block, const float* sums) {
  const int64_t first = block * kTokenTile;
  const int64_t count = args.num_tokens - first < kTokenTile ? args.num_tokens - first : kTokenTile;
  U32 r[16];
  for (int i = 0; i < 16; ++i) r[i] = bits(load(sums + i * kTokenTile));
  transpose16(r);
  const bool has_bias = args.matrix.bias != nullptr;
  const F32 bias = has_bias ? load(args.matrix.bias + panel * kPanelRows) : broadcast(0.0f);
  for (int64_t t = 0; t < count; ++t) {
    float* sum = args.accumulators + args.tokens[first + t] * args.accumulator_stride + panel * kPanelRows;
    F32 value = from_bits(r[t]);
    if (has_bias) value = add(value, bias);
    if (args.router_weights != nullptr) value = mul(value, broadcast(args.router_weights[first + t]));
    store(sum, add(load(sum), value));
    __builtin_prefetch(sum + 2 * kPanelRows, 1, 2);  // the next pair of panels adds to these
  }
}

template <class Decoder>
void accumulate(const AccumulateArgs& args) {
  const int64_t k = args.matrix.k_blocks * kBlockK;
  const Scratch s = carve_scratch(args.scratch, args.num_tokens, k);
  const TokenBlocks blocks = token_blocks(args.operand, args.num_tokens, k);
  sum_ranges(args.matrix, blocks, s.range_sums);
  configure_for(blocks);
  for (int64_t panel = args.panel_begin; panel < args.panel_end; panel += 2) {
    // A last panel without a partner is computed twice and added once.
    const int64_t second = panel + 1 < args.panel_end ? panel + 1 : panel;
    const PanelPair panels = panel_pair<Decoder>(args.matrix, panel, second, s.scales);
    pair_sums<Decoder>(panels, blocks, s.slab, s.sums);
    add_offsets(panels, s.range_sums, blocks.count, s.sums);
    for (int64_t b = 0; b < blocks.count; ++b) {
      combine(args, panel, b, s.sums + b * kSumFloats);
      if (second != panel) combine(args, second, b, s.sums + b * kSumFloats + kSumFloats / 2);
    }
  }
  tile_release();
}

// Measures the peak of the tile unit: products with operands at rest and four accumulators. Returns the FLOPs done.
inline double peak_flops(int64_t iterations) {
  TileConfig config = {};
  config.palette = 1;
  for (int t = 0; t < 8; ++t) {
    config.rows[t] = 16;
    config.row_bytes[t] = 64;
  }
  tile_configure(config);
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  tile_zero<4>();
  tile_zero<5>();
  tile_zero<6>();
  tile_zero<7>();
  for (int64_t n = 0; n < iterations; ++n) {
    tile_dot<0, 4, 6>();
    tile_dot<1, 5, 6>();
    tile_dot<2, 4, 7>();
    tile_dot<3, 5, 7>();
  }
  tile_release();
  return 4.0 * 2 * 16 * 16 * 32 * static_cast<double>(iterations);
}
