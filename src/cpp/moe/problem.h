// One call of the fused experts, as plain data.
#pragma once

#include "common/types.h"

namespace mxfp4moe {

// Packed experts; every pointer is 64-byte aligned, biases stand in packed row order or are null.
struct PackedLayer {
  WeightFormat format;
  int64_t num_experts;
  int64_t hidden_size;
  int64_t intermediate_size;
  const uint8_t* w13;  // [num_experts][panels][k_blocks][256]
  const uint8_t* w13_scales;
  const uint8_t* w2;
  const uint8_t* w2_scales;
  const float* w13_bias;  // [num_experts][2 * intermediate_size]
  const float* w2_bias;   // [num_experts][hidden_size]
};

struct Rows {
  uint8_t* data;
  int64_t stride;  // bytes
  DType dtype;
};

struct MoeProblem {
  PackedLayer layer;
  Rows hidden_states;         // [num_tokens][hidden_size], only read
  Rows out;                   // the same shape; may be the same memory
  const float* topk_weights;  // [num_tokens][top_k]
  const int32_t* local_ids;   // [num_tokens][top_k]: in [0, num_experts), or -1 for a dropped slot
  int64_t num_tokens;
  int64_t top_k;
  Activation activation;
  bool apply_router_weight_on_input;
};

}  // namespace mxfp4moe
