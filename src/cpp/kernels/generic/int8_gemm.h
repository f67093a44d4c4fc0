// The GEMM of weights by activations of eight bits.
//
// SHAPES       one panel (16 rows, K) of packed weights by m tokens (rows of QuantizedBlock).
// DEFINITION   sum[row][token] starts from 0; for each K-block in order, or each half of one that has its own scale:
//              sum = sum + (integer * x_scale) * w_scale. The integer is the exact sum of the products of integers;
//              each product and each sum of floats is rounded once. What offsets add is sum_of_offsets().
// ORDER        A lane is a row, so that no instruction set has another order.
//
// Codes become bytes that are not negative, by an offset that counts as a zero point: E2M1 as twice the value plus 12.
// The products of zero points and activations come from the sums of a QuantizedBlock.
//
// There are two paths. direct: for few tokens; weights are decoded in registers and used at once. slab: the bytes of
// several K-blocks are written into L1 and used for all tokens.
//
// THE CONTRACT OF int8_dot.h: a panel is kHalves vectors. Types Bytes (four consecutive k of each row), Ints (sums) and
// Floats; kDirectTokens, the most tokens of a direct walk, and kTileSizes: one of a slab has up to 2^(kTileSizes - 1);
// kByteOffset, the offset of signed codes; kWideProducts, whether products of those need functions of their own,
// <kWide>; functions load_weights, store_weights, repeat (four k of a token for each row), begin<kWide>(zeros, sums),
// dot<kWide>(ints, weights, x), to_floats<kWide>, load_floats, store_floats, add_term(sum, f, x_scale, w_scale).
//
//                 portable  avx2   avxvnni  avx512vnni
//   kHalves       1         2      2        1           vectors of a panel
//   kDirectTokens 0         2      2        2           the most tokens of a direct walk
//   kTileSizes    1         3      3        4           a tile has up to 1, 4, 4 and 8 tokens
//   kByteOffset   128       0      128      128         dot products take bytes that are not negative by signed ones
//   kWideProducts false     true   false    false       vpmaddubsw saturates, so that codes of eight bits need others
//
// THE CONTRACT OF int8_decode.h: decode_e2m1, decode_int4 and decode_int8(block, Index<unit>, w) write the bytes of
// eight consecutive k of a K-block of a panel, two vectors for each of the kHalves; e8m0_scales, e4m3_scales<half>,
// float_scales and one_scale; zero_pairs<mask, offset>, minus the zero points and the offset, twice in a lane;
// order_rows, which puts the sums of a token in the order of rows.
//
// Included inside a kernel table's own namespace, after these two and segments.h.

// The weight formats: what a K-block of a panel is. The scales of integers may belong to halves of K-blocks.
template <WeightFormat kFormat_, bool kHalfGroups_ = false>
struct Int8Format {
  static constexpr WeightFormat kFormat = kFormat_;
  static constexpr bool kHalfGroups = kHalfGroups_;
  static constexpr bool kIntegers = is_integer(kFormat);
  static constexpr bool kNibbles = block_layout(kFormat).weight_bits() == 4;
  static constexpr bool kWide = kWideProducts && !kNibbles;
  static constexpr int kParts = kHalfGroups || kFormat == WeightFormat::kNvfp4 ? 2 : 1;  // each with a scale
  static constexpr float kSumFactor = kIntegers ? 1.0f : 0.5f;
};

// A panel, and the scales, offsets and zero points that belong to it.
struct Int8Panel {
  const uint8_t* weights;
  const uint8_t* scales;
  int64_t k_blocks;
  const float* sum_scales;
  const float* offsets;
  int64_t num_ranges;
  int64_t range_blocks;
  int64_t scale_rows;
};

// The bytes of memory that the scales of a panel of rows of `k` weights may be written to.
constexpr int64_t scale_buffer_bytes(int64_t k) { return panel_scale_floats(k) * 4; }

inline Int8Panel int8_panel(const PackedMatrix& m, int64_t panel, float* buffer) {
  const BlockLayout layout = block_layout(m.format);
  const int64_t blocks = panel * m.k_blocks, floats = sum_scale_floats(m.k_blocks * kBlockK);
  const uint8_t* scales = m.scales + blocks * layout.scale_bytes;
  if (is_integer(m.format) && layout.scale_bytes == 0) {
    uint8_t* zeros = reinterpret_cast<uint8_t*>(buffer + 2 * floats);
    std::memset(zeros, implied_zero(m.format), static_cast<size_t>(m.k_blocks * kPanelRows));
    scales = zeros;
  }
  return {m.weights + blocks * layout.weight_bytes,
          scales,
          m.k_blocks,
          panel_floats(m, m.sum_scales, panel, buffer),
          panel_floats(m, m.offsets, panel, buffer + floats),
          m.num_ranges,
          m.range_blocks,
          m.scale_rows};
}

