// The packed layout of expert weights, which is the same for all instruction sets.
//
// A panel is 16 output rows by all of K, cut in K-blocks of 32. Rows and K are padded with zeros. Weights and block
// scales stand in two arrays, in which the K-blocks of a panel follow each other:
//
//   weights   panel 0: [K-block 0][K-block 1] ...   panel 1: [K-block 0][K-block 1] ...
//   a K-block         [quad of rows 0-3][quad of rows 4-7][quad of rows 8-11][quad of rows 12-15]
//   its block scales  [row 0][row 1] ... [row 15], one byte each (two for NVFP4, of k < 16 and of k >= 16)
//
// The zero points of integers, which belong to groups of K-blocks of a row, stand in the place of block scales, those
// of a group once for each of its K-blocks.
//
// The bytes of a quad of rows r0, r1, r2, r3:
//
//   4 bits: 64 bytes, two for each k
//     byte          0       1       2       3              62      63
//                +-------+-------+-------+-------+--   --+-------+-------+
//     low nibble |  r0   |  r2   |  r0   |  r2   |  ...  |  r0   |  r2   |
//     high       |  r1   |  r3   |  r1   |  r3   |       |  r1   |  r3   |
//                +-------+-------+-------+-------+--   --+-------+-------+
//     k            0       0       1       1               31      31
//     As 16-bit words, nibble i of word k is the code of row i: one table look-up turns the quad into the 32 weights of
//     a row, and a shift by 4 brings the next row.
//
//   8 bits: 128 bytes, 64 for each pair of rows
//     bytes        0-7     8-15    16-23   24-31   32-39   40-47   48-55   56-63   64-71 ...
//                +-------+-------+-------+-------+-------+-------+-------+-------+-------+--
//                |  r0   |  r1   |  r0   |  r1   |  r0   |  r1   |  r0   |  r1   |  r2   |  ...
//                +-------+-------+-------+-------+-------+-------+-------+-------+-------+--
//     k            0-7     0-7     8-15    8-15    16-23   16-23   24-31   24-31   0-7
//     Unpacking the low bytes of each 16 gives the first row of the pair, unpacking the high ones gives the second.
//
//   16 bits: 256 bytes, the 32 weights of r0, then those of r1, r2 and r3.
//
// Gate and up rows are permuted so that panel 2 p holds 16 gate rows and panel 2 p + 1 the same 16 up rows, whatever
// their order in the checkpoint. Experts without a gate have up rows alone, in their order.
//
// Float32 scales, which multiply sums, stand in a third array, [panel][range of K][1 or 16]: one for each row, or one
// for the panel where the rows of every panel share it. A matrix of any format may have a single one. Scales that came
// in 16 bits stay in 16 bits. The offsets of integers, which are added to each weight of their range, stand in another
// array of the same kind.
#pragma once

#include "common/types.h"
#include "platform/exported.h"

namespace mxfp4moe {

// This number changes whenever the layout does; packed files carry it.
constexpr int kLayoutVersion = 1;

// What a weight format needs for a K-block of a panel.
struct BlockLayout {
  int32_t weight_bytes;
  int32_t scale_bytes;  // bytes of block scales, or of zero points
  bool sum_blocks;      // whether blocks of any shape have float32 scales

