// From router logits to the experts of each token and their weights.
#pragma once

#include "common/types.h"

namespace mxfp4moe {

enum class Scoring : int32_t { kSoftmax, kSigmoid, kSqrtSoftplus };

struct RoutingRule {
  Scoring scoring;
  bool renormalize;
  // The rest is not of kSoftmax.
  bool ids_given;  // topk_ids are an input
  float routed_scaling_factor;
  int64_t num_groups;  // of consecutive experts; 1: no groups
  int64_t topk_group;
};

struct RoutingArgs {
  const float* logits;           // [num_tokens, num_experts]
  const float* correction_bias;  // [num_experts], or null
  int64_t num_tokens;
  int64_t num_experts;
  int64_t top_k;
  RoutingRule rule;
  float* topk_weights;  // [num_tokens, top_k]
  int32_t* topk_ids;    // [num_tokens, top_k], each within [0, num_experts) if given
};

constexpr int64_t kRouted = -1;
constexpr int64_t kNoRoutingMemory = -2;
constexpr int64_t kBadBias = -3;

// kRouted; or the first row with NaN or +inf, or, for kSoftmax, with nothing but -inf; or kNoRoutingMemory; or
// kBadBias if the correction bias has NaN or +inf.
// A row's result depends on nothing but the row, and has the same bits on every CPU.
int64_t route(const RoutingArgs& args, int num_threads);

}  // namespace mxfp4moe
