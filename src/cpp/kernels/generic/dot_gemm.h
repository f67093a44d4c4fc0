// The GEMM of instruction sets with vector registers but no tiles: dot products along k.
//
// SHAPES       one panel (16 rows, K) of packed weights by m tokens (rows of Element, K each).
// DEFINITION   acc[row][token] = lanes over k: for each K-block of 32 in order, acc = dot(acc, w, x); at the end
//              the lanes of each accumulator are summed in a fixed tree.
// ORDER        the same for every m and every path below, so a token's result never depends on its batch.
//
// direct: weights are decoded in registers and used at once, for few tokens; the panel is walked once for each
//   group of rows that fits the registers. slab: weights of several K-blocks are decoded into L1 and used for
//   all tokens; accumulators wait in L2 between slabs.
//
// An instruction set supplies (dot.h): Element, Vec (kVecElements of them, kParts to a K-block), Acc of kLanes
// floats, load_vec, store_vec, widen_block, zero_acc, load_acc, store_acc, multiply_add(acc, w, x), sum_lanes;
// its register budget: kDirectTokens, direct_rows(tokens), kSlabRows, kSlabTokens, kSlabBytes; and kDirectLimit,
// the most tokens for which decoding the panel anew for each kDirectTokens is faster than a slab.
// A weight format supplies a decoder: each_vec(quad, scales, f) calls f(Index<row>, Index<part>, Vec) for the vectors
// of four rows, those of a row in ascending order of their parts.
// Included inside a kernel table's own namespace, after dot.h and unroll.h.

struct PanelView {
  const uint8_t* weights;
  const uint8_t* scales;
  int64_t k_blocks;
};

inline PanelView panel_of(const MatrixView& m, int64_t panel) {
  const int64_t blocks = panel * m.k_blocks;
  return {m.weights + blocks * kMxfp4BlockBytes, m.scales + blocks * kScaleBlockBytes, m.k_blocks};
}

struct TokenRows {
  const Element* x;
  int64_t stride;  // elements
  int64_t count;
};

// Lane sums of one panel: [token][16 rows][kLanes] floats.
inline float* lanes_of(float* lanes, int64_t token, int row) { return lanes + (token * kPanelRows + row) * kLanes; }

template <class Decoder, int kRows, int kTokens>
MXFP4MOE_INLINE void direct_rows_loop(const PanelView& panel, int first_row, const TokenRows& tokens, float* lanes) {
  static_assert(kRows % 4 == 0, "a quad holds four rows");
  Acc acc[kRows][kTokens];
  unroll<kRows>([&](auto r) MXFP4MOE_INLINE_LAMBDA {
    unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA { acc[r.value][t.value] = zero_acc(); });
  });
  const uint8_t* w = panel.weights + first_row / 4 * 64;
  const uint8_t* s = panel.scales + first_row;
  const Element* x[kTokens];
  unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA { x[t.value] = tokens.x + t.value * tokens.stride; });
  // Each walk brings its own lines of the next panel into L2, so that memory is busy during all of them.
  const int64_t next = panel.k_blocks * kMxfp4BlockBytes;
  for (int64_t kb = 0; kb < panel.k_blocks; ++kb) {
    __builtin_prefetch(s + next / 16, 0, 2);
    unroll<kRows / 4>([&](auto q) MXFP4MOE_INLINE_LAMBDA {
      __builtin_prefetch(w + next + 64 * q.value, 0, 2);
      Decoder::each_vec(w + 64 * q.value, s + 4 * q.value, [&](auto i, auto part, Vec row) MXFP4MOE_INLINE_LAMBDA {
        constexpr int r = 4 * q.value + i.value;
        unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA {
          const Vec xs = load_vec(x[t.value] + kb * kBlockK + part.value * kVecElements);
          acc[r][t.value] = multiply_add(acc[r][t.value], row, xs);
        });
      });
    });
    w += kMxfp4BlockBytes;
    s += kScaleBlockBytes;
  }
  unroll<kRows>([&](auto r) MXFP4MOE_INLINE_LAMBDA {
    unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA {
      store_acc(lanes_of(lanes, t.value, first_row + r.value), acc[r.value][t.value]);
    });
  });
}

template <class Decoder, int kTokens>
inline void direct_tile(const PanelView& panel, const TokenRows& tokens, float* lanes) {
  constexpr int rows = direct_rows(kTokens);
  for (int r = 0; r < kPanelRows; r += rows) direct_rows_loop<Decoder, rows, kTokens>(panel, r, tokens, lanes);
}

// Cuts `count` tokens into tiles of at most kMax, as even as can be, and calls f(Index<size>, first).
template <int kMax, class F>
inline void for_token_tiles(int64_t count, F&& f) {
  int64_t done = 0;
  for (int64_t left = ceil_div(count, kMax); left > 0; --left) {
    const int64_t size = ceil_div(count - done, left);
    unroll<kMax>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
      if (size == i.value + 1) f(Index<i.value + 1>{}, done);
    });
    done += size;
  }
}

template <class Decoder>
inline void decode_slab(const PanelView& panel, int64_t first_block, int64_t num_blocks, Element* slab) {
  const uint8_t* w = panel.weights + first_block * kMxfp4BlockBytes;
  const uint8_t* s = panel.scales + first_block * kScaleBlockBytes;
  for (int64_t kb = 0; kb < num_blocks; ++kb) {
    unroll<4>([&](auto q) MXFP4MOE_INLINE_LAMBDA {
      Decoder::each_vec(w + 64 * q.value, s + 4 * q.value, [&](auto i, auto part, Vec row) MXFP4MOE_INLINE_LAMBDA {
        store_vec(slab + (4 * q.value + i.value) * kBlockK + part.value * kVecElements, row);
      });
    });
    slab += kPanelRows * kBlockK;
    w += kMxfp4BlockBytes;
    s += kScaleBlockBytes;
  }
}

