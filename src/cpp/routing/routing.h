// From router logits to the experts of each token and their weights: a rule says how logits become scores, by what
// experts are chosen, and what becomes of the scores of the chosen ones.
#pragma once

#include "common/types.h"
#include "platform/exported.h"

namespace mxfp4moe {

enum class Scoring : int32_t {
  kSoftmax,       // over all logits
  kSigmoid,       //
  kSqrtSoftplus,  // sqrt(log(1 + e^x))
  // The others choose by the logit alone, from one group, and have no shared experts.
  kTopkSoftmax,  // over the logits of the chosen experts
  kSparseMixer,  // over the logits near to the chosen one, without the experts chosen before it
};
constexpr const char* kScoringNames[] = {"softmax", "sigmoid", "sqrt_softplus", "topk_softmax", "sparsemixer"};

// What decides between the groups.
enum class GroupScore : int32_t { kTop2Sum, kMax };
constexpr const char* kGroupScoreNames[] = {"top2_sum", "max"};

struct ScoreRule {
  Scoring scoring;
  float logit_softcap;  // logits become cap * tanh(logit / cap); 0 leaves them
  float jitter_eps;     // of kSparseMixer
};

struct ChoiceRule {
  bool ids_given;      // the experts are an input, in topk_ids; only for kSigmoid and kSqrtSoftplus
  bool by_logit;       // the correction bias is added to the logit, not to the score
  int64_t num_shared;  // so many of the experts, the last ones, are not chosen but taken by every token
  int64_t num_groups;  // the others form so many groups of consecutive ones; 1 means no groups
  int64_t topk_group;  // experts are chosen among those of the best so many groups
  GroupScore group_score;
  bool zero_masked;  // experts of other groups may be chosen too, with the selection score 0
};

struct WeightRule {
  bool renormalize;  // scores are divided by max(norm + epsilon, floor)
  float norm_order;
  float norm_epsilon;
  float norm_floor;
  float routed_scaling_factor;
};

struct RoutingRule {
  ScoreRule score;
  ChoiceRule choice;
  WeightRule weight;
};

struct RoutingArgs {
  const float* logits;           // [num_tokens, num_experts]
  const float* correction_bias;  // [num_experts - num_shared], or null
  const float* expert_scale;     // [num_experts], the factor of each expert on its weight, or null
  int64_t num_tokens;
  int64_t num_experts;  // with the shared ones
  int64_t num_slots;    // of a token: the chosen experts by descending selection score, then the shared ones
  RoutingRule rule;
  float* topk_weights;  // [num_tokens, num_slots]
  int32_t* topk_ids;    // [num_tokens, num_slots], each within [0, num_experts) if given
};

constexpr int64_t kRouted = -1;
constexpr int64_t kNoRoutingMemory = -2;
constexpr int64_t kBadBias = -3;

// Returns kRouted, or what went wrong: the first row that holds NaN or +inf or, for a softmax of any kind, nothing but
// -inf; kNoRoutingMemory; or kBadBias if the correction bias holds NaN or +inf. The result of a row depends on nothing
// but the row, and has the same bits on every CPU.
int64_t route(const RoutingArgs& args, int num_threads) MXFP4MOE_EXPORTED(route);

}  // namespace mxfp4moe
