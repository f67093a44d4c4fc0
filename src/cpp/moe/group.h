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
};

// Slots sorted by expert, then token, then position in the token's row; dropped slots are not among them.
struct Grouping {
  int32_t* tokens;  // of each sorted slot
  float* weights;   // of each sorted slot
  TokenGroup* groups;
  int64_t* expert_offsets;  // sorted slots of expert e: [e], [e + 1]
  int64_t num_groups;
  int64_t num_slots;
};

void take_grouping(Arena* arena, const MoeProblem& problem, int64_t group_tokens, Grouping* grouping);
void group_slots(const MoeProblem& problem, int64_t group_tokens, Grouping* grouping);

}  // namespace mxfp4moe
