// The GEMM of instruction sets with vector registers but without tiles: dot products along k.
//
// SHAPES       one panel (16 rows, K) of packed weights by m tokens (rows of Element, K each).
// DEFINITION   acc[row][token] = lanes over k: for each K-block of 32 in order, acc = dot(acc, w, x); at the end
//              the lanes of each accumulator are summed in a fixed tree.
// ORDER        is the same for every m and on both paths below, so that a token's result never depends on its batch.
//
// Integers are computed so where Element is float32; avx512/integer_lanes.h has another way for bfloat16.
//
// There are two paths. direct: weights are decoded in registers and used at once, for few tokens; the panel is walked
// once for each group of rows that fits the registers, whole quads or half of one. slab: the weights of several
// K-blocks are decoded into L1 and used for all tokens; accumulators wait in L2 between slabs.
//
// THE CONTRACT OF dot*.h: types Element, Vec (kVecElements of them, kParts to a K-block of a row) and Acc (kLanes
// floats); functions load_vec, load_vec_once, store_vec, widen_block (a K-block of bfloat16 to Elements), zero_acc,
// load_acc, store_acc, multiply_add(acc, w, x), add_scaled(sum, acc, scale), scale_acc<factor>(acc), sum_lanes; and
// these constants:
//
//                           portable  avx2    avx512      avx512bf16   why
//   Element                 float     float   float       bfloat16     what the dot product multiplies
//   kVecElements x kParts   8 x 4     8 x 4   16 x 2      32 x 1       32 k of a row in vectors
//   kLanes                  8         8       16          16           floats of one accumulator
//   kRegisters              16        16      32          32           vector registers
//   kDirectTokens           1         4       6           6            the most tokens of a direct walk (1)
//   direct_tokens(format)   1         4       6           6            the same for a format: 3 for integers on avx2
//   direct_rows(tokens)     4         4 2     16 8 4      16 8 4       rows of a walk, fewer for more tokens (1)
//   direct_segment_rows     4         4 2     16 8 4      16 4 2       the same with sums beside the accumulators (2)
//   direct_limit(format)    1         5       16          all          the most tokens of the direct path (3)
//   the same for 8 bits     1         5       6           6
//   kDirectBlocks           0         16      0           0            K-blocks of a walk; 0 means all of K (4)
//   pair_step(format)       -         2 1     -           1            distance of the rows of a walk of two rows (5)
//   kSlabRows x kSlabTokens 2 x 3     4 x 3   4 x 6       4 x 6        accumulators of the slab path (1)
//   kSlabSegmentRows        2         4       4           2            the same with sums beside the accumulators (2)
//   kSlabBytes              16 KiB    24 KiB  24 KiB      24 KiB       decoded weights that stay in an L1 of 32 KiB
//   kFusedProducts          false     true    true        true         multiply_add rounds once
//
//   (1) rows x tokens accumulators, a vector of each token and one of weights fit the registers: avx2 has
//       4 x 3 + 3 + 1 = 16, AVX-512 4 x 6 + 6 + 1 = 31. A portable accumulator takes two registers, 2 x 3 of them
//       take 12 of 16.
//   (2) Where K is cut in segments, each accumulator has a sum that it is added to. With half as many rows the sums
//       stay in registers. That pays on avx512bf16, where a store of a zmm takes as long as two dot products.
//   (3) Decoding anew for each kDirectTokens tokens pays as long as it costs less than the stores and loads of a
//       slab. On avx512bf16, decoding four bits hides behind the dot products and always pays; portable code decodes
//       by arithmetic, which is worth doing only once. bench/panel_cycles.cpp measures where the limits are.
//   (4) After so many K-blocks all walks of a panel have caught up, so that each finds the tokens in L1: four tokens
//       of 16 K-blocks take 8 KiB. avx2 has the most walks, eight for three or four tokens.
//   (5) The two rows are decoded together: in four-bit formats rows 0 and 2 of a quad, which are the low nibbles of
//       its bytes (rows 1 and 3 are the high ones), in the others rows 0 and 1.
//
// A weight format supplies a decoder (weight_formats.h): each_vec(quad, scales, f) calls f(Index<row>, Index<part>,
// Vec) for the vectors of four rows, those of a row in ascending order of their parts.
//
// Where float32 scales change along K, K is cut in segments, each of which lies in a range of K with one scale. The
// lanes of a segment start from zero, and are added to the lanes of the panel after multiplication by the scale. A
// segment is no longer than a slab, and a slab holds whole segments.
//
// Included inside a kernel table's own namespace, after dot.h and unroll.h.