struct TokenBlocks {
  const QuantizedBlock* x;
  int64_t stride;  // blocks
  int64_t count;
  const float* range_sums;  // of sum_ranges(), if the matrix has offsets
};

// Sums tokens over each range of K of a matrix: a block has the sum of its integers times its scale.
inline void sum_ranges(const PackedMatrix& m, const TokenBlocks& tokens, float* sums) {
  const int parts = m.range_blocks == 0 ? 2 : 1;
  for (int64_t t = 0; t < tokens.count; ++t) {
    const QuantizedBlock* x = tokens.x + t * tokens.stride;
    float* of_ranges = sums + t * m.num_ranges;
    for (int64_t range = 0; range < m.num_ranges; ++range) of_ranges[range] = 0;
    for (int64_t kb = 0; kb < m.k_blocks; ++kb) {
      for (int part = 0; part < parts; ++part) {
        const int16_t (&of_block)[2] = x[kb].sums[parts == 1 ? 0 : 1 + part];
        const int64_t range = parts == 1 ? kb / m.range_blocks : 2 * kb + part;
        if (range == m.num_ranges) break;  // the last half is padding
        of_ranges[range] += static_cast<float>(of_block[0] + of_block[1]) * x[kb].scale;
      }
    }
  }
}

// A K-block that has been decoded.
struct DecodedBlock {
  alignas(64) uint8_t weights[kBlockK / 4 * kPanelRows * 4];
  float scales[2][kPanelRows];
  int32_t zeros[kPanelRows];
};

// What remains of L1 is for activations and sums.
constexpr int64_t kInt8SlabBlocks = 16;

// Where a panel is decoded.
struct PanelMemory {
  DecodedBlock* slab;  // [kInt8SlabBlocks]
  float* scales;       // scale_buffer_bytes()
};

// K-blocks that are decoded where they are used.
template <class Format_>
class DirectBlocks {
 public:
  using Format = Format_;

  MXFP4MOE_INLINE DirectBlocks(const Int8Panel& panel, int64_t first)
      : weights_(panel.weights + first * kWeightBytes<Format>),
        scales_(panel.scales + first * kScaleBytes<Format>),
        sum_scales_(panel.sum_scales),
        end_of_scales_(panel.sum_scales + panel.num_ranges * panel.scale_rows),
        range_blocks_(panel.range_blocks),
        scale_rows_(panel.scale_rows) {
    if constexpr (Format::kHalfGroups) {
      sum_scales_ += 2 * first * scale_rows_;
    } else if constexpr (Format::kIntegers) {
      sum_scales_ += first / range_blocks_ * scale_rows_;
      left_ = range_blocks_ - first % range_blocks_;
    }
  }

  template <class Unit>
  MXFP4MOE_INLINE void bytes(Unit unit, Bytes (&w)[2][kHalves]) const {
    if constexpr (unit.value == 0) {  // memory is read in one stream
      unroll<kWeightBytes<Format> / 64>(
          [&](auto line) MXFP4MOE_INLINE_LAMBDA { __builtin_prefetch(weights_ + kAhead + 64 * line.value, 0, 2); });
      constexpr int kScalesAhead = kAhead / kWeightBytes<Format> * kScaleBytes<Format>;
      if (kScalesAhead != 0) __builtin_prefetch(scales_ + kScalesAhead, 0, 2);
    }
    if constexpr (!Format::kIntegers) {
      decode_e2m1(weights_, unit, w);
    } else if constexpr (Format::kNibbles) {
      decode_int4(weights_, unit, w);
    } else {
      decode_int8(weights_, unit, w);
    }
  }

  template <class Part>
  MXFP4MOE_INLINE void scales(Part, Floats (&scales)[kHalves]) const {
    if constexpr (Format::kFormat == WeightFormat::kMxfp4) {
      e8m0_scales(scales_, scales);
    } else if constexpr (Format::kFormat == WeightFormat::kNvfp4) {
      e4m3_scales<Part::value>(scales_, scales);
    } else {
      const float* of_part = sum_scales_ + Part::value * scale_rows_;
      if (Format::kHalfGroups && of_part == end_of_scales_) {  // the last half is padding
        one_scale(0.0f, scales);
      } else if (scale_rows_ == 1) {
        one_scale(*of_part, scales);
      } else {
        float_scales(of_part, scales);
      }
    }
  }

