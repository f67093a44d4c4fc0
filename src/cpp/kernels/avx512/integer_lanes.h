// Integers by tokens in bfloat16 with a lane for each row of a panel, so that the scales of sixteen rows are one
// vector.
//
// DEFINITION   sum[row][token] starts from 0; for each K-block in order, or each half of one that has its own scale:
//              sum = fma(even + odd, scale, sum). Even and odd pairs of k have an accumulator each, which starts from 0
//              and adds the products of a pair, one pair after the other.
// ORDER        is the same for every number of tokens.
//
// There are two paths. direct: weights are decoded in registers for each tile of tokens; with several tokens that hides
// behind the dot products. slab: they are decoded into L1 once, for codes of eight bits and more tokens than a tile
// has. The two k of a token that a pair is multiplied by are repeated in all lanes. Included inside the namespace of
// the kernel table whose Vec is a zmm register of bfloat16, after integer_pairs.h.

constexpr int kLaneTokens = 8;  // products and sums of eight tokens take 24 of 32 registers
constexpr int64_t kLaneSlabBlocks = 16;
static_assert(kLaneSlabBlocks * kPanelRows * kBlockK * static_cast<int64_t>(sizeof(Element)) <= kSlabBytes, "it fits");

// K-blocks that decode_lanes() has written, for many tokens.
struct SlabLanes {
  static constexpr int kWeightBytes = kPanelRows * kBlockK * static_cast<int>(sizeof(Element));

  explicit MXFP4MOE_INLINE SlabLanes(const PanelView&) {}

  template <class F>
  MXFP4MOE_INLINE void each_pair(const uint8_t* block, const uint8_t*, F&& f) const {
    unroll<kBlockK / 2>([&](auto pair) MXFP4MOE_INLINE_LAMBDA { f(pair, load_words(block + 64 * pair.value)); });
  }
};

// Brings a K-block of the next panel into L2.
template <class Weights>
MXFP4MOE_INLINE void prefetch_block(const uint8_t* block) {
  unroll<Weights::kWeightBytes / 64>([&](auto line)
                                         MXFP4MOE_INLINE_LAMBDA { __builtin_prefetch(block + 64 * line.value, 0, 2); });
}

template <class Weights>
MXFP4MOE_NOINLINE void decode_lanes(const PanelView& panel, BlockRange range, Element* slab) {
  const Weights weights(panel);
  for (int64_t kb = range.begin; kb < range.end; ++kb, slab += kPanelRows * kBlockK) {
    const uint8_t* block = panel.weights + kb * Weights::kWeightBytes;
    prefetch_block<Weights>(block + panel.k_blocks * Weights::kWeightBytes);
    weights.each_pair(block, panel.scales + kb * kPanelRows,
                      [&](auto pair, Vec w) MXFP4MOE_INLINE_LAMBDA { store_vec(slab + pair.value * kBlockK, w); });
  }
}

// The float32 scales of a panel, one K-block or half of one after the other.
class LaneScales {
 public:
  MXFP4MOE_INLINE LaneScales(const PanelView& panel, int64_t first_block)
      : end_(panel.sum_scales + panel.num_ranges * panel.scale_rows),
        rows_(panel.scale_rows),
        range_blocks_(panel.range_blocks) {
    const int64_t range = range_blocks_ == 0 ? 2 * first_block : first_block / range_blocks_;
    at_ = panel.sum_scales + range * rows_;
    left_ = range_blocks_ == 0 ? 0 : range_blocks_ - first_block % range_blocks_;
  }

  MXFP4MOE_INLINE F32 of_block() {
    const F32 scale = load_rows();
    if (--left_ == 0) {
      at_ += rows_;
      left_ = range_blocks_;
    }
    return scale;
  }
  MXFP4MOE_INLINE F32 of_half() {
    if (at_ == end_) return broadcast(0.0f);  // the last half is padding
    const F32 scale = load_rows();
    at_ += rows_;
    return scale;
  }

 private:
  MXFP4MOE_INLINE F32 load_rows() const { return rows_ == 1 ? broadcast(*at_) : load(at_); }

  const float *at_, *const end_;
  const int64_t rows_, range_blocks_;
  int64_t left_;
};

// Where the weights of some K-blocks are: in the panel, or decoded in a slab.
struct LaneBlocks {
  const uint8_t* weights;
  const uint8_t* zeros;
  const uint8_t* next;  // what is prefetched into L2 meanwhile, or null
  BlockRange range;
};

