// What the router of a decoder layer computes from the residual stream.
#pragma once

#include "decoder/self_attention.h"
#include "platform/exported.h"

namespace mxfp4moe {

struct Router {
  int64_t hidden_size;
  double norm_epsilon;
  const float* norm;  // [hidden_size]
  Linear weight;      // with bias, if there is one
};

struct RouterStep {
  const float* residual;  // [num_tokens][hidden_size]
  int64_t num_tokens;
  uint16_t* rows;  // [num_tokens][hidden_size]
  float* logits;   // [num_tokens][rows of the weight]
};

// Writes the norm of each row, rounded to bfloat16, and the logits of its router. The router reads the norm in float32
// as the sum of two bfloat16 numbers, 16 significant bits: of two experts that are nearly equal, the right one is
// chosen more often than by 8 bits. The logits are (those of the first numbers + those of the second ones) - bias,
// where both have the bias. Never throws.
Status route_normalized(const KernelTable& kernels, const Router& router, const RouterStep& step, int num_threads)
    MXFP4MOE_EXPORTED(route_normalized);

}  // namespace mxfp4moe
