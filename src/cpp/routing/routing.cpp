#include "routing/routing.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>

#include "formats/bf16.h"
#include "memory/workspace.h"
#include "routing/scores.h"
#include "threads/pool.h"
#include "threads/work_queue.h"

namespace mxfp4moe {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// So many logits, some 20 us of work, are worth a thread of their own.
constexpr int64_t kMinLogitsPerThread = 4096;

// Up to this top_k, inserting into a sorted list takes about two thirds of the time of a heap.
constexpr int64_t kMaxInsertions = 32;

// The scratch memory of one thread.
struct Scratch {
  uint64_t* keys;
  uint64_t* group_keys;
  double* exponentials;
  float* logits;
  float* scores;
  float* selection_scores;
  float* chosen;
};

Scratch take_scratch(Arena& arena, const RoutingArgs& args) {
  const int64_t n = args.num_experts;
  const int64_t groups = args.rule.choice.num_groups;
  return {arena.take<uint64_t>(n),
          arena.take<uint64_t>(groups),
          arena.take<double>(n),
          arena.take<float>(n),
          arena.take<float>(n),
          arena.take<float>(n),
          arena.take<float>(args.num_slots)};
}

// The larger score has the larger key. Of equal scores, and -0 equals 0, the lower id has the larger key, so that all
// keys differ.
inline uint64_t selection_key(float score, int64_t id) {
  const uint32_t bits = f32_bits(score + 0.0f);
  const uint32_t ordered = bits ^ (bits >> 31 != 0 ? 0xffffffffu : 0x80000000u);
  return static_cast<uint64_t>(ordered) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}

void selection_keys(const float* scores, int64_t n, int64_t first_id, uint64_t* keys) {
  for (int64_t i = 0; i < n; ++i) keys[i] = selection_key(scores[i], first_id + i);
}

inline int32_t key_id(uint64_t key) { return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key)); }

// Moves the k largest keys to the front, in descending order.
void select_largest(uint64_t* keys, int64_t n, int64_t k) {
  if (k > kMaxInsertions) return std::partial_sort(keys, keys + k, keys + n, std::greater<uint64_t>());
  for (int64_t i = 1; i < n; ++i) {
    const uint64_t key = keys[i];
    if (i >= k && key < keys[k - 1]) continue;
    int64_t j = std::min(i, k - 1);
    for (; j > 0 && keys[j - 1] < key; --j) keys[j] = keys[j - 1];
    keys[j] = key;
  }
}

bool all_below_infinity(const float* logits, int64_t n) {
  int bad = 0;
  for (int64_t i = 0; i < n; ++i) bad |= !(logits[i] < kInfinity);  // a comparison with NaN is false
  return bad == 0;
}

float largest_of(const float* x, int64_t n) {
  float lanes[4] = {-kInfinity, -kInfinity, -kInfinity, -kInfinity};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (int lane = 0; lane < 4; ++lane) lanes[lane] = std::max(lanes[lane], x[i + lane]);
  }
  for (; i < n; ++i) lanes[0] = std::max(lanes[0], x[i]);
  return std::max(std::max(lanes[0], lanes[1]), std::max(lanes[2], lanes[3]));
}

// Writes the scores of all experts; false if a softmax has nothing but -inf.
bool score_all(Scoring scoring, const float* logits, int64_t n, const Scratch& scratch) {
  if (scoring != Scoring::kSoftmax) {
    scoring == Scoring::kSigmoid ? sigmoid(logits, n, scratch.scores) : sqrt_softplus(logits, n, scratch.scores);
    return true;
  }
  const float largest = largest_of(logits, n);
  if (largest == -kInfinity) return false;
  const double total = exp_differences(logits, n, largest, scratch.exponentials);
  for (int64_t i = 0; i < n; ++i) scratch.scores[i] = static_cast<float>(scratch.exponentials[i] / total);
  return true;
}

// The largest logit of a row whose experts were chosen by their logits.
float largest_logit(const RoutingArgs& args, const float* logits, const float* chosen) {
  const ChoiceRule& rule = args.rule.choice;
  const bool chosen_first = args.correction_bias == nullptr && rule.num_groups == 1 && rule.num_shared == 0;
  return chosen_first ? chosen[0] : largest_of(logits, args.num_experts);
}

// Returns the weight of one slot of a token, from the logits of the experts that are left; the slot has expert `id`.
float sparse_mixer_weight(float* left, int64_t n, int32_t id, float limit, const Scratch& scratch) {
  const float chosen = left[id];
  if (chosen == -kInfinity) return 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    const float distance = (chosen - left[i]) / std::max(std::fabs(left[i]), chosen);  // NaN if both are 0 or infinite
    scratch.scores[i] = distance > limit ? -kInfinity : left[i];
  }
  left[id] = -kInfinity;
  return static_cast<float>(1.0 / exp_differences(scratch.scores, n, chosen, scratch.exponentials));
}

