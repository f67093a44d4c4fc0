// From router logits to the experts of each token and their weights.
#pragma once

#include "common/types.h"

namespace mxfp4moe {

enum class Scoring : int32_t { kSoftmax, kSigmoid, kSqrtSoftplus };
constexpr const char* kScoringNames[] = {"softmax", "sigmoid", "sqrt_softplus"};

struct RoutingRule {
  Scoring scoring;
  bool renormalize;
  // kSoftmax ignores the fields below.
  bool ids_given;  // the experts are an input, in topk_ids, and only their weights are computed
  float routed_scaling_factor;
  int64_t num_groups;  // the experts form so many groups of consecutive ones; 1 means no groups
  int64_t topk_group;  // experts are chosen among those of the best so many groups
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

// Returns kRouted, or what went wrong: the first row that holds NaN or +inf or, for kSoftmax, nothing but -inf;
// kNoRoutingMemory; or kBadBias if the correction bias holds NaN or +inf. The result of a row depends on nothing but
// the row, and has the same bits on every CPU.
int64_t route(const RoutingArgs& args, int num_threads);

}  // namespace mxfp4moe
