// Where the parts of packed matrices stand in one block of memory, and in a packed file: those of the experts of a
// layer, or of one matrix.
#pragma once

#include "packing/panels.h"
#include "platform/exported.h"

namespace mxfp4moe {

// How the weights of a matrix are stored.
struct MatrixFormat {
  WeightFormat weights;
  int64_t block_rows;  // rows that share a float32 scale, of formats with scales of any block shape; 0 means all rows
  int64_t block_k;     // the same along K: 0 for all of K, else a multiple of 32, or of integers 16
  DType sum_dtype;     // of these scales: float32, or the type of 16 bits in which they came
};

struct StorageShape {
  MatrixFormat w13, w2;
  int64_t num_experts;
  int64_t hidden_size;
  int64_t intermediate_size;
  bool gated;  // without a gate, w13 has `intermediate_size` rows, those of up
  bool has_w13_bias;
  bool has_w2_bias;
  bool tensor_scales;  // a float32 scale for each gate, up and down; not of formats with scales of any block shape
  bool interleaved;    // gate and up rows of the source's w13 alternate
  bool has_columns;    // the columns of w13 of each expert are those of hidden states in an order of its own
};

// A matrix that stands alone.
struct MatrixShape {
  MatrixFormat format;
  int64_t num_rows, k;
  int64_t num_terms;  // of kBf16: each weight is the sum of so many numbers; otherwise 1
  bool has_bias;
  bool tensor_scale;  // as above; not with several terms
  bool has_columns;   // as above
};

enum class Part : int32_t { kWeights, kScales, kSumScales, kBias, kOffsets, kColumns };
constexpr int kNumParts = 6;
// What follows the name of a matrix in the names of its parts.
constexpr const char* kPartSuffixes[kNumParts] = {"", "_scales", "_sum_scales", "_bias", "_offsets", "_columns"};

// This is one matrix of all experts. Each part begins at its offset and holds expert_bytes for each expert in turn.
struct MatrixLayout {
  int64_t num_rows, k;  // of the source
  RowOrder order;
  PackedMatrix sizes;  // its pointers are null
  SumScaleBlocks sum_blocks;
  int64_t offset[kNumParts];
  int64_t expert_bytes[kNumParts];
};

// Every part begins on a 4096-byte boundary.
struct StorageLayout {
  MatrixLayout w13, w2;
  int64_t total;
};

// The total is -1 if the sizes do not fit in 62 bits.
StorageLayout storage_layout(const StorageShape& shape) MXFP4MOE_EXPORTED(storage_layout);

struct SingleLayout {
  MatrixLayout matrix;
  int64_t total;  // as above
};

SingleLayout single_layout(const MatrixShape& shape) MXFP4MOE_EXPORTED(single_layout);

// The packed experts of one layer, or some of them.
struct PackedLayer {
  int64_t num_experts;
  int64_t hidden_size;
  int64_t intermediate_size;
  // Both hold the matrices of all experts. w13 has a multiple of four panels, or of two without a gate, because the
  // intermediate is padded to whole K-blocks.
  PackedMatrix w13;
  PackedMatrix w2;
  const int32_t* columns;  // [experts][hidden_size]: which hidden state each column of w13 multiplies, or null
};

PackedLayer view_storage(const StorageShape& shape, const uint8_t* data) MXFP4MOE_EXPORTED(view_storage);
// The layer whose expert e is the one at place `places[e]` of the storage.
// Returns the index of the first value that is not in [0, limit), or `count`.
int64_t first_outside(const int32_t* values, int64_t count, int64_t limit) MXFP4MOE_EXPORTED(first_outside);

PackedLayer view_some(const StorageShape& shape, const uint8_t* data, const int32_t* places, int64_t num_experts)
    MXFP4MOE_EXPORTED(view_some);
PackedMatrix view_single(const MatrixShape& shape, const uint8_t* data) MXFP4MOE_EXPORTED(view_single);

}  // namespace mxfp4moe
