// Route: the slots of a batch, grouped by expert.
#pragma once

#include "memory/workspace.h"
#include "moe/problem.h"

namespace mxfp4moe {

// Tokens that one expert computes together: slots [first, first + count) of the sorted slots.
struct TokenGroup {
  int32_t expert;
  int32_t count;
  int64_t first;
  int64_t operand_first;  // of its tokens in the operands, where groups may be padded
};

// Slots sorted by expert, then token, then position in the token's row; dropped slots are not among them.
struct Grouping {
  int32_t* tokens;  // of each sorted slot
  float* weights;   // of each sorted slot
  TokenGroup* groups;
  int64_t* expert_offsets;  // sorted slots of expert e: [e], [e + 1]
  int64_t num_groups;
  int64_t num_slots;

  int64_t slots_of(int64_t expert) const { return expert_offsets[expert + 1] - expert_offsets[expert]; }
};

// How a kernel table wants its groups.
struct GroupRule {
  int64_t max_tokens;
  int64_t (*padded_tokens)(int64_t num_tokens);
};

// Upper bounds for `num_slots` slots.
int64_t max_groups(int64_t num_experts, int64_t num_slots, const GroupRule& rule);
int64_t max_padded_slots(int64_t num_experts, int64_t num_slots, const GroupRule& rule);

void take_grouping(Arena* arena, const MoeProblem& problem, const GroupRule& rule, Grouping* grouping);
void group_slots(const MoeProblem& problem, const GroupRule& rule, Grouping* grouping);

}  // namespace mxfp4moe