  constexpr int32_t weight_bits() const { return weight_bytes * 8 / (kPanelRows * kBlockK); }
};

constexpr BlockLayout block_layout(WeightFormat format) {
  switch (format) {
    case WeightFormat::kMxfp4: return {256, 16, false};
    case WeightFormat::kNvfp4: return {256, 32, false};
    case WeightFormat::kMxfp8E4m3:
    case WeightFormat::kMxfp8E5m2: return {512, 16, false};
    case WeightFormat::kFp8Block: return {512, 0, true};
    case WeightFormat::kInt4:
    case WeightFormat::kInt4Offsets: return {256, 0, true};
    case WeightFormat::kInt4Zeros: return {256, 16, true};
    case WeightFormat::kInt8:
    case WeightFormat::kInt8Offsets: return {512, 0, true};
    case WeightFormat::kInt8Zeros: return {512, 16, true};
    case WeightFormat::kBf16: break;
  }
  return {1024, 0, false};
}

constexpr bool is_integer(WeightFormat format) { return format >= WeightFormat::kInt4; }
constexpr bool has_offsets(WeightFormat format) { return format >= WeightFormat::kInt4Offsets; }

// The zero point of integers whose format stores none. Those with offsets count codes from the lowest one.
constexpr int implied_zero(WeightFormat format) {
  switch (format) {
    case WeightFormat::kInt4: return 8;
    case WeightFormat::kInt8Offsets: return -128;
    default: return 0;
  }
}

// A packed matrix, or the same matrix of all experts one after the other. Weights are 64-byte aligned.
struct PackedMatrix {
  WeightFormat format;
  DType sum_dtype;       // of the float32 scales and offsets: float32, or the type of 16 bits in which they came
  int64_t num_panels;    // the panels of one expert
  int64_t k_blocks;      // the K-blocks of a panel
  int64_t num_ranges;    // K is cut in so many ranges that have float32 scales of their own; 0 without such scales
  int64_t range_blocks;  // the K-blocks of a range; 0 stands for half a K-block, which integers alone may have
  int64_t scale_rows;    // 1 or 16 float32 scales for each panel and range
  const uint8_t* weights;
  const uint8_t* scales;
  const uint8_t* sum_scales;  // [panels][ranges][scale_rows] of sum_dtype, or null
  const uint8_t* offsets;     // as the scales, or null
  const float* bias;          // [panels][16], or null
  const int32_t* places;      // the place in memory of each expert that is counted, or null if all are
};

// The columns of a range of K that has float32 scales of its own.
constexpr int64_t range_columns(int64_t range_blocks) {
  return range_blocks == 0 ? kBlockK / 2 : range_blocks * kBlockK;
}

// Returns the matrix without its first `panels` panels.
inline PackedMatrix skip_panels(const PackedMatrix& all, int64_t panels) {
  const BlockLayout block = block_layout(all.format);
  const int64_t blocks = panels * all.k_blocks;
  PackedMatrix m = all;
  m.weights += blocks * block.weight_bytes;
  if (m.scales != nullptr) m.scales += blocks * block.scale_bytes;
  const int64_t sum_bytes = panels * all.num_ranges * all.scale_rows * value_bytes(all.sum_dtype);
  if (m.sum_scales != nullptr) m.sum_scales += sum_bytes;
  if (m.offsets != nullptr) m.offsets += sum_bytes;
  if (m.bias != nullptr) m.bias += panels * kPanelRows;
  return m;
}

// Returns the place of an expert among those in memory.
inline int64_t place_of(const PackedMatrix& all, int64_t expert) {
  return all.places == nullptr ? expert : all.places[expert];
}

inline PackedMatrix expert_matrix(const PackedMatrix& all, int64_t expert) {
  return skip_panels(all, place_of(all, expert) * all.num_panels);
}

// Counts the products of a pair of panels with the hidden states of some tokens.
inline int64_t pair_products(const PackedMatrix& m, int64_t num_tokens) {
  return 2 * kPanelRows * kBlockK * m.k_blocks * num_tokens;
}

// Counts the pairs of panels of w13 that give a K-block of the intermediate.
inline int64_t block_pairs(const PackedMatrix& w13, int64_t intermediate_size) {
  return w13.num_panels / 2 / ceil_div(intermediate_size, kBlockK);
}

// In which order the rows of the source matrix stand.
enum class RowOrder : int32_t {
  kPlain,         // packed row r is source row r
  kConcatenated,  // all gate rows come first, then all up rows
  kInterleaved,   // gate and up rows alternate: gate_0, up_0, gate_1, ...
};

// Returns the row of a source of `num_rows` rows that becomes packed row `row`, or -1 for padding.
int64_t source_row(RowOrder order, int64_t row, int64_t num_rows);

// This is one matrix of one expert as it comes: C-contiguous rows of weights, and of block scales if it has some. Gate
// and up may come as two arrays of num_rows / 2 rows; `up_*` are then the second ones.
struct SourceMatrix {
  WeightFormat format;
  DType dtype;  // for kBf16: kBFloat16, or a type that is rounded to it
  const uint8_t* weights;
  const uint8_t* scales;
  const uint8_t* up_weights;  // null unless gate and up are two arrays
  const uint8_t* up_scales;
  int64_t num_rows;
  int64_t k;
  RowOrder order;
  // How many terms a weight of format kBf16 has: with more than one, each weight becomes the sum of so many bfloat16
  // numbers, exactly (see bf16_term). Term t of panel p is packed panel num_terms * p + t.
  int64_t num_terms = 1;
};

// The arrays of one matrix of one packed expert.
struct PackedBytes {
  uint8_t* weights;
  uint8_t* scales;
  int64_t num_panels;  // of one term
  // A source may hold only some panels of the matrix: the first of them becomes panel `first_panel`. `weights` points
  // to panel 0.
  int64_t first_panel = 0;
  int64_t source_panels = -1;  // -1 for all
};

void pack_matrix(const SourceMatrix& source, const PackedBytes& packed, int num_threads) MXFP4MOE_EXPORTED(pack_matrix);
// Unpacks into C-contiguous arrays of the shape of the source; the pointers of `shape` are not used. Weights of several
// terms are float32.
void unpack_matrix(const SourceMatrix& shape, const PackedBytes& packed, uint8_t* weights, uint8_t* scales,
                   int num_threads) MXFP4MOE_EXPORTED(unpack_matrix);

// Counts the terms that the weights of a kBf16 source need to be exact: 1 to 3.
int64_t count_terms(const SourceMatrix& source, int num_threads) MXFP4MOE_EXPORTED(count_terms);

// How the float32 scales of a matrix come: [row blocks][ranges of K], with blocks of `block_rows` rows. If gate and up
// are `apart`, the blocks of up begin anew after those of gate.
struct SumScaleBlocks {
  int64_t block_rows;
  bool apart;
  RowOrder order;
  int64_t num_rows;

