#include "routing/routing.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>

#include "memory/workspace.h"
#include "routing/elementary.h"
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
  float* scores;
  float* selection_scores;
  float* chosen;
};

Scratch take_scratch(Arena& arena, const RoutingArgs& args) {
  const int64_t n = args.num_experts;
  return {arena.take<uint64_t>(n), arena.take<uint64_t>(args.rule.num_groups),
          arena.take<double>(n),   arena.take<float>(n),
          arena.take<float>(n),    arena.take<float>(args.top_k)};
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

// Writes e^(x - largest) for each x and returns the sum of all, which is always added in the same order.
double exp_differences(const float* x, int64_t n, double largest, double* exponentials) {
  for (int64_t i = 0; i < n; ++i) exponentials[i] = exp_nonpositive(x[i] - largest);
  double lanes[4] = {};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (int lane = 0; lane < 4; ++lane) lanes[lane] += exponentials[i + lane];
  }
  for (int lane = 0; i + lane < n; ++lane) lanes[lane] += exponentials[i + lane];
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

bool route_by_softmax(const RoutingArgs& args, const float* logits, int64_t row, const Scratch& scratch) {
  const int64_t n = args.num_experts, k = args.top_k;
  int32_t* ids = args.topk_ids + row * k;
  float* weights = args.topk_weights + row * k;
  selection_keys(logits, n, 0, scratch.keys);
  select_largest(scratch.keys, n, k);
  for (int64_t j = 0; j < k; ++j) {
    ids[j] = key_id(scratch.keys[j]);
    scratch.chosen[j] = logits[ids[j]];
  }
  const float largest = scratch.chosen[0];
  if (largest == -kInfinity) return false;
  const bool renormalize = args.rule.renormalize;
  const double total = renormalize ? exp_differences(scratch.chosen, k, largest, scratch.exponentials)
                                   : exp_differences(logits, n, largest, scratch.exponentials);
  for (int64_t j = 0; j < k; ++j) {
    weights[j] = static_cast<float>(scratch.exponentials[renormalize ? j : ids[j]] / total);
  }
  return true;
}

void sigmoid(const float* logits, int64_t n, float* scores) {
  for (int64_t i = 0; i < n; ++i) {
    const double x = logits[i];
    const double e = exp_nonpositive(-std::fabs(x));
    scores[i] = static_cast<float>((x < 0.0 ? e : 1.0) / (1.0 + e));
  }
}

void sqrt_softplus(const float* logits, int64_t n, float* scores) {
  for (int64_t i = 0; i < n; ++i) {
    const double x = logits[i];
    const double log = log1p_unit(exp_nonpositive(-std::fabs(x)));
    scores[i] = static_cast<float>(std::sqrt((x < 0.0 ? 0.0 : x) + log));
  }
}

void score(Scoring scoring, const float* logits, int64_t n, float* scores) {
  scoring == Scoring::kSigmoid ? sigmoid(logits, n, scores) : sqrt_softplus(logits, n, scores);
}

void selection_scores(const RoutingArgs& args, const float* logits, const Scratch& scratch) {
  const float* bias = args.correction_bias;
  for (int64_t i = 0; i < args.num_experts; ++i) {
    const float biased = bias == nullptr ? scratch.scores[i] : scratch.scores[i] + bias[i];
    scratch.selection_scores[i] = logits[i] == -kInfinity ? -kInfinity : biased;
  }
}

// The score of a group is the sum of its two best experts; excluded experts do not count.
float group_score(const float* selection_scores, int64_t size) {
  float best = -kInfinity, second = -kInfinity;
  for (int64_t i = 0; i < size; ++i) {
    second = std::max(second, std::min(best, selection_scores[i]));
    best = std::max(best, selection_scores[i]);
  }
  return second == -kInfinity ? best : best + second;
}

void select_groups(const RoutingArgs& args, const Scratch& scratch) {
  const int64_t size = args.num_experts / args.rule.num_groups;
  for (int64_t g = 0; g < args.rule.num_groups; ++g) {
    scratch.group_keys[g] = selection_key(group_score(scratch.selection_scores + g * size, size), g);
  }
  select_largest(scratch.group_keys, args.rule.num_groups, args.rule.topk_group);
}

// Writes the keys of the experts of the best groups and returns their number.
int64_t list_candidates(const RoutingArgs& args, const Scratch& scratch) {
  const RoutingRule& rule = args.rule;
  const bool all = rule.topk_group == rule.num_groups;
  if (!all) select_groups(args, scratch);
  const int64_t size = args.num_experts / rule.num_groups;
  for (int64_t g = 0; g < rule.topk_group; ++g) {
    const int64_t first = (all ? g : key_id(scratch.group_keys[g])) * size;
    selection_keys(scratch.selection_scores + first, size, first, scratch.keys + g * size);
  }
  return rule.topk_group * size;
}

void route_by_scores(const RoutingArgs& args, const float* logits, int64_t row, const Scratch& scratch) {
  const int64_t k = args.top_k;
  int32_t* ids = args.topk_ids + row * k;
  float* weights = args.topk_weights + row * k;
  if (args.rule.ids_given) {
    for (int64_t j = 0; j < k; ++j) scratch.chosen[j] = logits[ids[j]];
    score(args.rule.scoring, scratch.chosen, k, weights);
  } else {
    score(args.rule.scoring, logits, args.num_experts, scratch.scores);
    selection_scores(args, logits, scratch);
    select_largest(scratch.keys, list_candidates(args, scratch), k);
    for (int64_t j = 0; j < k; ++j) {
      ids[j] = key_id(scratch.keys[j]);
      weights[j] = scratch.scores[ids[j]];
    }
  }
  float divisor = 1.0f;
  if (args.rule.renormalize) {
    double sum = 0.0;
    for (int64_t j = 0; j < k; ++j) sum += weights[j];
    divisor = static_cast<float>(sum) + 1e-20f;
  }
  for (int64_t j = 0; j < k; ++j) weights[j] = weights[j] / divisor * args.rule.routed_scaling_factor;
}

bool route_row(const RoutingArgs& args, int64_t row, const Scratch& scratch) {
  const float* logits = args.logits + row * args.num_experts;
  if (!all_below_infinity(logits, args.num_experts)) return false;
  if (args.rule.scoring == Scoring::kSoftmax) return route_by_softmax(args, logits, row, scratch);
  route_by_scores(args, logits, row, scratch);
  return true;
}

// One call, as its threads see it.
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
  if (args.correction_bias != nullptr && !all_below_infinity(args.correction_bias, args.num_experts)) return kBadBias;
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
