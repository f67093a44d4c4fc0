// One call of the fused experts, as plain data.
#pragma once

#include "packing/panels.h"

namespace mxfp4moe {

enum class Status { kOk, kOutOfMemory };

struct PackedLayer {
  WeightFormat format;
  int64_t num_experts;
  int64_t hidden_size;
  int64_t intermediate_size;
  PackedMatrix w13;  // of every expert; a multiple of four panels: the intermediate is padded to whole K-blocks
  PackedMatrix w2;
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