  // Returns the row of the scales that source row `row` uses.
  int64_t of_row(int64_t row) const {
    if (!apart) return row / block_rows;
    const int64_t half = num_rows / 2;
    const bool up = order == RowOrder::kInterleaved ? row % 2 != 0 : row >= half;
    const int64_t intermediate = order == RowOrder::kInterleaved ? row / 2 : row - (up ? half : 0);
    return (up ? ceil_div(half, block_rows) : 0) + intermediate / block_rows;
  }
};

// The packed float32 scales, or the offsets, [num_panels][num_ranges][scale_rows] with 1 or 16 scale_rows. Rows of
// padding get 0.
struct PackedSumScales {
  uint8_t* data;
  DType dtype;  // here and in the source
  int64_t num_panels;
  int64_t num_ranges;
  int64_t scale_rows;
};

void pack_sum_scales(const SumScaleBlocks& blocks, const uint8_t* scales, const PackedSumScales& packed)
    MXFP4MOE_EXPORTED(pack_sum_scales);
// The scale of a block is stored once for each panel that the block reaches. Returns whether all of these are the same
// bits, as they are wherever `pack_sum_scales` wrote them.
bool unpack_sum_scales(const SumScaleBlocks& blocks, const PackedSumScales& packed, uint8_t* scales)
    MXFP4MOE_EXPORTED(unpack_sum_scales);

// The bias of one matrix of one packed expert: [num_panels][16] in the order of packed rows, 0 for rows of padding.
struct PackedBias {
  float* data;
  int64_t num_panels;
};

void pack_bias(RowOrder order, int64_t num_rows, const float* bias, const PackedBias& packed)
    MXFP4MOE_EXPORTED(pack_bias);
void unpack_bias(RowOrder order, int64_t num_rows, const PackedBias& packed, float* bias)
    MXFP4MOE_EXPORTED(unpack_bias);

}  // namespace mxfp4moe
