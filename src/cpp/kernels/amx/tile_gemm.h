// The GEMM on tiles: C^T = W x X^T, with the weights as the A operand.
//
// TILES        0, 1: C of the first token block (two panels)   2, 3: C of the second   4, 5: A, the two panels
//              6, 7: B, the two token blocks
// A            16 rows x 32 k of decoded weights: one K-block of a panel as it stands, without re-ordering.
// B            16 (or m) tokens, [k / 2][token][2]: the layout of an operand block.
// C            [16 rows][tokens] float32.
// ORDER        K-blocks are added in ascending order, for every number of tokens and on both paths below, so that the
//              result of a token never depends on its batch; a tile of fewer columns gives the same bits.
//
// One K-block of decode_and_multiply, with two token blocks. The tile unit and the vector unit work at the same time:
// while K-block i is multiplied, the vector unit decodes K-block i + ahead and prefetches weights further on.
//
//   in program order    tile unit                            vector unit
//   load 4, load 6      A of panel 0, B of tokens 0          prefetch the weights 4 KiB further on
//   dot 0 += 4 x 6      panel 0 by tokens 0, 16 cycles       .
//   decode panel 0                                           . decode panel 0 of K-block i + ahead
//   load 5              A of panel 1                         .
//   dot 1 += 5 x 6      panel 1 by tokens 0, 16 cycles       .
//   load 7              B of tokens 1                        .
//   dot 2 += 4 x 7      panel 0 by tokens 1, 16 cycles       .
//   decode panel 1                                           : decode panel 1 of K-block i + ahead
//   dot 3 += 5 x 7      panel 1 by tokens 1, 16 cycles       :
//
// The four products depend on no other product of this K-block, so that the tile unit always has one to begin with.
// What is decoded is used `ahead` K-blocks later, because a tile load cannot take its data from a store that has not
// yet reached L1.
//
// Up to two token blocks (32 tokens) need one pass over K; weights are decoded into a small ring just ahead of the tile
// loads. For more tokens K is cut in slabs whose decoded weights stay in L1: they are decoded while the first two
// blocks are computed, and C waits in memory between slabs. Weights in bfloat16 are tiles as they stand.
//
// Where float32 scales change along K, K is cut in segments, each of which lies in a range of K with one scale. The C
// of a segment starts from zero, and is added to the sums after multiplication by the scale. Slabs hold whole segments.
//
// Included inside a kernel table's own namespace, after the tile functions and weight_formats.h.

constexpr int64_t kTileElements = kPanelRows * kBlockK;      // one decoded A tile
constexpr int64_t kSumFloats = 2 * kPanelRows * kTokenTile;  // the C of one token block: two panels
constexpr int64_t kSlabBlocks = 9;                           // 18 KiB of decoded weights
constexpr int64_t kRingBlocks = 4, kRingAhead = 2;
constexpr int64_t kWeightPrefetch = 4096;

struct PanelPair {
  const uint8_t* weights[2];
  const uint8_t* scales[2];
  int64_t k_blocks;
  const float* sum_scales[2];  // [ranges][scale_rows], or null
  const float* offsets[2];     // as the scales, or null
  int64_t num_ranges;
  int64_t range_blocks;
  int64_t scale_rows;
};

template <class Decoder>
inline PanelPair panel_pair(const PackedMatrix& m, int64_t first, int64_t second, float* scale_buffer) {
  PanelPair pair;
  for (int i = 0; i < 2; ++i) {
    const int64_t panel = i == 0 ? first : second;
    pair.weights[i] = m.weights + panel * m.k_blocks * kWeightBytes<Decoder>;
    float* buffer = scale_buffer + i * panel_scale_floats(m.k_blocks * kBlockK);
    const PanelScales scales = scales_of_panel<Decoder>(m, panel, buffer);
    pair.scales[i] = scales.block_scales;
    pair.sum_scales[i] = scales.sum_scales;
    pair.offsets[i] = scales.offsets;
  }
  pair.k_blocks = m.k_blocks;
  pair.num_ranges = m.num_ranges;
  pair.range_blocks = m.range_blocks;
  pair.scale_rows = m.scale_rows;
  return pair;
}

