// Scores of router logits, each computed in float64 and rounded once to float32.
#pragma once

#include "common/types.h"
#include "platform/exported.h"

namespace mxfp4moe {

// Writes cap * tanh(logit / cap) for each logit; -inf stays -inf.
void softcap(const float* logits, int64_t n, float cap, float* capped);

void sigmoid(const float* logits, int64_t n, float* scores) MXFP4MOE_EXPORTED(sigmoid);
void sqrt_softplus(const float* logits, int64_t n, float* scores);

// Writes e^(x - largest) for each x and returns the sum of all, which is always added in the same order.
double exp_differences(const float* x, int64_t n, double largest, double* exponentials);

// The p-norm of n scores, none of them negative, for an order p of at least 1.
double norm(const float* scores, int64_t n, double order);

}  // namespace mxfp4moe
