// The plan of a call, written out: what tests and tools look at.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernel_table.h"
#include "moe/plan.h"

namespace mxfp4moe {

// A range of panel pairs of one expert, or of all experts (-1), whose weights are at home on a node.
struct PlanItem {
  int node;
  int64_t expert;
  int64_t pair_begin, pair_end;
};

struct CallPlan {
  int64_t chunk_tokens;  // tokens computed together; the items are those of the first so many
  int num_threads;
  std::vector<PlanItem> gate_up;
  std::vector<PlanItem> down;
};

// Looks at the sizes of `problem` and at its ids, not at other pointers.
CallPlan describe_plan(const KernelTable& kernels, const MoeProblem& problem, Team team);

}  // namespace mxfp4moe
