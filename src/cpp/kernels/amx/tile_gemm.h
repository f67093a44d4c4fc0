// The GEMM on tiles: C^T = W x X^T, weights as the A operand.
//
// TILES        0, 1: C of the first token block (two panels)   2, 3: C of the second   4, 5: A, the two panels
//              6, 7: B, the two token blocks
// A            16 rows x 32 k of decoded weights: one K-block of a panel as it stands, no re-ordering.
// B            16 (or m) tokens, [k / 2][token][2]: the layout of an operand block.
// C            [16 rows][tokens] float32.
// ORDER        K-blocks ascending, for every number of tokens and both paths, so a token's result never depends
//              on its batch; a tile of fewer columns gives the same bits.
//
// Up to two token blocks (32 tokens): one pass over K; weights are decoded into a small ring just ahead of the
// tile loads (a load cannot forward from a store that has not reached L1). More: slabs of K whose decoded weights
// stay in L1, decoded while the first two blocks are computed; C waits in memory between slabs.
// Included inside a kernel table's own namespace, after the tile functions and a decoder of bfloat16 rows.

constexpr int kTileTokens = 16;
constexpr int64_t kTileElements = kPanelRows * kBlockK;       // of a decoded A tile
constexpr int64_t kSumFloats = 2 * kPanelRows * kTileTokens;  // C of one token block: two panels
constexpr int64_t kSlabBlocks = 9;                            // 18 KiB of decoded weights
constexpr int64_t kRingBlocks = 4, kRingAhead = 2;
constexpr int64_t kWeightPrefetch = 4096;

struct PanelPair {
  const uint8_t* weights[2];
  const uint8_t* scales[2];
  int64_t k_blocks;
};

inline PanelPair panel_pair(const MatrixView& m, int64_t first, int64_t second) {
  const int64_t a = first * m.k_blocks, b = second * m.k_blocks;
  return {{m.weights + a * kMxfp4BlockBytes, m.weights + b * kMxfp4BlockBytes},
          {m.scales + a * kScaleBlockBytes, m.scales + b * kScaleBlockBytes},
          m.k_blocks};
}

// Token blocks of a group's operand. All hold 16 tokens but for the last one of a group of at most 32.
struct TokenBlocks {
  const uint16_t* x;
  int64_t k;
  int64_t count;
  int64_t last_tokens;

  int64_t tokens(int64_t block) const { return block + 1 == count ? last_tokens : kTileTokens; }
  const uint16_t* data(int64_t block) const { return x + block * kTileTokens * k; }
};

inline void configure_for(const TokenBlocks& blocks) {
  TileConfig config = {};
  config.palette = 1;
  const int64_t first = 4 * blocks.tokens(0), second = 4 * (blocks.count > 1 ? blocks.tokens(1) : kTileTokens);
  const int64_t row_bytes[8] = {first, first, second, second, 64, 64, first, second};
  for (int t = 0; t < 8; ++t) {
    config.rows[t] = kPanelRows;
    config.row_bytes[t] = static_cast<uint16_t>(row_bytes[t]);
  }
  tile_configure(config);
}

template <class Decoder>
MXFP4MOE_INLINE void decode_tile(const uint8_t* weights, const uint8_t* scales, uint16_t* tile) {
  unroll<4>([&](auto q) MXFP4MOE_INLINE_LAMBDA {
    Decoder::each_vec(weights + 64 * q.value, scales + 4 * q.value, [&](auto i, auto, Vec row) MXFP4MOE_INLINE_LAMBDA {
      store_vec(tile + (4 * q.value + i.value) * kBlockK, row);
    });
  });
}

template <int kBlocks>
MXFP4MOE_INLINE void load_sums(const float* sums, bool first) {
  if (first) {
    tile_zero<0>();
    tile_zero<1>();
    if (kBlocks > 1) tile_zero<2>();
    if (kBlocks > 1) tile_zero<3>();
  } else {
    tile_load<0>(sums, 64);
    tile_load<1>(sums + kSumFloats / 2, 64);
    if (kBlocks > 1) tile_load<2>(sums + kSumFloats, 64);
    if (kBlocks > 1) tile_load<3>(sums + kSumFloats * 3 / 2, 64);
  }
}

template <int kBlocks>
MXFP4MOE_INLINE void store_sums(float* sums) {
  tile_store<0>(sums, 64);
  tile_store<1>(sums + kSumFloats / 2, 64);
  if (kBlocks > 1) tile_store<2>(sums + kSumFloats, 64);
  if (kBlocks > 1) tile_store<3>(sums + kSumFloats * 3 / 2, 64);
}

// K-blocks [begin, end) of one panel pair.
struct SlabRange {
  int64_t begin, end;
};

// Decodes K-blocks of a pair into `buffer`, `ahead` of their use, and multiplies them with the first one or two token
// blocks. A buffer for all K-blocks keeps the decoded slab for the other token blocks.
struct DecodeBuffer {
  uint16_t* tiles;
  int64_t mask;  // of block numbers: a ring of a power of two of blocks, or all
  int64_t ahead;

  uint16_t* at(int64_t block) const { return tiles + (block & mask) * (2 * kTileElements); }
};