  MXFP4MOE_INLINE void zeros(Ints (&zeros)[kHalves]) const {
    if constexpr (!Format::kIntegers) {
      for (int h = 0; h < kHalves; ++h) zeros[h] = repeat_pair(-12);
    } else {
      zero_pairs<Format::kNibbles ? 15 : 0xff, Format::kNibbles ? 0 : kByteOffset>(scales_, zeros);
    }
  }

  MXFP4MOE_INLINE void next() {
    weights_ += kWeightBytes<Format>;
    scales_ += kScaleBytes<Format>;
    if (Format::kHalfGroups) {
      sum_scales_ += 2 * scale_rows_;
    } else if (Format::kIntegers && --left_ == 0) {
      left_ = range_blocks_;
      sum_scales_ += scale_rows_;
    }
  }

 private:
  static constexpr int kAhead = 8192;

  const uint8_t* weights_;
  const uint8_t* scales_;
  const float* sum_scales_;
  const float* end_of_scales_;
  int64_t range_blocks_, scale_rows_, left_ = 0;
};

// All that the tiles of a slab need to know of a format: how many scales a K-block has, and whether its codes need wide
// products. Formats that agree in both share the code.
template <int kParts_, bool kWide_>
struct Int8Kind {
  static constexpr int kParts = kParts_;
  static constexpr bool kWide = kWide_;
};

// K-blocks that decode_slab() has written.
template <class Kind>
class SlabBlocks {
 public:
  using Format = Kind;

  explicit MXFP4MOE_INLINE SlabBlocks(const DecodedBlock* slab) : block_(slab) {}

  template <class Unit>
  MXFP4MOE_INLINE void bytes(Unit unit, Bytes (&w)[2][kHalves]) const {
    for (int i = 0; i < 2; ++i) {
      for (int h = 0; h < kHalves; ++h) {
        w[i][h] = load_weights(block_->weights + ((2 * unit.value + i) * kHalves + h) * (kPanelRows * 4 / kHalves));
      }
    }
  }
  template <class Part>
  MXFP4MOE_INLINE void scales(Part, Floats (&scales)[kHalves]) const {
    for (int h = 0; h < kHalves; ++h) scales[h] = load_floats(block_->scales[Part::value] + h * kPanelRows / kHalves);
  }
  MXFP4MOE_INLINE void zeros(Ints (&zeros)[kHalves]) const {
    for (int h = 0; h < kHalves; ++h) zeros[h] = load_ints(block_->zeros + h * kPanelRows / kHalves);
  }
  MXFP4MOE_INLINE void next() { ++block_; }

 private:
  const DecodedBlock* block_;
};

// Adds the terms of some K-blocks to the sums of some tokens, [token][16 rows in the order of the vectors].
template <class Blocks, int kTokens>
MXFP4MOE_INLINE void add_blocks(Blocks blocks, int64_t count, const TokenBlocks& tokens, float* sums) {
  using Format = typename Blocks::Format;
  constexpr bool kWide = Format::kWide;
  constexpr int kParts = Format::kParts, kUnits = 4 / kParts, kVector = kPanelRows / kHalves;
  Floats sum[kTokens][kHalves];
  unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA {
    unroll<kHalves>([&](auto h) MXFP4MOE_INLINE_LAMBDA {
      sum[t.value][h.value] = load_floats(sums + t.value * kPanelRows + h.value * kVector);
    });
  });
  const QuantizedBlock* x = tokens.x;
  const int64_t stride = tokens.stride;
  for (int64_t kb = 0; kb < count; ++kb, ++x, blocks.next()) {
    Ints zeros[kHalves];
    blocks.zeros(zeros);
    unroll<kParts>([&](auto part) MXFP4MOE_INLINE_LAMBDA {
      constexpr int kSums = kParts == 1 ? 0 : 1 + part.value;
      Ints acc[kTokens][kHalves];
      unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA {
        unroll<kHalves>([&](auto h) MXFP4MOE_INLINE_LAMBDA {
          acc[t.value][h.value] = begin<kWide>(zeros[h.value], x[t.value * stride].sums[kSums]);
        });
      });
      unroll<kUnits>([&](auto u) MXFP4MOE_INLINE_LAMBDA {
        constexpr Index<part.value * kUnits + u.value> unit{};
        Bytes w[2][kHalves];
        blocks.bytes(unit, w);
        unroll<2>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
          unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA {
            const Bytes values = repeat(x[t.value * stride].values + 8 * unit.value + 4 * i.value);
            unroll<kHalves>([&](auto h) MXFP4MOE_INLINE_LAMBDA {
              acc[t.value][h.value] = dot<kWide>(acc[t.value][h.value], w[i.value][h.value], values);
            });
          });
        });
      });
      Floats scales[kHalves];
      blocks.scales(part, scales);
      unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA {
        unroll<kHalves>([&](auto h) MXFP4MOE_INLINE_LAMBDA {
          Floats& s = sum[t.value][h.value];
          s = add_term(s, to_floats<kWide>(acc[t.value][h.value]), x[t.value * stride].scale, scales[h.value]);
        });
      });
    });
  }
  unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA {
    unroll<kHalves>([&](auto h) MXFP4MOE_INLINE_LAMBDA {
      store_floats(sums + t.value * kPanelRows + h.value * kVector, sum[t.value][h.value]);
    });
  });
}

