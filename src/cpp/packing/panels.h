// The packed layout of MXFP4, one for all instruction sets.
//
// A panel is 16 output rows by all of K, cut in K-blocks of 32. Weights: 256 bytes a (panel, K-block), scales: 16
// bytes (one per row), in two arrays, each panel contiguous over K. The 256 bytes are four 64-byte quads; quad g
// holds 32 16-bit words, and nibble i of word j is the code of row 4 g + i at k = j. So one table look-up turns a
// quad into the 32 weights of one row, and a shift by 4 gives the next row.
//
// Gate and up rows are permuted so that panel 2 p holds 16 gate rows and panel 2 p + 1 the same 16 up rows,
// whatever their order in the checkpoint.
#pragma once

#include "common/types.h"

namespace mxfp4moe {

// Changes with the layout; packed files carry it.
constexpr int kLayoutVersion = 1;

constexpr int64_t kMxfp4BlockBytes = 256;
constexpr int64_t kScaleBlockBytes = 16;

// How rows of a source matrix map to rows of the packed one.
enum class RowOrder : int32_t {
  kPlain,         // packed row r is source row r
  kConcatenated,  // gate rows, then up rows
  kInterleaved,   // gate_0, up_0, gate_1, ...
};

// Row of the source that stands in packed row `row` of a matrix with `num_rows` rows.
int64_t source_row(RowOrder order, int64_t row, int64_t num_rows);

// One matrix: codes [num_rows][k_blocks][16] (low nibble = even k), scales [num_rows][k_blocks]. Row r of
// the source begins at codes + r * code_stride and scales + r * scale_stride. For a (gate, up) pair of
// arrays, `up_*` are the second array and each has num_rows / 2 rows.
struct SourceMatrix {
  const uint8_t* codes;
  const uint8_t* scales;
  const uint8_t* up_codes;  // null unless a pair
  const uint8_t* up_scales;
  int64_t num_rows;
  int64_t k_blocks;
  RowOrder order;
};

void pack_mxfp4(const SourceMatrix& source, uint8_t* weights, uint8_t* scales, int num_threads);
// The inverse, into arrays of the source's shape.
void unpack_mxfp4(const SourceMatrix& shape, const uint8_t* weights, const uint8_t* scales, uint8_t* codes,
                  uint8_t* source_scales, int num_threads);

}  // namespace mxfp4moe