template <class Decoder, int kBlocks>
MXFP4MOE_INLINE void decode_and_multiply(const PanelPair& pair, SlabRange range, const DecodeBuffer& buffer,
                                         const TokenBlocks& tokens, float* sums) {
  const int64_t tokens0 = tokens.tokens(0), tokens1 = kBlocks > 1 ? tokens.tokens(1) : kTileTokens;
  const uint16_t* b0 = tokens.data(0) + range.begin * kBlockK * tokens0;
  const uint16_t* b1 = tokens.data(kBlocks > 1) + range.begin * kBlockK * tokens1;
  const int64_t n = range.end - range.begin;
  const uint8_t* w0 = pair.weights[0] + range.begin * kMxfp4BlockBytes;
  const uint8_t* w1 = pair.weights[1] + range.begin * kMxfp4BlockBytes;
  const uint8_t* s0 = pair.scales[0] + range.begin * kScaleBlockBytes;
  const uint8_t* s1 = pair.scales[1] + range.begin * kScaleBlockBytes;
  load_sums<kBlocks>(sums, range.begin == 0);
  for (int64_t i = 0; i < buffer.ahead && i < n; ++i) {
    decode_tile<Decoder>(w0 + i * kMxfp4BlockBytes, s0 + i * kScaleBlockBytes, buffer.at(i));
    decode_tile<Decoder>(w1 + i * kMxfp4BlockBytes, s1 + i * kScaleBlockBytes, buffer.at(i) + kTileElements);
  }
  for (int64_t i = 0; i < n; ++i) {
    const int64_t next = i + buffer.ahead;
    const uint16_t* a = buffer.at(i);
    uint16_t* decoded = buffer.at(next);
    unroll<4>([&](auto line) MXFP4MOE_INLINE_LAMBDA {
      __builtin_prefetch(w0 + next * kMxfp4BlockBytes + kWeightPrefetch + 64 * line.value);
      __builtin_prefetch(w1 + next * kMxfp4BlockBytes + kWeightPrefetch + 64 * line.value);
    });
    // Decoding stands between tile operations, so that both are under way at once.
    tile_load<4>(a, 64);
    tile_load<6>(b0 + i * kBlockK * tokens0, 4 * tokens0);
    tile_dot<0, 4, 6>();
    if (next < n) decode_tile<Decoder>(w0 + next * kMxfp4BlockBytes, s0 + next * kScaleBlockBytes, decoded);
    tile_load<5>(a + kTileElements, 64);
    tile_dot<1, 5, 6>();
    if (kBlocks > 1) {
      tile_load<7>(b1 + i * kBlockK * tokens1, 4 * tokens1);
      tile_dot<2, 4, 7>();
    }
    if (next < n) {
      decode_tile<Decoder>(w1 + next * kMxfp4BlockBytes, s1 + next * kScaleBlockBytes, decoded + kTileElements);
    }
    if (kBlocks > 1) tile_dot<3, 5, 7>();
  }
  store_sums<kBlocks>(sums);
}

// Multiplies a decoded slab with one or two token blocks of 16.
template <int kBlocks>
inline void multiply(const uint16_t* slab, SlabRange range, const TokenBlocks& tokens, int64_t block, float* sums) {
  const uint16_t* b0 = tokens.data(block) + range.begin * kBlockK * kTileTokens;
  const uint16_t* b1 = tokens.data(block + kBlocks - 1) + range.begin * kBlockK * kTileTokens;
  load_sums<kBlocks>(sums, range.begin == 0);
  for (int64_t i = 0; i < range.end - range.begin; ++i) {
    tile_load<4>(slab, 64);
    tile_stream_load<6>(b0, 64);
    tile_dot<0, 4, 6>();
    tile_load<5>(slab + kTileElements, 64);
    tile_dot<1, 5, 6>();
    if (kBlocks > 1) {
      tile_stream_load<7>(b1, 64);
      tile_dot<2, 4, 7>();
      tile_dot<3, 5, 7>();
    }
    slab += 2 * kTileElements;
    b0 += kTileElements;
    b1 += kTileElements;
  }
  store_sums<kBlocks>(sums);
}

// sums[block][panel of the pair][16 rows][16 tokens].
template <class Decoder>
inline void pair_sums(const PanelPair& pair, const TokenBlocks& tokens, uint16_t* slab, float* sums) {
  if (tokens.count == 1) {
    decode_and_multiply<Decoder, 1>(pair, {0, pair.k_blocks}, {slab, kRingBlocks - 1, kRingAhead}, tokens, sums);
  } else if (tokens.count == 2) {
    decode_and_multiply<Decoder, 2>(pair, {0, pair.k_blocks}, {slab, kRingBlocks - 1, kRingAhead}, tokens, sums);
  } else {
    for (int64_t begin = 0; begin < pair.k_blocks; begin += kSlabBlocks) {
      const int64_t end = begin + kSlabBlocks < pair.k_blocks ? begin + kSlabBlocks : pair.k_blocks;
      const SlabRange range{begin, end};
      decode_and_multiply<Decoder, 2>(pair, range, {slab, -1, 1}, tokens, sums);
      int64_t block = 2;
      for (; block + 2 <= tokens.count; block += 2) multiply<2>(slab, range, tokens, block, sums + block * kSumFloats);
      if (block < tokens.count) multiply<1>(slab, range, tokens, block, sums + block * kSumFloats);
    }
  }
}
