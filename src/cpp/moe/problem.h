// This header describes one call of the fused experts as plain data.
#pragma once

#include "packing/storage.h"

namespace mxfp4moe {

struct MoeProblem {
  PackedLayer layer;
  Rows hidden_states;  // [num_tokens][hidden_size], only read
  // Combined: of the same shape, may be the same memory. Else a row for each slot, [num_tokens * top_k][hidden_size].
  Rows out;
  const float* topk_weights;  // [num_tokens][top_k]
  const int32_t* local_ids;   // [num_tokens][top_k], each in [0, num_experts), or -1 for a dropped slot
  int64_t num_tokens;
  int64_t top_k;
  Activation activation;
  bool apply_router_weight_on_input;
  bool combine;  // whether the slots of a token are added up, or stay apart
};

// The rows of float32 sums: one for each token, or for each slot.
inline int64_t rows_per_token(const MoeProblem& problem) { return problem.combine ? 1 : problem.top_k; }

}  // namespace mxfp4moe
