// The plan of a call written out, for tests and tools.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernel_table.h"
#include "moe/plan.h"
#include "platform/exported.h"

namespace mxfp4moe {

// A range of panel pairs of one expert, or of all experts (-1), whose weights are in the memory of a node.
struct PlanItem {
  int node;
  int64_t expert;
  int64_t pair_begin, pair_end;
};

struct CallPlan {
  int64_t chunk_tokens;  // so many tokens are computed together; the items are those of the first chunk
  int num_threads;
  std::vector<PlanItem> gate_up;
  std::vector<PlanItem> down;
};

// Reads the sizes of `problem` and its ids; no other pointer is followed.
CallPlan describe_plan(const KernelTable& kernels, const MoeProblem& problem, Team team)
    MXFP4MOE_EXPORTED(describe_plan);

}  // namespace mxfp4moe
