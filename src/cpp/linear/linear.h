// Router logits: hidden states times a small matrix of float32 weights, computed by the kernels of the experts.
//
// A float32 weight is the exact sum of up to three bfloat16 terms of eight bits each. Each term is packed as panels of
// its own, and the sums of the terms are added last. Panel `p * num_terms + t` holds term t of rows 16 p to 16 p + 15.
#pragma once

#include "kernels/kernel_table.h"
#include "packing/panels.h"

namespace mxfp4moe {

struct LinearShape {
  int64_t num_rows;
  int64_t k;
  int64_t num_terms;
};

// Describes the packed matrix at `data`: num_panels * k_blocks K-blocks of bfloat16 weights.
PackedMatrix view_linear(const LinearShape& shape, const uint8_t* data);
int64_t linear_bytes(const LinearShape& shape);

struct LinearProblem {
  LinearShape shape;
  PackedMatrix weight;
  const float* bias;   // [num_rows], or null
  Rows hidden_states;  // [num_tokens][k], only read
  int64_t num_tokens;
  float* out;  // [num_tokens][num_rows]
};

// How a call is cut into work: an item is a group of tokens by a range of rows, and items are as even as can be. The
// plan depends on sizes alone, and no result depends on it.
struct LinearPlan {
  int num_threads;
  int64_t group_tokens;
  int64_t num_groups;
  int64_t row_parts;
};

LinearPlan plan_linear(const KernelTable& kernels, const LinearProblem& problem, int num_threads);

// Computes out[t][row] = first sum + (second sum + third sum) + bias, where the n-th sum is that of the n-th terms. A
// first sum that is infinite or NaN is the result as it is, because an infinite hidden state times a later term of 0
// would make NaN of infinity. Never throws.
Status linear(const KernelTable& kernels, const LinearProblem& problem, int num_threads);

}  // namespace mxfp4moe