// Writes the scores of the experts `ids` to `weights`, without those of all others where they do not matter; false if a
// softmax has nothing but -inf.
bool score_chosen(const RoutingArgs& args, const float* logits, const int32_t* ids, float* weights,
                  const Scratch& scratch) {
  const ScoreRule& rule = args.rule.score;
  const int64_t n = args.num_experts, slots = args.num_slots;
  for (int64_t j = 0; j < slots; ++j) scratch.chosen[j] = logits[ids[j]];
  float largest = 0.0f;
  double total;
  switch (rule.scoring) {
    case Scoring::kSigmoid: sigmoid(scratch.chosen, slots, weights); break;
    case Scoring::kSqrtSoftplus: sqrt_softplus(scratch.chosen, slots, weights); break;
    case Scoring::kSoftmax:
      largest = largest_logit(args, logits, scratch.chosen);
      total = exp_differences(logits, n, largest, scratch.exponentials);
      for (int64_t j = 0; j < slots; ++j) weights[j] = static_cast<float>(scratch.exponentials[ids[j]] / total);
      break;
    case Scoring::kTopkSoftmax:
      largest = scratch.chosen[0];
      total = exp_differences(scratch.chosen, slots, largest, scratch.exponentials);
      for (int64_t j = 0; j < slots; ++j) weights[j] = static_cast<float>(scratch.exponentials[j] / total);
      break;
    case Scoring::kSparseMixer:
      largest = scratch.chosen[0];
      std::copy(logits, logits + n, scratch.selection_scores);
      for (int64_t j = 0; j < slots; ++j) {
        weights[j] = sparse_mixer_weight(scratch.selection_scores, n, ids[j], 2.0f * rule.jitter_eps, scratch);
      }
      break;
  }
  return largest > -kInfinity;
}

// What experts are chosen by; an excluded expert stays so, whatever its bias.
const float* selection_scores(const RoutingArgs& args, const float* logits, const Scratch& scratch) {
  const float* bias = args.correction_bias;
  const bool by_logit = args.rule.choice.by_logit;
  if (by_logit && bias == nullptr) return logits;
  const float* values = by_logit ? logits : scratch.scores;
  for (int64_t i = 0; i < args.num_experts - args.rule.choice.num_shared; ++i) {
    const float biased = bias == nullptr ? values[i] : values[i] + bias[i];
    scratch.selection_scores[i] = logits[i] == -kInfinity ? -kInfinity : biased;
  }
  return scratch.selection_scores;
}

// The score of a group is that of its best expert, or the sum of its two best; excluded experts do not count.
float group_score(GroupScore rule, const float* selection_scores, int64_t size) {
  float best = -kInfinity, second = -kInfinity;
  for (int64_t i = 0; i < size; ++i) {
    second = std::max(second, std::min(best, selection_scores[i]));
    best = std::max(best, selection_scores[i]);
  }
  return rule == GroupScore::kMax || second == -kInfinity ? best : best + second;
}

// Writes the keys of the experts of the best groups. If the rule says so, experts of other groups get keys too, with
// the score 0. Returns how many keys there are.
int64_t list_candidates(const ChoiceRule& rule, const float* selection, int64_t n, const Scratch& scratch) {
  if (rule.topk_group == rule.num_groups) {
    selection_keys(selection, n, 0, scratch.keys);
    return n;
  }
  const int64_t size = n / rule.num_groups;
  for (int64_t g = 0; g < rule.num_groups; ++g) {
    scratch.group_keys[g] = selection_key(group_score(rule.group_score, selection + g * size, size), g);
  }
  select_largest(scratch.group_keys, rule.num_groups, rule.topk_group);
  for (int64_t i = 0; rule.zero_masked && i < n; ++i) {
    scratch.keys[i] = selection_key(selection[i] == -kInfinity ? -kInfinity : 0.0f, i);
  }
  for (int64_t g = 0; g < rule.topk_group; ++g) {
    const int64_t first = key_id(scratch.group_keys[g]) * size;
    selection_keys(selection + first, size, first, scratch.keys + (rule.zero_masked ? first : g * size));
  }
  return rule.zero_masked ? n : rule.topk_group * size;
}