constexpr int64_t kSlabBlocks = kSlabBytes / (kPanelRows * kBlockK * static_cast<int64_t>(sizeof(Element)));

struct PanelView {
  const uint8_t* weights;
  const uint8_t* scales;
  int64_t scales_begin;  // the K-block whose scales come first
  int64_t k_blocks;
  const float* sum_scales;  // [ranges][scale_rows], or null
  const float* offsets;     // as the scales, or null
  int64_t num_ranges;
  int64_t range_blocks;
  int64_t scale_rows;
  WeightFormat format;    // of the matrix, which may store no zero points though the decoder's format does
  float* written_scales;  // room for those of decoders that write them
};

// The bytes of memory that the scales of a panel of rows of `k` weights may be written to.
constexpr int64_t scale_buffer_bytes(int64_t k) {
  return panel_scale_floats(k) * 4 + ceil_div(k, kBlockK) * kMaxRowScaleBytes;
}

template <class Decoder>
inline PanelView panel_of(const PackedMatrix& m, int64_t panel, float* scale_buffer) {
  const int64_t blocks = panel * m.k_blocks;
  const PanelScales scales = scales_of_panel<Decoder>(m, panel, scale_buffer);
  return {m.weights + blocks * kWeightBytes<Decoder>,
          scales.block_scales,
          0,
          m.k_blocks,
          scales.sum_scales,
          scales.offsets,
          m.num_ranges,
          m.range_blocks,
          m.scale_rows,
          m.format,
          scale_buffer + panel_scale_floats(m.k_blocks * kBlockK)};
}

// Returns the panel with the scales of a range of K-blocks as `Decoder` reads them.
template <class Decoder>
inline PanelView with_scales(const PanelView& panel, BlockRange range) {
  PanelView view = panel;
  if constexpr (kWritesScales<Decoder>) {
    Decoder::write_scales(panel, range, panel.written_scales);
    view.scales = reinterpret_cast<const uint8_t*>(panel.written_scales);
    view.scales_begin = range.begin;
  }
  return view;
}

struct TokenRows {
  const Element* x;
  int64_t stride;  // elements
  int64_t count;
};

// The lanes of a panel's accumulators in memory: [token][16 rows][kLanes] floats.
inline float* lanes_of(float* lanes, int64_t token, int row) { return lanes + (token * kPanelRows + row) * kLanes; }

using PanelSegments = Segments<PanelView>;

// The rows of a panel that are computed together, counted from the first row of a quad: whole quads, or two rows of a
// quad that are kStep apart.
template <int kCount_, int kFirst_ = 0, int kStep_ = 1>
struct RowSet {
  static constexpr int kCount = kCount_, kFirst = kFirst_, kStep = kStep_;
  static constexpr int kQuads = (kCount + 3) / 4;
  static constexpr int row(int index) { return kFirst + index * kStep; }
  static constexpr int index(int row) {
    const int steps = row - kFirst;
    return steps >= 0 && steps % kStep == 0 && steps / kStep < kCount ? steps / kStep : -1;
  }
};

template <int kRows, int kTokens>
MXFP4MOE_INLINE void clear(Acc (&acc)[kRows][kTokens]) {
  unroll<kRows>([&](auto r) MXFP4MOE_INLINE_LAMBDA {
    unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA { acc[r.value][t.value] = zero_acc(); });
  });
}

template <class R, int kTokens>
MXFP4MOE_INLINE void load_lanes(float* lanes, int first_row, Acc (&acc)[R::kCount][kTokens]) {
  unroll<R::kCount>([&](auto r) MXFP4MOE_INLINE_LAMBDA {
    unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA {
      acc[r.value][t.value] = load_acc(lanes_of(lanes, t.value, first_row + R::row(r.value)));
    });
  });
}

