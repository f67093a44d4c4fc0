// Where the parts of packed experts stand in one block of memory (and in a packed file).
#pragma once

#include "moe/problem.h"

namespace mxfp4moe {

struct StorageShape {
  WeightFormat format;
  int64_t num_experts;
  int64_t hidden_size;
  int64_t intermediate_size;
  bool has_w13_bias;
  bool has_w2_bias;
};

// Byte offset of each part and the size of all. Parts begin on 4096-byte boundaries.
struct StorageLayout {
  int64_t w13, w13_scales, w2, w2_scales, w13_bias, w2_bias;
  int64_t total;
};

// total is -1 if the sizes do not fit in 62 bits.
StorageLayout storage_layout(const StorageShape& shape);

PackedLayer view_storage(const StorageShape& shape, const uint8_t* data);

}  // namespace mxfp4moe