// Adds the products of a range of K-blocks of a panel and some tokens to their sums.
template <class Weights, int kTokens>
MXFP4MOE_NOINLINE void lane_tile(const PanelView& panel, LaneBlocks blocks, const TokenRows& tokens, float* sums) {
  const Weights weights(panel);
  LaneScales scales(panel, blocks.range.begin);
  const bool has_halves = panel.range_blocks == 0;
  const Element* x[kTokens];
  F32 sum[kTokens];
  unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA {
    x[t.value] = tokens.x + t.value * tokens.stride;
    sum[t.value] = load(sums + t.value * kPanelRows);
  });
  for (int64_t kb = blocks.range.begin; kb < blocks.range.end; ++kb) {
    if (blocks.next != nullptr) {
      prefetch_block<Weights>(blocks.next);
      blocks.next += Weights::kWeightBytes;
    }
    Acc acc[kTokens][2];
    clear(acc);
    const auto add_products = [&](F32 scale) MXFP4MOE_INLINE_LAMBDA {
      unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA {
        sum[t.value] = mul_add(add(acc[t.value][0], acc[t.value][1]), scale, sum[t.value]);
      });
    };
    weights.each_pair(blocks.weights, blocks.zeros, [&](auto pair, Vec w) MXFP4MOE_INLINE_LAMBDA {
      unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA {
        int32_t two;
        std::memcpy(&two, x[t.value] + kb * kBlockK + 2 * pair.value, 4);
        Acc& of_token = acc[t.value][pair.value % 2];
        of_token = multiply_add(of_token, w, _mm512_set1_epi32(two));
      });
      if constexpr (pair.value == kBlockK / 4 - 1) {
        if (has_halves) {
          add_products(scales.of_half());
          clear(acc);
        }
      }
    });
    add_products(has_halves ? scales.of_half() : scales.of_block());
    blocks.weights += Weights::kWeightBytes;
    blocks.zeros += kPanelRows;
  }
  unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA { store(sums + t.value * kPanelRows, sum[t.value]); });
}

template <class Weights>
inline void lane_tiles(const PanelView& panel, LaneBlocks blocks, const TokenRows& tokens, float* sums) {
  for_token_tiles<kLaneTokens>(tokens.count, [&](auto size, int64_t t) {
    const TokenRows tile{tokens.x + t * tokens.stride, tokens.stride, size.value};
    lane_tile<Weights, size.value>(panel, blocks, tile, sums + t * kPanelRows);
    blocks.next = nullptr;  // once is enough
  });
}

template <class Weights>
inline void lane_panel_sums(const PanelView& panel, const TokenRows& tokens, Element* slab, float* sums) {
  std::memset(sums, 0, static_cast<size_t>(tokens.count) * kPanelRows * 4);
  const uint8_t* next = panel.weights + panel.k_blocks * Weights::kWeightBytes;
  if (Weights::kIsCheap || tokens.count <= kLaneTokens) {
    lane_tiles<Weights>(panel, {panel.weights, panel.scales, next, {0, panel.k_blocks}}, tokens, sums);
    return;
  }
  for (int64_t begin = 0; begin < panel.k_blocks; begin += kLaneSlabBlocks) {
    const int64_t end = begin + kLaneSlabBlocks < panel.k_blocks ? begin + kLaneSlabBlocks : panel.k_blocks;
    decode_lanes<Weights>(panel, {begin, end}, slab);
    const LaneBlocks decoded{
        reinterpret_cast<const uint8_t*>(slab), panel.scales + begin * kPanelRows, nullptr, {begin, end}};
    lane_tiles<SlabLanes>(panel, decoded, tokens, sums);
  }
}

template <class Decoder>
inline void integer_panel_sums(const PanelView& panel, const TokenRows& tokens, Element* slab, float*, float* sums) {
  const bool has_zeros = panel.format == Decoder::kFormat;
  if constexpr (Decoder::kNibbles) {
    if (has_zeros) return lane_panel_sums<Int4ZeroLanes>(panel, tokens, slab, sums);
    lane_panel_sums<Int4Lanes>(panel, tokens, slab, sums);
  } else {
    if (has_zeros || implied_zero(panel.format) != 0) {
      return lane_panel_sums<Int8ZeroLanes>(panel, tokens, slab, sums);
    }
    lane_panel_sums<Int8Lanes>(panel, tokens, slab, sums);
  }
}