template <class R, int kTokens>
MXFP4MOE_INLINE void store_lanes(const Acc (&acc)[R::kCount][kTokens], int first_row, float* lanes) {
  unroll<R::kCount>([&](auto r) MXFP4MOE_INLINE_LAMBDA {
    unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA {
      store_acc(lanes_of(lanes, t.value, first_row + R::row(r.value)), acc[r.value][t.value]);
    });
  });
}

// Tells whether, beside the accumulators of a segment, tokens and weights, registers are left for the sums.
template <class R, int kTokens>
constexpr bool kSumsInRegisters = (2 * R::kCount + 1) * kTokens + 2 <= kRegisters;

// Adds the segments of a range of K-blocks, each times its scale, to the sums of some rows and tokens, which start from
// zero at K-block 0. blocks(range, acc) adds the products of a segment. The sums stay in registers or wait in memory.
template <class Decoder, class R, int kTokens, class F>
MXFP4MOE_INLINE void add_segments(BlockRange range, PanelSegments segments, int first_row, float* lanes, F&& blocks) {
  constexpr bool kInRegisters = kSumsInRegisters<R, kTokens>;
  Acc sums[R::kCount][kTokens];
  if constexpr (kInRegisters) {
    if (range.begin == 0) {
      clear(sums);
    } else {
      load_lanes<R>(lanes, first_row, sums);
    }
  }
  while (range.begin < range.end) {
    const int64_t end = segments.end(range.begin);
    Acc acc[R::kCount][kTokens];
    clear(acc);
    blocks(BlockRange{range.begin, end}, acc);
    unroll<R::kCount>([&](auto r) MXFP4MOE_INLINE_LAMBDA {
      const int row = first_row + R::row(r.value);
      const float scale = segments.panels().sum_scales[segments.scale_of(row)];
      unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA {
        const Acc exact = scale_acc<Decoder::kSumFactor>(acc[r.value][t.value]);
        if constexpr (kInRegisters) {
          sums[r.value][t.value] = add_scaled(sums[r.value][t.value], exact, scale);
        } else {
          float* sum = lanes_of(lanes, t.value, row);
          store_acc(sum, add_scaled(range.begin == 0 ? zero_acc() : load_acc(sum), exact, scale));
        }
      });
    });
    segments.next(end);
    range.begin = end;
  }
  if constexpr (kInRegisters) store_lanes<R>(sums, first_row, lanes);
}

// Adds the products of a range of K-blocks of some rows by some tokens to `acc`.
template <class Decoder, class R, int kTokens>
MXFP4MOE_INLINE void direct_blocks(const PanelView& panel, int first_row, const TokenRows& tokens, BlockRange range,
                                   Acc (&acc)[R::kCount][kTokens]) {
  constexpr int kQuadBytes = kWeightBytes<Decoder> / 4, kQuadScales = kQuadScaleBytes<Decoder>;
  const uint8_t* w = panel.weights + range.begin * kWeightBytes<Decoder> + first_row / 4 * kQuadBytes;
  const int64_t scales_before = range.begin - panel.scales_begin;
  const uint8_t* s = panel.scales + scales_before * kScaleBytes<Decoder> + first_row / 4 * kQuadScales;
  const Element* x[kTokens];
  unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA { x[t.value] = tokens.x + t.value * tokens.stride; });
  // The walks share the prefetching of the next panel into L2, so that memory is busy during all of them. Each brings a
  // piece of consecutive lines: measured, memory gives them 25 % faster than the quads of each K-block one by one.
  const int64_t quads_before = range.begin * 4 + first_row / 4 * (range.end - range.begin);
  const uint8_t* next = panel.weights + panel.k_blocks * kWeightBytes<Decoder> + quads_before * kQuadBytes;
  const int64_t next_scales = panel.k_blocks * kScaleBytes<Decoder>;
  for (int64_t kb = range.begin; kb < range.end; ++kb) {
    if (kScaleBytes<Decoder> != 0 && !kWritesScales<Decoder> && R::kFirst == 0)
      __builtin_prefetch(s + next_scales, 0, 2);
    unroll<R::kQuads>([&](auto q) MXFP4MOE_INLINE_LAMBDA {
      if (R::kFirst == 0) {
        unroll<kQuadBytes / 64>([&](auto line) MXFP4MOE_INLINE_LAMBDA {
          __builtin_prefetch(next + kQuadBytes * q.value + 64 * line.value, 0, 2);
        });
      }
      Decoder::each_vec(w + kQuadBytes * q.value, s + kQuadScales * q.value,
                        [&](auto i, auto part, const Vec& row) MXFP4MOE_INLINE_LAMBDA {
                          constexpr int r = R::index(4 * q.value + i.value);
                          if constexpr (r >= 0) {  // other rows are not used, so the compiler leaves their decoding out
                            unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA {
                              const Vec xs = load_vec(x[t.value] + kb * kBlockK + part.value * kVecElements);
                              acc[r][t.value] = multiply_add(acc[r][t.value], row, xs);
                            });
                          }
                        });
    });
    next += kQuadBytes * R::kQuads;
    w += kWeightBytes<Decoder>;
    s += kScaleBytes<Decoder>;
  }
}

