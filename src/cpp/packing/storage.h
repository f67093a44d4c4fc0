// Where the parts of packed experts stand in one block of memory (and in a packed file).
#pragma once

#include "packing/panels.h"

namespace mxfp4moe {

struct StorageShape {
  WeightFormat format;
  int64_t num_experts;
  int64_t hidden_size;
  int64_t intermediate_size;
  bool has_w13_bias;
  bool has_w2_bias;
  bool tensor_scales;  // a float32 scale for each gate, up and down; not of kFp8Block
  bool interleaved;    // rows of the source's w13
  int64_t block_rows;  // of kFp8Block's scales; 0 is the whole axis
  int64_t block_k;     // the same along K; else a multiple of 32
};

enum class Part : int32_t { kWeights, kScales, kSumScales, kBias };
constexpr int kNumParts = 4;

// One matrix of every expert: offset of each part, [num_experts] times so many bytes.
struct MatrixLayout {
  PackedMatrix sizes;  // pointers null
  SumScaleBlocks sum_blocks;
  int64_t offset[kNumParts];
  int64_t expert_bytes[kNumParts];
};

// Parts begin on 4096-byte boundaries.
struct StorageLayout {
  MatrixLayout w13, w2;
  int64_t total;
};

// total is -1 if the sizes do not fit in 62 bits.
StorageLayout storage_layout(const StorageShape& shape);

// The packed experts of one layer.
struct PackedLayer {
  WeightFormat format;
  int64_t num_experts;
  int64_t hidden_size;
  int64_t intermediate_size;
  PackedMatrix w13;  // of every expert; a multiple of four panels: the intermediate is padded to whole K-blocks
  PackedMatrix w2;
};

PackedLayer view_storage(const StorageShape& shape, const uint8_t* data);

}  // namespace mxfp4moe