template <class Format, int kTokens>
MXFP4MOE_NOINLINE void direct_panel(const Int8Panel& panel, const TokenBlocks& tokens, float* sums) {
  add_blocks<DirectBlocks<Format>, kTokens>(DirectBlocks<Format>(panel, 0), panel.k_blocks, tokens, sums);
}

template <class Kind, int kTokens>
MXFP4MOE_NOINLINE void slab_tile(const DecodedBlock* slab, int64_t count, const TokenBlocks& tokens, float* sums) {
  add_blocks<SlabBlocks<Kind>, kTokens>(SlabBlocks<Kind>(slab), count, tokens, sums);
}

template <class Format>
MXFP4MOE_NOINLINE void decode_slab(const Int8Panel& panel, int64_t first, int64_t count, DecodedBlock* slab) {
  constexpr int kVector = kPanelRows / kHalves;
  DirectBlocks<Format> blocks(panel, first);
  for (int64_t kb = 0; kb < count; ++kb, ++slab, blocks.next()) {
    unroll<4>([&](auto unit) MXFP4MOE_INLINE_LAMBDA {
      Bytes w[2][kHalves];
      blocks.bytes(unit, w);
      for (int i = 0; i < 2; ++i) {
        for (int h = 0; h < kHalves; ++h) {
          store_weights(slab->weights + ((2 * unit.value + i) * kHalves + h) * (kVector * 4), w[i][h]);
        }
      }
    });
    unroll<Format::kParts>([&](auto part) MXFP4MOE_INLINE_LAMBDA {
      Floats scales[kHalves];
      blocks.scales(part, scales);
      for (int h = 0; h < kHalves; ++h) store_floats(slab->scales[part.value] + h * kVector, scales[h]);
    });
    Ints zeros[kHalves];
    blocks.zeros(zeros);
    for (int h = 0; h < kHalves; ++h) store_ints(slab->zeros + h * kVector, zeros[h]);
  }
}

// Adds what offsets make of the sums of one panel.
inline void add_offsets(const Int8Panel& panel, const TokenBlocks& tokens, float* sums) {
  const auto offset_of = [&](int64_t range) {
    return panel.scale_rows == 1 ? broadcast(panel.offsets[range]) : load(panel.offsets + range * kPanelRows);
  };
  for (int64_t t = 0; t < tokens.count; ++t) {
    const auto sum_of = [&](int64_t range) { return broadcast(tokens.range_sums[t * panel.num_ranges + range]); };
    float* sum = sums + t * kPanelRows;
    store(sum, add(load(sum), sum_of_offsets(panel.num_ranges, offset_of, sum_of)));
  }
}

// What is computed for a weight format; all else is the same for all of them, and compiled once.
struct FormatFunctions {
  void (*direct[kDirectTokens + 1])(const Int8Panel& panel, const TokenBlocks& tokens,
                                    float* sums);  // direct[n]: n tokens
  void (*decode)(const Int8Panel& panel, int64_t first, int64_t count, DecodedBlock* slab);
  void (*tile[kTileSizes])(const DecodedBlock* slab, int64_t count, const TokenBlocks& tokens,
                           float* sums);  // tile[i]: 2^i
  int64_t direct_tokens;
  float sum_factor;
  bool has_tensor_scale;  // whether the scales of sums, if there are any, are those of whole matrices
};