template <class Decoder, class R, int kTokens>
MXFP4MOE_INLINE void direct_rows_loop(const PanelView& panel, int first_row, const TokenRows& tokens, BlockRange range,
                                      float* lanes) {
  if constexpr (kIsSegmented<Decoder>) {
    add_segments<Decoder, R, kTokens>(range, PanelSegments(panel, kSlabBlocks), first_row, lanes,
                                      [&](BlockRange part, auto& acc) MXFP4MOE_INLINE_LAMBDA {
                                        direct_blocks<Decoder, R>(panel, first_row, tokens, part, acc);
                                      });
  } else {
    Acc acc[R::kCount][kTokens];
    if (kDirectBlocks == 0 || range.begin == 0) {
      clear(acc);
    } else {
      load_lanes<R>(lanes, first_row, acc);
    }
    direct_blocks<Decoder, R>(panel, first_row, tokens, range, acc);
    store_lanes<R>(acc, first_row, lanes);
  }
}

template <class Decoder, int kTokens>
inline void direct_tile(const PanelView& panel, const TokenRows& tokens, float* lanes) {
  constexpr int rows = kIsSegmented<Decoder> ? direct_segment_rows(kTokens) : direct_rows(kTokens);
  const int64_t walk = kIsSegmented<Decoder> || kDirectBlocks == 0 ? panel.k_blocks : kDirectBlocks;
  for (BlockRange range{0, 0}; range.begin < panel.k_blocks; range.begin = range.end) {
    range.end = range.begin + walk < panel.k_blocks ? range.begin + walk : panel.k_blocks;
    const PanelView view = with_scales<Decoder>(panel, range);
    for (int r = 0; r < kPanelRows; r += rows < 4 ? 4 : rows) {
      if constexpr (rows < 4) {
        constexpr int step = pair_step(Decoder::kFormat);
        direct_rows_loop<Decoder, RowSet<2, 0, step>, kTokens>(view, r, tokens, range, lanes);
        direct_rows_loop<Decoder, RowSet<2, 3 - step, step>, kTokens>(view, r, tokens, range, lanes);
      } else {
        direct_rows_loop<Decoder, RowSet<rows>, kTokens>(view, r, tokens, range, lanes);
      }
    }
  }
}

// Cuts `count` tokens into tiles of at most kMax tokens, as evenly as possible, and calls f(Index<size>, first) for
// each.
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
  constexpr int kQuadBytes = kWeightBytes<Decoder> / 4, kQuadScales = kQuadScaleBytes<Decoder>;
  const uint8_t* w = panel.weights + first_block * kWeightBytes<Decoder>;
  const PanelView view = with_scales<Decoder>(panel, {first_block, first_block + num_blocks});
  const uint8_t* s = view.scales + (first_block - view.scales_begin) * kScaleBytes<Decoder>;
  for (int64_t kb = 0; kb < num_blocks; ++kb) {
    unroll<4>([&](auto q) MXFP4MOE_INLINE_LAMBDA {
      Decoder::each_vec(w + kQuadBytes * q.value, s + kQuadScales * q.value,
                        [&](auto i, auto part, const Vec& row) MXFP4MOE_INLINE_LAMBDA {
                          store_vec(slab + (4 * q.value + i.value) * kBlockK + part.value * kVecElements, row);
                        });
    });
    slab += kPanelRows * kBlockK;
    w += kWeightBytes<Decoder>;
    s += kScaleBytes<Decoder>;
  }
}

