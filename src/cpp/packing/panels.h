// The packed layout of expert weights, one for all instruction sets.
//
// A panel is 16 output rows by all of K, cut in K-blocks of 32; rows and K are padded with zeros. Weights and
// block scales stand in two arrays, each panel contiguous over K. A K-block of a panel is four quads of four rows:
//
//   4 bits   64 bytes: 32 16-bit words, nibble i of word j is the code of row i at k = j. So one table look-up turns a
//            quad into the 32 weights of one row, and a shift by 4 gives the next row.
//   8 bits   128 bytes: two pairs of rows of 64 bytes; of a pair, bytes 16 l to 16 l + 7 are k = 8 l to 8 l + 7 of the
//            first row, the next eight those of the second. So unpacking low (high) bytes gives the first (second) row.
//   16 bits  256 bytes: four rows.
//
// Gate and up rows are permuted so that panel 2 p holds 16 gate rows and panel 2 p + 1 the same 16 up rows,
// whatever their order in the checkpoint.
//
// Float32 scales, which multiply sums, stand in a third array: [panel][range of K][1 or 16], one for each row or,
// where all rows of every panel share one, one for the panel. Matrices of any format may have one scale as a whole.
#pragma once

#include "common/types.h"

namespace mxfp4moe {

// Changes with the layout; packed files carry it.
constexpr int kLayoutVersion = 1;

// What a weight format needs for a K-block of a panel.
struct BlockLayout {
  int32_t weight_bytes;
  int32_t scale_bytes;  // of block scales
  bool sum_blocks;      // float32 scales of blocks of any shape

  constexpr int32_t weight_bits() const { return weight_bytes * 8 / (kPanelRows * kBlockK); }
};

constexpr BlockLayout block_layout(WeightFormat format) {
  switch (format) {
    case WeightFormat::kMxfp4: return {256, 16, false};
    case WeightFormat::kNvfp4: return {256, 32, false};
    case WeightFormat::kMxfp8E4m3:
    case WeightFormat::kMxfp8E5m2: return {512, 16, false};
    case WeightFormat::kFp8Block: return {512, 0, true};
    case WeightFormat::kBf16: break;
  }
  return {1024, 0, false};
}

// A packed matrix, or the same matrix of every expert one after the other; weights are 64-byte aligned.
struct PackedMatrix {
  int64_t num_panels;    // of one expert
  int64_t k_blocks;      // of a panel
  int64_t num_ranges;    // ranges of K that have float32 scales of their own, or 0
  int64_t range_blocks;  // K-blocks of a range
  int64_t scale_rows;    // float32 scales of a panel and range: 1 or 16
  const uint8_t* weights;
  const uint8_t* scales;
  const float* sum_scales;  // [panels][ranges][scale_rows], or null
  const float* bias;        // [panels][16], or null
};

inline PackedMatrix expert_matrix(const PackedMatrix& all, WeightFormat format, int64_t expert) {
  const BlockLayout block = block_layout(format);
  const int64_t panels = expert * all.num_panels, blocks = panels * all.k_blocks;
  PackedMatrix m = all;
  m.weights += blocks * block.weight_bytes;
  if (m.scales != nullptr) m.scales += blocks * block.scale_bytes;
  if (m.sum_scales != nullptr) m.sum_scales += panels * all.num_ranges * all.scale_rows;
  if (m.bias != nullptr) m.bias += panels * kPanelRows;
  return m;
}

// Products of a pair of panels with the hidden states of some tokens.
inline int64_t pair_products(const PackedMatrix& m, int64_t num_tokens) {
  return 2 * kPanelRows * kBlockK * m.k_blocks * num_tokens;
}

// How rows of a source matrix map to rows of the packed one.
enum class RowOrder : int32_t {
  kPlain,         // packed row r is source row r
  kConcatenated,  // gate rows, then up rows
  kInterleaved,   // gate_0, up_0, gate_1, ...
};

// Row of a source with `num_rows` rows that stands in packed row `row`; -1 for padding.
int64_t source_row(RowOrder order, int64_t row, int64_t num_rows);

// One matrix of one expert: C-contiguous rows of weights, and of block scales or null. For a (gate, up) pair of
// arrays, `up_*` are the second array and each has num_rows / 2 rows.
struct SourceMatrix {
  WeightFormat format;
  DType dtype;  // of kBf16: kBFloat16, or what is rounded to it
  const uint8_t* weights;
  const uint8_t* scales;
  const uint8_t* up_weights;  // null unless a pair
  const uint8_t* up_scales;
  int64_t num_rows;
  int64_t k;
  RowOrder order;
};

// The arrays of one matrix of one packed expert.
struct PackedBytes {
  uint8_t* weights;
  uint8_t* scales;
  int64_t num_panels;
};

void pack_matrix(const SourceMatrix& source, const PackedBytes& packed, int num_threads);
// The inverse, into C-contiguous arrays of the source's shape; the pointers of `shape` are not used.
void unpack_matrix(const SourceMatrix& shape, const PackedBytes& packed, uint8_t* weights, uint8_t* scales,
                   int num_threads);

// Where the float32 scales of a matrix come from: [row blocks][ranges of K], gate and up blocked apart or not.
struct SumScaleBlocks {
  int64_t block_rows;
  bool apart;
  RowOrder order;
  int64_t num_rows;

  // Row of the scales of source row `row`.
  int64_t of_row(int64_t row) const {
    if (!apart) return row / block_rows;
    const int64_t half = num_rows / 2;
    const bool up = order == RowOrder::kInterleaved ? row % 2 != 0 : row >= half;
    const int64_t intermediate = order == RowOrder::kInterleaved ? row / 2 : row - (up ? half : 0);
    return (up ? ceil_div(half, block_rows) : 0) + intermediate / block_rows;
  }
};

// `packed` is [num_panels][num_ranges][scale_rows]; scale_rows is 1 or 16. Rows of padding get 0.
struct PackedSumScales {
  float* data;
  int64_t num_panels;
  int64_t num_ranges;
  int64_t scale_rows;
};

void pack_sum_scales(const SumScaleBlocks& blocks, const float* scales, const PackedSumScales& packed);
void unpack_sum_scales(const SumScaleBlocks& blocks, const PackedSumScales& packed, float* scales);

// The bias of one matrix of one packed expert: [num_panels][16] in the order of packed rows, 0 for rows of padding.
struct PackedBias {
  float* data;
  int64_t num_panels;
};

void pack_bias(RowOrder order, int64_t num_rows, const float* bias, const PackedBias& packed);
void unpack_bias(RowOrder order, int64_t num_rows, const PackedBias& packed, float* bias);

}  // namespace mxfp4moe
