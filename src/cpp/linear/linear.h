// A router's logits: hidden states times a small matrix of weights, in float32, by the kernels of the experts.
//
// A float32 weight is the exact sum of up to three bfloat16 terms of eight bits each, which are packed as panels of
// their own and whose sums are added last. Panel `p * num_terms + t` holds term t of rows 16 p to 16 p + 15.
#pragma once

#include "kernels/kernel_table.h"
#include "packing/panels.h"

namespace mxfp4moe {

struct LinearShape {
  int64_t num_rows;
  int64_t k;
  int64_t num_terms;
};

// The packed matrix at `data`; its weights are in bfloat16, num_panels * k_blocks K-blocks.
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

// How a call is cut: an item is a group of tokens by a range of rows, each as even as can be. Depends on sizes alone,
// and no result depends on it.
struct LinearPlan {
  int num_threads;
  int64_t group_tokens;
  int64_t num_groups;
  int64_t row_parts;
};

LinearPlan plan_linear(const KernelTable& kernels, const LinearProblem& problem, int num_threads);

// out[t][row] = first term's sum + (second's + third's) + bias. A first sum that is infinite or NaN is the result: an
// infinite hidden state times a term that is 0 must not make NaN of it. Never throws.
Status linear(const KernelTable& kernels, const LinearProblem& problem, int num_threads);

}  // namespace mxfp4moe