template <class Decoder>
constexpr int slab_rows = kIsSegmented<Decoder> ? kSlabSegmentRows : kSlabRows;

// Some rows of a slab that holds the decoded K-blocks [begin, end).
struct SlabRows {
  const Element* weights;
  int64_t begin, end;
  int first_row;
  const uint8_t* next;  // the packed weights that are decoded next; their lines are prefetched into L2
  const PanelSegments* segments;
};

// Adds the products of a range of the slab's K-blocks to `acc`. Each group of rows prefetches some lines of each
// K-block.
template <class Decoder, int kRows, int kTokens>
MXFP4MOE_INLINE void slab_blocks(const SlabRows& slab, const TokenRows& tokens, BlockRange range,
                                 Acc (&acc)[kRows][kTokens]) {
  constexpr int kBytes = kWeightBytes<Decoder>;
  constexpr int kLines = (kBytes / 64 * kRows + kPanelRows - 1) / kPanelRows;
  const Element* x[kTokens];
  unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA { x[t.value] = tokens.x + t.value * tokens.stride; });
  for (int64_t kb = range.begin - slab.begin; kb < range.end - slab.begin; ++kb) {
    unroll<kLines>([&](auto line)
                       MXFP4MOE_INLINE_LAMBDA { __builtin_prefetch(slab.next + kb * kBytes + 64 * line.value, 0, 2); });
    const Element* w = slab.weights + kb * (kPanelRows * kBlockK);
    unroll<kParts>([&](auto part) MXFP4MOE_INLINE_LAMBDA {
      constexpr int at = part.value * kVecElements;
      Vec xs[kTokens];
      unroll<kTokens>([&](auto t)
                          MXFP4MOE_INLINE_LAMBDA { xs[t.value] = load_vec_once(x[t.value] + kb * kBlockK + at); });
      unroll<kRows>([&](auto r) MXFP4MOE_INLINE_LAMBDA {
        const Vec row = load_vec(w + r.value * kBlockK + at);
        unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA {
          acc[r.value][t.value] = multiply_add(acc[r.value][t.value], row, xs[t.value]);
        });
      });
    });
  }
}

template <class Decoder, int kTokens>
inline void slab_rows_loop(const SlabRows& slab, const TokenRows& tokens, float* lanes) {
  using R = RowSet<slab_rows<Decoder>>;
  const BlockRange range{slab.begin, slab.end};
  if constexpr (kIsSegmented<Decoder>) {
    add_segments<Decoder, R, kTokens>(range, *slab.segments, slab.first_row, lanes,
                                      [&](BlockRange part, auto& acc)
                                          MXFP4MOE_INLINE_LAMBDA { slab_blocks<Decoder>(slab, tokens, part, acc); });
  } else {
    Acc acc[R::kCount][kTokens];
    if (slab.begin == 0) {
      clear(acc);
    } else {
      load_lanes<R>(lanes, slab.first_row, acc);
    }
    slab_blocks<Decoder>(slab, tokens, range, acc);
    store_lanes<R>(acc, slab.first_row, lanes);
  }
}

// Returns the end of the slab that begins at `begin`: it holds whole segments, or an even share of what is left.
template <class Decoder>
inline int64_t slab_end(const PanelView& panel, int64_t begin, PanelSegments* segments) {
  if (kIsSegmented<Decoder>) return segments->next_slab(begin);
  const int64_t left = panel.k_blocks - begin;
  return begin + ceil_div(left, ceil_div(left, kSlabBlocks));
}