void choose(const RoutingArgs& args, const float* logits, int32_t* ids, const Scratch& scratch) {
  const ChoiceRule& rule = args.rule.choice;
  const int64_t n = args.num_experts - rule.num_shared, top_k = args.num_slots - rule.num_shared;
  const int64_t candidates = list_candidates(rule, selection_scores(args, logits, scratch), n, scratch);
  select_largest(scratch.keys, candidates, top_k);
  for (int64_t j = 0; j < top_k; ++j) ids[j] = key_id(scratch.keys[j]);
  for (int64_t j = 0; j < rule.num_shared; ++j) ids[top_k + j] = static_cast<int32_t>(n + j);
}

// Makes weights of the scores of the chosen experts.
void weigh(const RoutingArgs& args, const int32_t* ids, float* weights) {
  const WeightRule& rule = args.rule.weight;
  const int64_t slots = args.num_slots;
  if (rule.renormalize) {
    float divisor = static_cast<float>(norm(weights, slots, rule.norm_order)) + rule.norm_epsilon;
    divisor = std::max(divisor, rule.norm_floor);
    if (divisor == 0.0f) divisor = 1.0f;  // all weights are 0, and stay so
    for (int64_t j = 0; j < slots; ++j) weights[j] /= divisor;
  }
  for (int64_t j = 0; j < slots; ++j) weights[j] *= rule.routed_scaling_factor;
  if (args.expert_scale == nullptr) return;
  for (int64_t j = 0; j < slots; ++j) weights[j] *= args.expert_scale[ids[j]];
}

bool route_row(const RoutingArgs& args, int64_t row, const Scratch& scratch) {
  const int64_t n = args.num_experts, slots = args.num_slots;
  const float* logits = args.logits + row * n;
  int32_t* ids = args.topk_ids + row * slots;
  float* weights = args.topk_weights + row * slots;
  const ScoreRule& rule = args.rule.score;
  const ChoiceRule& choice = args.rule.choice;
  if (!all_below_infinity(logits, n)) return false;
  if (rule.logit_softcap != 0.0f) {
    softcap(logits, n, rule.logit_softcap, scratch.logits);
    logits = scratch.logits;
  }
  if (!choice.ids_given) {
    if (!choice.by_logit && !score_all(rule.scoring, logits, n, scratch)) return false;
    choose(args, logits, ids, scratch);
  }
  if (choice.ids_given || choice.by_logit) {
    if (!score_chosen(args, logits, ids, weights, scratch)) return false;
  } else {
    for (int64_t j = 0; j < slots; ++j) weights[j] = scratch.scores[ids[j]];
  }
  weigh(args, ids, weights);
  return true;
}

// This is one call, as its threads see it.
struct RoutingCall {
  const RoutingArgs& args;
  uint8_t* workspace;
  int64_t scratch_bytes;  // for each thread
  std::atomic<int64_t> first_bad;
};

void route_share(void* context, int thread, int num_threads) {
  RoutingCall& call = *static_cast<RoutingCall*>(context);
  const int64_t num_tokens = call.args.num_tokens;
  const int64_t share = ceil_div(num_tokens, num_threads);
  const int64_t end = std::min(num_tokens, (thread + 1) * share);
  Arena arena(call.workspace + thread * call.scratch_bytes);
  const Scratch scratch = take_scratch(arena, call.args);
  constexpr int64_t kLogitWork = 32;
  run_parts({thread * share, end}, call.args.num_experts * kLogitWork, [&](ItemRange rows) {
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      if (route_row(call.args, row, scratch)) continue;
      int64_t first = call.first_bad.load();
      while (row < first && !call.first_bad.compare_exchange_weak(first, row)) {
      }
      return;
    }
  });
}

}  // namespace

int64_t route(const RoutingArgs& args, int num_threads) {
  const int64_t num_biases = args.num_experts - args.rule.choice.num_shared;
  if (args.correction_bias != nullptr && !all_below_infinity(args.correction_bias, num_biases)) return kBadBias;
  const int64_t useful = std::min(args.num_tokens, args.num_tokens * args.num_experts / kMinLogitsPerThread);
  const int threads = static_cast<int>(std::min<int64_t>(num_threads, std::max<int64_t>(1, useful)));
  Arena sizes(nullptr);
  take_scratch(sizes, args);
  const Workspace workspace(threads * sizes.used());
  if (workspace.data() == nullptr) return kNoRoutingMemory;
  RoutingCall call{args, workspace.data(), sizes.used(), {args.num_tokens}};
  parallel_run(threads, route_share, &call);
  const int64_t first_bad = call.first_bad.load();
  return first_bad < args.num_tokens ? first_bad : kRouted;
}

}  // namespace mxfp4moe