template <class Format, int kTokens>
constexpr void set_direct(FormatFunctions* f) {
  if constexpr (kTokens > 0) {
    f->direct[kTokens] = direct_panel<Format, kTokens>;
    set_direct<Format, kTokens - 1>(f);
  }
}

template <class Kind, int kSize>
constexpr void set_tiles(FormatFunctions* f) {
  f->tile[kSize] = slab_tile<Kind, 1 << kSize>;
  if constexpr (kSize > 0) set_tiles<Kind, kSize - 1>(f);
}

template <class Format>
constexpr FormatFunctions functions_of() {
  FormatFunctions f{};
  f.decode = decode_slab<Format>;
  f.direct_tokens = Format::kHalfGroups ? 0 : kDirectTokens;
  set_direct<Format, Format::kHalfGroups ? 0 : kDirectTokens>(&f);
  set_tiles<Int8Kind<Format::kParts, Format::kWide>, kTileSizes - 1>(&f);
  f.sum_factor = Format::kSumFactor;
  f.has_tensor_scale = !Format::kIntegers;
  return f;
}

constexpr FormatFunctions kOfMxfp4 = functions_of<Int8Format<WeightFormat::kMxfp4>>();
constexpr FormatFunctions kOfNvfp4 = functions_of<Int8Format<WeightFormat::kNvfp4>>();
constexpr FormatFunctions kOfInt4 = functions_of<Int8Format<WeightFormat::kInt4Zeros>>();
constexpr FormatFunctions kOfInt8 = functions_of<Int8Format<WeightFormat::kInt8Zeros>>();
constexpr FormatFunctions kOfInt4Halves = functions_of<Int8Format<WeightFormat::kInt4Zeros, true>>();
constexpr FormatFunctions kOfInt8Halves = functions_of<Int8Format<WeightFormat::kInt8Zeros, true>>();

inline const FormatFunctions& functions_for(const PackedMatrix& m) {
  if (m.format == WeightFormat::kMxfp4) return kOfMxfp4;
  if (m.format == WeightFormat::kNvfp4) return kOfNvfp4;
  const bool halves = m.range_blocks == 0;
  if (block_layout(m.format).weight_bits() == 4) return halves ? kOfInt4Halves : kOfInt4;
  return halves ? kOfInt8Halves : kOfInt8;
}

// Computes sums[token][16 rows] of a panel of a matrix.
MXFP4MOE_NOINLINE void int8_panel_sums(const PackedMatrix& m, int64_t index, const TokenBlocks& tokens,
                                       const PanelMemory& memory, float* sums) {
  const FormatFunctions& f = functions_for(m);
  const Int8Panel panel = int8_panel(m, index, memory.scales);
  std::memset(sums, 0, static_cast<size_t>(tokens.count) * kPanelRows * 4);
  if (tokens.count <= f.direct_tokens) {
    f.direct[tokens.count](panel, tokens, sums);
  } else {
    for (int64_t block = 0; block < panel.k_blocks; block += kInt8SlabBlocks) {
      const int64_t left = panel.k_blocks - block, count = left < kInt8SlabBlocks ? left : kInt8SlabBlocks;
      f.decode(panel, block, count, memory.slab);
      int size = kTileSizes - 1;
      for (int64_t t = 0; t < tokens.count; t += 1 << size) {
        while (1 << size > tokens.count - t) --size;
        const TokenBlocks tile{tokens.x + t * tokens.stride + block, tokens.stride, 1 << size, nullptr};
        f.tile[size](memory.slab, count, tile, sums + t * kPanelRows);
      }
    }
  }
  // The factor of the format, and the scale of a whole matrix, if there is one.
  const bool has_scale = f.has_tensor_scale && panel.sum_scales != nullptr;
  for (int64_t t = 0; t < tokens.count; ++t) {
    float* sum = sums + t * kPanelRows;
    order_rows(sum);
    F32 value = mul(load(sum), broadcast(f.sum_factor));
    if (has_scale) value = mul(value, panel.scale_rows == 1 ? broadcast(*panel.sum_scales) : load(panel.sum_scales));
    store(sum, value);
  }
  if (panel.offsets != nullptr) add_offsets(panel, tokens, sums);
}