// Some rows of a decoded slab.
struct SlabRows {
  const Element* weights;
  int64_t num_blocks;
  bool first;           // of the panel: accumulators start from zero
  const uint8_t* next;  // a line of each K-block of the packed weights that are decoded next: brought into L2
};

template <int kTokens>
inline void slab_rows_loop(const SlabRows& slab, const TokenRows& tokens, float* lanes) {
  Acc acc[kSlabRows][kTokens];
  unroll<kSlabRows>([&](auto r) MXFP4MOE_INLINE_LAMBDA {
    unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA {
      acc[r.value][t.value] = slab.first ? zero_acc() : load_acc(lanes_of(lanes, t.value, r.value));
    });
  });
  const Element* x[kTokens];
  unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA { x[t.value] = tokens.x + t.value * tokens.stride; });
  for (int64_t kb = 0; kb < slab.num_blocks; ++kb) {
    __builtin_prefetch(slab.next + kb * kMxfp4BlockBytes, 0, 2);
    const Element* w = slab.weights + kb * (kPanelRows * kBlockK);
    unroll<kParts>([&](auto part) MXFP4MOE_INLINE_LAMBDA {
      constexpr int at = part.value * kVecElements;
      Vec xs[kTokens];
      unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA { xs[t.value] = load_vec(x[t.value] + kb * kBlockK + at); });
      unroll<kSlabRows>([&](auto r) MXFP4MOE_INLINE_LAMBDA {
        const Vec row = load_vec(w + r.value * kBlockK + at);
        unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA {
          acc[r.value][t.value] = multiply_add(acc[r.value][t.value], row, xs[t.value]);
        });
      });
    });
  }
  unroll<kSlabRows>([&](auto r) MXFP4MOE_INLINE_LAMBDA {
    unroll<kTokens>(
        [&](auto t) MXFP4MOE_INLINE_LAMBDA { store_acc(lanes_of(lanes, t.value, r.value), acc[r.value][t.value]); });
  });
}

template <class Decoder>
inline void slab_panel(const PanelView& panel, const TokenRows& tokens, Element* slab, float* lanes) {
  constexpr int64_t kSlabBlocks = kSlabBytes / (kPanelRows * kBlockK * static_cast<int64_t>(sizeof(Element)));
  const int64_t num_slabs = ceil_div(panel.k_blocks, kSlabBlocks);
  int64_t begin = 0;
  for (int64_t left = num_slabs; left > 0; --left) {
    const int64_t blocks = ceil_div(panel.k_blocks - begin, left);
    decode_slab<Decoder>(panel, begin, blocks, slab);
    // Past the panel's end the next panel begins.
    const uint8_t* next = panel.weights + (begin + blocks) * kMxfp4BlockBytes;
    for_token_tiles<kSlabTokens>(tokens.count, [&](auto size, int64_t t) {
      const TokenRows tile{tokens.x + t * tokens.stride + begin * kBlockK, tokens.stride, size.value};
      for (int r = 0; r < kPanelRows; r += kSlabRows) {
        const SlabRows rows{slab + r * kBlockK, blocks, begin == 0, next + r / kSlabRows % 4 * 64};
        slab_rows_loop<size.value>(rows, tile, lanes_of(lanes, t, r));
      }
    });
    begin += blocks;
  }
}

template <class Decoder>
constexpr auto has_ordinary(int) -> decltype(static_cast<typename Decoder::Ordinary*>(nullptr), bool()) {
  return true;
}
template <class Decoder>
constexpr bool has_ordinary(long) {
  return false;
}

template <class Decoder>
inline void panel_sums_by(const PanelView& panel, const TokenRows& tokens, Element* slab, float* lanes, float* sums) {
  if (tokens.count <= kDirectLimit) {
    for_token_tiles<kDirectTokens>(tokens.count, [&](auto size, int64_t t) {
      direct_tile<Decoder, size.value>(panel, {tokens.x + t * tokens.stride, tokens.stride, size.value}, lanes);
      for (int i = 0; i < size.value; ++i) store(sums + (t + i) * kPanelRows, sum_lanes(lanes_of(lanes, i, 0)));
    });
  } else {
    slab_panel<Decoder>(panel, tokens, slab, lanes);
    for (int64_t t = 0; t < tokens.count; ++t) store(sums + t * kPanelRows, sum_lanes(lanes_of(lanes, t, 0)));
  }
}

// sums[token][16 rows] of one panel. A decoder with a faster form for panels of ordinary scales says so by naming it
// and by telling which panels those are; both give the same weights.
template <class Decoder>
inline void panel_sums(const PanelView& panel, const TokenRows& tokens, Element* slab, float* lanes, float* sums) {
  if constexpr (has_ordinary<Decoder>(0)) {
    if (Decoder::is_ordinary(panel.scales, panel.k_blocks * kScaleBlockBytes)) {
      return panel_sums_by<typename Decoder::Ordinary>(panel, tokens, slab, lanes, sums);
    }
  }
  panel_sums_by<Decoder>(panel, tokens, slab, lanes, sums);
}