// The token blocks of the operand of a group. Each holds 16 tokens, except that the last one of a group of at most 32
// tokens may hold fewer.
struct TokenBlocks {
  const uint16_t* x;
  int64_t k;
  int64_t count;
  int64_t last_tokens;

  int64_t tokens(int64_t block) const { return block + 1 == count ? last_tokens : kTokenTile; }
  const uint16_t* data(int64_t block) const { return x + block * kTokenTile * k; }
};

inline void configure_for(const TokenBlocks& blocks) {
  TileConfig config = {};
  config.palette = 1;
  const int64_t first = 4 * blocks.tokens(0), second = 4 * (blocks.count > 1 ? blocks.tokens(1) : kTokenTile);
  const int64_t row_bytes[8] = {first, first, second, second, 64, 64, first, second};
  for (int t = 0; t < 8; ++t) {
    config.rows[t] = kPanelRows;
    config.row_bytes[t] = static_cast<uint16_t>(row_bytes[t]);
  }
  tile_configure(config);
}

using PairSegments = Segments<PanelPair>;

template <int kBlocks>
MXFP4MOE_INLINE void load_tiles(const float* sums, bool zero) {
  if (zero) {
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
MXFP4MOE_INLINE void store_tiles(float* sums) {
  tile_store<0>(sums, 64);
  tile_store<1>(sums + kSumFloats / 2, 64);
  if (kBlocks > 1) tile_store<2>(sums + kSumFloats, 64);
  if (kBlocks > 1) tile_store<3>(sums + kSumFloats * 3 / 2, 64);
}

template <class Decoder, int kBlocks>
MXFP4MOE_INLINE void begin_segment(int64_t begin, const float* sums) {
  load_tiles<kBlocks>(sums, kIsSegmented<Decoder> || begin == 0);
}

// Where K is not cut in segments, C itself waits in `sums`; otherwise C times the scale is added to them.
template <class Decoder, int kBlocks>
MXFP4MOE_INLINE void end_segment(const PairSegments& segments, int64_t begin, float* sums) {
  if constexpr (!kIsSegmented<Decoder>) {
    store_tiles<kBlocks>(sums);
  } else {
    alignas(64) float c[kBlocks * kSumFloats];
    store_tiles<kBlocks>(c);
    for (int panel = 0; panel < 2; ++panel) {
      for (int row = 0; row < kPanelRows; ++row) {
        const F32 scale = broadcast(segments.panels().sum_scales[panel][segments.scale_of(row)]);
        for (int b = 0; b < kBlocks; ++b) {
          const int64_t at = b * kSumFloats + panel * (kSumFloats / 2) + row * kTokenTile;
          const F32 sum = begin == 0 ? broadcast(0.0f) : load(sums + at);
          store(sums + at, mul_add(load(c + at), scale, sum));
        }
      }
    }
  }
}

// Where decoded K-blocks of a pair stand: a slab for all of a range, or a ring. Each K-block is the tiles of both
// panels.
struct DecodeBuffer {
  uint16_t* tiles;
  int64_t mask;   // takes a block number to its place: a ring has a power of two of places, a slab has one for each
  int64_t ahead;  // a K-block is decoded so many K-blocks before it is used

  uint16_t* at(int64_t block) const { return tiles + (block & mask) * (2 * kTileElements); }
};

// Tells whether packed weights are A tiles as they stand.
template <class Decoder>
constexpr bool kIsTile = Decoder::kFormat == WeightFormat::kBf16;

template <class Decoder>
MXFP4MOE_INLINE void decode_tile(const uint8_t* weights, const uint8_t* scales, uint16_t* tile) {
  if constexpr (!kIsTile<Decoder>) {
    constexpr int kQuadBytes = kWeightBytes<Decoder> / 4, kQuadScales = kScaleBytes<Decoder> / 4;
    unroll<4>([&](auto q) MXFP4MOE_INLINE_LAMBDA {
      Decoder::each_vec(weights + kQuadBytes * q.value, scales + kQuadScales * q.value,
                        [&](auto i, auto, const Vec& row)
                            MXFP4MOE_INLINE_LAMBDA { store_vec(tile + (4 * q.value + i.value) * kBlockK, row); });
    });
  }
}

// Decodes K-blocks of a pair into `buffer` and multiplies them with the first one or two token blocks; the head of this
// file shows one round of the loop. If the buffer is a slab, the decoded weights stay for the other token blocks.
template <class Decoder, int kBlocks>
MXFP4MOE_INLINE void decode_and_multiply(const PanelPair& pair, BlockRange range, const DecodeBuffer& buffer,
                                         const TokenBlocks& tokens, PairSegments segments, float* sums) {
  constexpr int kBytes = kWeightBytes<Decoder>, kScales = kScaleBytes<Decoder>;
  const int64_t tokens0 = tokens.tokens(0), tokens1 = kBlocks > 1 ? tokens.tokens(1) : kTokenTile;
  const uint16_t* b0 = tokens.data(0) + range.begin * kBlockK * tokens0;
  const uint16_t* b1 = tokens.data(kBlocks > 1) + range.begin * kBlockK * tokens1;
  const int64_t n = range.end - range.begin;
  const uint8_t* w0 = pair.weights[0] + range.begin * kBytes;
  const uint8_t* w1 = pair.weights[1] + range.begin * kBytes;
  const uint8_t* s0 = pair.scales[0] + range.begin * kScales;
  const uint8_t* s1 = pair.scales[1] + range.begin * kScales;
  for (int64_t i = 0; i < buffer.ahead && i < n; ++i) {
    decode_tile<Decoder>(w0 + i * kBytes, s0 + i * kScales, buffer.at(i));
    decode_tile<Decoder>(w1 + i * kBytes, s1 + i * kScales, buffer.at(i) + kTileElements);
  }
  for (int64_t i = 0; i < n;) {
    const int64_t begin = range.begin + i;
    const int64_t end = (kIsSegmented<Decoder> ? segments.end(begin) : range.end) - range.begin;
    begin_segment<Decoder, kBlocks>(begin, sums);
    for (; i < end; ++i) {
      const int64_t next = i + buffer.ahead;
      const void* a0 = kIsTile<Decoder> ? static_cast<const void*>(w0 + i * kBytes) : buffer.at(i);
      const void* a1 = kIsTile<Decoder> ? static_cast<const void*>(w1 + i * kBytes) : buffer.at(i) + kTileElements;
      uint16_t* decoded = buffer.at(next);
      unroll<kBytes / 64>([&](auto line) MXFP4MOE_INLINE_LAMBDA {
        __builtin_prefetch(w0 + next * kBytes + kWeightPrefetch + 64 * line.value);
        __builtin_prefetch(w1 + next * kBytes + kWeightPrefetch + 64 * line.value);
      });
      // Decoding stands between tile operations, so that both units are busy.
      tile_load<4>(a0, 64);
      tile_load<6>(b0 + i * kBlockK * tokens0, 4 * tokens0);
      tile_dot<0, 4, 6>();
      if (next < n) decode_tile<Decoder>(w0 + next * kBytes, s0 + next * kScales, decoded);
      tile_load<5>(a1, 64);
      tile_dot<1, 5, 6>();
      if (kBlocks > 1) {
        tile_load<7>(b1 + i * kBlockK * tokens1, 4 * tokens1);
        tile_dot<2, 4, 7>();
      }
      if (next < n) decode_tile<Decoder>(w1 + next * kBytes, s1 + next * kScales, decoded + kTileElements);
      if (kBlocks > 1) tile_dot<3, 5, 7>();
    }
    end_segment<Decoder, kBlocks>(segments, begin, sums);
    segments.next(range.begin + end);
  }
}

// A slab of the tiles of both panels, one K-block after the other.
struct SlabTiles {
  const uint8_t* panels[2];
  int64_t block_bytes;
};

// Multiplies a decoded slab with one or two token blocks of 16.
template <class Decoder, int kBlocks>
inline void multiply(const SlabTiles& slab, BlockRange range, const TokenBlocks& tokens, int64_t block,
                     PairSegments segments, float* sums) {
  const uint16_t* b0 = tokens.data(block) + range.begin * kBlockK * kTokenTile;
  const uint16_t* b1 = tokens.data(block + kBlocks - 1) + range.begin * kBlockK * kTokenTile;
  const uint8_t* a0 = slab.panels[0];
  const uint8_t* a1 = slab.panels[1];
  for (int64_t begin = range.begin; begin < range.end;) {
    const int64_t end = kIsSegmented<Decoder> ? segments.end(begin) : range.end;
    begin_segment<Decoder, kBlocks>(begin, sums);
    for (int64_t i = begin; i < end; ++i) {
      tile_load<4>(a0, 64);
      tile_stream_load<6>(b0, 64);
      tile_dot<0, 4, 6>();
      tile_load<5>(a1, 64);
      tile_dot<1, 5, 6>();
      if (kBlocks > 1) {
        tile_stream_load<7>(b1, 64);
        tile_dot<2, 4, 7>();
        tile_dot<3, 5, 7>();
      }
      a0 += slab.block_bytes;
      a1 += slab.block_bytes;
      b0 += kTileElements;
      b1 += kTileElements;
    }
    end_segment<Decoder, kBlocks>(segments, begin, sums);
    segments.next(end);
    begin = end;
  }
}

// Returns the end of the slab that begins at `begin`: it holds as many whole segments as fit.
template <class Decoder>
inline int64_t slab_end(const PanelPair& pair, int64_t begin, PairSegments* segments) {
  if (kIsSegmented<Decoder>) return segments->next_slab(begin);
  return begin + kSlabBlocks < pair.k_blocks ? begin + kSlabBlocks : pair.k_blocks;
}

template <class Decoder>
inline void pair_sums_by(const PanelPair& pair, const TokenBlocks& tokens, uint16_t* buffer, float* sums) {
  PairSegments ahead(pair, kSlabBlocks);
  if (tokens.count <= 2) {
    const DecodeBuffer ring{buffer, kRingBlocks - 1, kRingAhead};
    if (tokens.count == 1) {
      decode_and_multiply<Decoder, 1>(pair, {0, pair.k_blocks}, ring, tokens, ahead, sums);
    } else {
      decode_and_multiply<Decoder, 2>(pair, {0, pair.k_blocks}, ring, tokens, ahead, sums);
    }
    return;
  }
  for (int64_t begin = 0; begin < pair.k_blocks;) {
    const PairSegments segments = ahead;
    const BlockRange range{begin, slab_end<Decoder>(pair, begin, &ahead)};
    decode_and_multiply<Decoder, 2>(pair, range, {buffer, -1, 1}, tokens, segments, sums);
    const uint8_t* tiles = reinterpret_cast<const uint8_t*>(buffer);
    SlabTiles slab{{tiles, tiles + kTileElements * 2}, 2 * kTileElements * 2};
    if (kIsTile<Decoder>) {
      constexpr int kBytes = kWeightBytes<Decoder>;
      slab = {{pair.weights[0] + begin * kBytes, pair.weights[1] + begin * kBytes}, kBytes};
    }
    int64_t block = 2;
    for (; block + 2 <= tokens.count; block += 2) {
      multiply<Decoder, 2>(slab, range, tokens, block, segments, sums + block * kSumFloats);
    }
    if (block < tokens.count) {
      multiply<Decoder, 1>(slab, range, tokens, block, segments, sums + block * kSumFloats);
    }
    begin = range.end;
  }
}

// Multiplies sums by the float32 scales that hold for all of K.
inline void scale_sums(const PanelPair& pair, int64_t num_blocks, float* sums) {
  for (int64_t b = 0; b < num_blocks; ++b) {
    for (int row = 0; row < 2 * kPanelRows; ++row) {
      float* sum = sums + b * kSumFloats + row * kTokenTile;
      const float scale = pair.sum_scales[row / kPanelRows][pair.scale_rows == 1 ? 0 : row % kPanelRows];
      store(sum, mul(load(sum), broadcast(scale)));
    }
  }
}

// Computes the sums of panels that have no float32 scales, or some that hold for all of K.
template <class Decoder>
inline void plain_pair_sums(const PanelPair& pair, const TokenBlocks& tokens, uint16_t* buffer, float* sums) {
  if constexpr (has_ordinary<Decoder>(0)) {
    if (is_ordinary<Decoder>(pair.weights[0], pair.scales[0], pair.k_blocks) &&
        is_ordinary<Decoder>(pair.weights[1], pair.scales[1], pair.k_blocks)) {
      pair_sums_by<typename Decoder::Ordinary>(pair, tokens, buffer, sums);
    } else {
      pair_sums_by<Decoder>(pair, tokens, buffer, sums);
    }
  } else {
    pair_sums_by<Decoder>(pair, tokens, buffer, sums);
  }
  if (pair.sum_scales[0] != nullptr) scale_sums(pair, tokens.count, sums);
}

// Computes sums[token block][panel of the pair][16 rows][16 tokens].
template <class Decoder>
inline void pair_sums(const PanelPair& pair, const TokenBlocks& tokens, uint16_t* buffer, float* sums) {
  static_assert(Decoder::kSumFactor == 1, "decoders to bfloat16 are exact");
  // Integers are always in segments, also where a group is a whole row: a plain decoder of them would be code for that
  // alone.
  if constexpr (is_integer(Decoder::kFormat)) {
    pair_sums_by<Segmented<Decoder>>(pair, tokens, buffer, sums);
  } else {
    if constexpr (kMayHaveSegments<Decoder>) {
      if (pair.range_blocks < pair.k_blocks) {
        return pair_sums_by<Segmented<Decoder>>(pair, tokens, buffer, sums);
      }
    }
    plain_pair_sums<Decoder>(pair, tokens, buffer, sums);
  }
}

// Sums the tokens over each range of K, if the matrix has offsets: [token block][range][16 tokens].
inline void sum_ranges(const PackedMatrix& m, const TokenBlocks& tokens, float* sums) {
  if (m.offsets == nullptr) return;
  const int64_t pairs = range_columns(m.range_blocks) / 2, all = tokens.k / 2;
  const U32 upper = broadcast_u32(0xffff0000u);
  for (int64_t b = 0; b < tokens.count; ++b) {
    const int64_t width = tokens.tokens(b);
    const float* x = reinterpret_cast<const float*>(tokens.data(b));  // pairs of bfloat16
    for (int64_t range = 0; range < m.num_ranges; ++range, sums += kTokenTile) {
      const int64_t end = (range + 1) * pairs < all ? (range + 1) * pairs : all;
      F32 sum = broadcast(0.0f);
      for (int64_t pair = range * pairs; pair < end; ++pair) {
        const U32 both = bits(load_first(x + pair * width, width));
        sum = add(add(sum, from_bits(shift_left<16>(both))), from_bits(bit_and(both, upper)));
      }
      store(sums, sum);
    }
  }
}

inline void add_offsets(const PanelPair& pair, const float* range_sums, int64_t num_blocks, float* sums) {
  if (pair.offsets[0] == nullptr) return;
  for (int64_t b = 0; b < num_blocks; ++b) {
    const float* x = range_sums + b * pair.num_ranges * kTokenTile;
    const auto sum_of = [&](int64_t range) { return load(x + range * kTokenTile); };
    for (int row = 0; row < 2 * kPanelRows; ++row) {
      const float* offsets = pair.offsets[row / kPanelRows] + (pair.scale_rows == 1 ? 0 : row % kPanelRows);
      const auto offset_of = [&](int64_t range) { return broadcast(offsets[range * pair.scale_rows]); };
      float* sum = sums + b * kSumFloats + row * kTokenTile;
      store(sum, add(load(sum), sum_of_offsets(pair.num_ranges, offset_of, sum_of)));
    }
  }
}