template <class Decoder>
inline void slab_panel(const PanelView& panel, const TokenRows& tokens, Element* slab, float* lanes) {
  constexpr int kBytes = kWeightBytes<Decoder>;
  PanelSegments ahead(panel, kSlabBlocks);
  for (int64_t begin = 0; begin < panel.k_blocks;) {
    const PanelSegments segments = ahead;
    const int64_t end = slab_end<Decoder>(panel, begin, &ahead);
    decode_slab<Decoder>(panel, begin, end - begin, slab);
    // The next panel begins where this one ends.
    const uint8_t* next = panel.weights + end * kBytes;
    for_token_tiles<kSlabTokens>(tokens.count, [&](auto size, int64_t t) {
      const TokenRows tile{tokens.x + t * tokens.stride + begin * kBlockK, tokens.stride, size.value};
      for (int r = 0; r < kPanelRows; r += slab_rows<Decoder>) {
        const SlabRows rows{slab + r * kBlockK, begin, end, r, next + r * (kBytes / 64) / kPanelRows * 64, &segments};
        slab_rows_loop<Decoder, size.value>(rows, tile, lanes_of(lanes, t, 0));
      }
    });
    begin = end;
  }
}

template <class Decoder>
inline void panel_sums_by(const PanelView& panel, const TokenRows& tokens, Element* slab, float* lanes, float* sums) {
  if (tokens.count <= direct_limit(Decoder::kFormat)) {
    for_token_tiles<direct_tokens(Decoder::kFormat)>(tokens.count, [&](auto size, int64_t t) {
      direct_tile<Decoder, size.value>(panel, {tokens.x + t * tokens.stride, tokens.stride, size.value}, lanes);
      for (int i = 0; i < size.value; ++i) store(sums + (t + i) * kPanelRows, sum_lanes(lanes_of(lanes, i, 0)));
    });
  } else {
    slab_panel<Decoder>(panel, tokens, slab, lanes);
    for (int64_t t = 0; t < tokens.count; ++t) store(sums + t * kPanelRows, sum_lanes(lanes_of(lanes, t, 0)));
  }
}

// Multiplies the sums of a panel by the float32 scales that hold for all of K.
template <class Decoder>
inline void scale_sums(const PanelView& panel, int64_t num_tokens, float* sums) {
  float scales[kPanelRows];
  for (int r = 0; r < kPanelRows; ++r) scales[r] = panel.sum_scales[panel.scale_rows == 1 ? 0 : r];
  const F32 scale = load(scales);
  for (int64_t t = 0; t < num_tokens; ++t) {
    float* sum = sums + t * kPanelRows;
    const F32 exact = Decoder::kSumFactor == 1 ? load(sum) : mul(load(sum), broadcast(Decoder::kSumFactor));
    store(sum, mul(exact, scale));
  }
}

// Computes the sums of a panel that has no float32 scales, or some that hold for all of K.
template <class Decoder>
inline void plain_panel_sums(const PanelView& panel, const TokenRows& tokens, Element* slab, float* lanes,
                             float* sums) {
  if constexpr (has_ordinary<Decoder>(0)) {
    static_assert(Decoder::kSumFactor == Decoder::Ordinary::kSumFactor, "sums are scaled below");
    if (is_ordinary<Decoder>(panel.weights, panel.scales, panel.k_blocks)) {
      panel_sums_by<typename Decoder::Ordinary>(panel, tokens, slab, lanes, sums);
    } else {
      panel_sums_by<Decoder>(panel, tokens, slab, lanes, sums);
    }
  } else {
    panel_sums_by<Decoder>(panel, tokens, slab, lanes, sums);
  }
  if (panel.sum_scales != nullptr) scale_sums<Decoder>(panel, tokens.count, sums);
}

// Computes the sums of a panel of integers: integer_sums.h has it where Element is float32, avx512/integer_lanes.h
// where it is bfloat16.
template <class Decoder>
inline void integer_panel_sums(const PanelView& panel, const TokenRows& tokens, Element* slab, float* lanes,
                               float* sums);

// Computes sums[token][16 rows] of one panel.
template <class Decoder>
inline void panel_sums(const PanelView& panel, const TokenRows& tokens, Element* slab, float* lanes, float* sums) {
  if constexpr (is_integer(Decoder::kFormat)) {
    integer_panel_sums<Decoder>(panel, tokens, slab, lanes, sums);
  } else {
    if constexpr (kMayHaveSegments<Decoder>) {
      if (panel.range_blocks < panel.k_blocks) {
        return panel_sums_by<Segmented<Decoder>>(panel, tokens, slab, lanes, sums);
      }
    }
    plain_panel_sums<Decoder>(panel, tokens, slab, lanes, sums);
  }
}
