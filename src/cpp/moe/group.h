// Grouping: a slot is one expert of one token; the slots of a batch are sorted by expert.
#pragma once

#include "memory/workspace.h"
#include "moe/problem.h"

namespace mxfp4moe {

// The tokens that one expert computes together are the sorted slots [first, first + count).
struct TokenGroup {
  int32_t expert;
  int32_t count;
  int64_t first;
  int64_t operand_first;  // its first token in the operands, where groups may be padded
};

// The slots sorted by expert, then by token, then by position in the token's row. Dropped slots are left out.
struct Grouping {
  int32_t* tokens;    // the token of each sorted slot
  int32_t* sum_rows;  // the row of sums that each sorted slot is added to: its token, or the slot itself
  float* weights;     // the router weight of each sorted slot
  TokenGroup* groups;
  int64_t* expert_offsets;  // expert e has the sorted slots [expert_offsets[e], expert_offsets[e + 1])
  int64_t num_groups;
  int64_t num_slots;

  int64_t slots_of(int64_t expert) const { return expert_offsets[expert + 1] - expert_offsets[expert]; }
};

// What a kernel table says about the size of groups.
struct GroupRule {
  int64_t max_tokens;
  int64_t (*padded_tokens)(int64_t num_tokens);
};

// Upper bounds of the numbers of groups and of padded slots that `num_slots` slots can make.
int64_t max_groups(int64_t num_experts, int64_t num_slots, const GroupRule& rule);
int64_t max_padded_slots(int64_t num_experts, int64_t num_slots, const GroupRule& rule);

void take_grouping(Arena* arena, const MoeProblem& problem, const GroupRule& rule, Grouping* grouping);
void group_slots(const MoeProblem& problem, const GroupRule& rule, Grouping* grouping);

}  // namespace mxfp4moe
