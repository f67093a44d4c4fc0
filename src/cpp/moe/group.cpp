#include "moe/group.h"

#include <algorithm>

namespace mxfp4moe {

int64_t max_groups(int64_t num_experts, int64_t num_slots, const GroupRule& rule) {
  return std::min(num_slots, num_experts) + num_slots / rule.max_tokens;
}

int64_t max_padded_slots(int64_t num_experts, int64_t num_slots, const GroupRule& rule) {
  // Only the last group of an expert is padded, by less than a tile of tokens.
  const bool pads = rule.padded_tokens(rule.max_tokens - 1) != rule.max_tokens - 1;
  return num_slots + (pads ? kTokenTile * std::min(num_slots, num_experts) : 0);
}

void take_grouping(Arena* arena, const MoeProblem& problem, const GroupRule& rule, Grouping* grouping) {
  const int64_t slots = problem.num_tokens * problem.top_k;
  const int64_t experts = problem.layer.num_experts;
  grouping->tokens = arena->take<int32_t>(slots);
  grouping->sum_rows = problem.combine ? grouping->tokens : arena->take<int32_t>(slots);
  grouping->weights = arena->take<float>(slots);
  grouping->groups = arena->take<TokenGroup>(max_groups(experts, slots, rule));
  grouping->expert_offsets = arena->take<int64_t>(experts + 1);
}

void group_slots(const MoeProblem& problem, const GroupRule& rule, Grouping* g) {
  const int64_t slots = problem.num_tokens * problem.top_k;
  const int64_t experts = problem.layer.num_experts;
  int64_t* next = g->expert_offsets;
  for (int64_t e = 0; e <= experts; ++e) next[e] = 0;
  for (int64_t s = 0; s < slots; ++s) {
    if (problem.local_ids[s] >= 0) ++next[problem.local_ids[s]];
  }
  // A counting sort: the counts become first positions, and filling moves each position to the end of its expert, which
  // is where the next expert begins.
  int64_t total = 0;
  for (int64_t e = 0; e < experts; ++e) {
    const int64_t count = next[e];
    next[e] = total;
    total += count;
  }
  next[experts] = total;
  for (int64_t s = 0; s < slots; ++s) {
    const int32_t expert = problem.local_ids[s];
    if (expert < 0) continue;
    const int64_t at = next[expert]++;
    g->tokens[at] = static_cast<int32_t>(s / problem.top_k);
    if (!problem.combine) g->sum_rows[at] = static_cast<int32_t>(s);
    g->weights[at] = problem.topk_weights[s];
  }
  for (int64_t e = experts; e > 0; --e) g->expert_offsets[e] = g->expert_offsets[e - 1];
  g->expert_offsets[0] = 0;
  g->num_slots = total;
  g->num_groups = 0;
  int64_t operand_first = 0;
  for (int64_t e = 0; e < experts; ++e) {
    const int64_t end = g->expert_offsets[e + 1];
    // The groups of an expert have nearly equal sizes, so that none ends in a tiny one.
    int64_t left = ceil_div(end - g->expert_offsets[e], rule.max_tokens);
    for (int64_t first = g->expert_offsets[e]; left > 0; --left) {
      // All but the last group have whole tiles of tokens.
      int64_t count = left == 1 ? end - first : round_up(ceil_div(end - first, left), kTokenTile);
      count = std::min({count, rule.max_tokens, end - first});
      if (count == 0) break;
      g->groups[g->num_groups++] = {static_cast<int32_t>(e), static_cast<int32_t>(count), first, operand_first};
      operand_first += rule.padded_tokens(count);
      first += count;
    }
  }
}

}  // namespace mxfp4moe
