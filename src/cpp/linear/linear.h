// Hidden states times one packed matrix of any weight format, computed by the kernels of the experts: projections of a
// model, its head, router logits.
#pragma once

#include "kernels/kernel_table.h"
#include "packing/storage.h"
#include "platform/exported.h"

namespace mxfp4moe {

struct LinearProblem {
  MatrixShape shape;
  PackedMatrix weight;  // with bias, if there is one
  Rows hidden_states;   // [num_tokens][k], only read; apart from `out`
  Rows out;             // [num_tokens][num_rows]
  int64_t num_tokens;
};

// How a call is cut into work. An item is a group of tokens by a part of the rows; items of the same rows follow each
// other, so that their weights are read once. Within an item, so many pairs of panels as a step has are computed, then
// written. The plan depends on sizes alone, and no result depends on it.
struct LinearPlan {
  int num_threads;
  int64_t group_tokens;
  int64_t num_groups;
  int64_t row_parts;
  int64_t step_pairs;
};

LinearPlan plan_linear(const KernelTable& kernels, const LinearProblem& problem, int num_threads);

// Computes out[t][row] = sum + bias in float32, rounded once to the type of `out`. A sum of weights of several terms is
// first sum + (second sum + third sum), where the n-th sum is that of the n-th terms. A first sum that is infinite or
// NaN is the result as it is, because an infinite hidden state times a later term of 0 would make NaN of infinity.
// Never throws.
Status linear(const KernelTable& kernels, const LinearProblem& problem, int num_threads) MXFP4MOE_EXPORTED(linear);

}  // namespace mxfp4moe
