// This header describes one call of the fused experts as plain data.
#pragma once

#include "packing/storage.h"

namespace mxfp4moe {

struct MoeProblem {
  PackedLayer layer;
  Rows hidden_states;         // [num_tokens][hidden_size], only read
  Rows out;                   // of the same shape; may be the same memory
  const float* topk_weights;  // [num_tokens][top_k]
  const int32_t* local_ids;   // [num_tokens][top_k], each in [0, num_experts), or -1 for a dropped slot
  int64_t num_tokens;
  int64_t top_k;
  Activation activation;
  bool apply_router_weight_on_input;
};

}  // namespace mxfp4moe
