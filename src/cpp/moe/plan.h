// How a call is cut into work: pure functions of the problem's sizes, printable and testable by themselves.
#pragma once

#include "kernels/kernel_table.h"
#include "moe/group.h"
#include "moe/problem.h"

namespace mxfp4moe {

// Above this much memory a call is done in chunks of tokens; results do not change.
constexpr int64_t kMaxCallBytes = int64_t{512} << 20;

struct MoePlan {
  int64_t chunk_tokens;  // tokens computed together
  GroupRule groups;
  int64_t max_k;
  bool may_split_experts;  // there is memory for ChunkPlan::split_experts
};

MoePlan make_plan(const KernelTable& kernels, const MoeProblem& problem, int num_threads);

// Work on one matrix of each expert, in items of some of its panel pairs; handed out in order to whichever thread is
// free. The items of expert e are [offsets[e], offsets[e + 1]), a range of pairs each.
struct ExpertItems {
  int64_t* offsets;  // [num_experts + 1]
  int64_t num_experts;
  int64_t pairs;
};

struct PairRange {
  int64_t begin, end;
};

struct ExpertItem {
  int64_t expert;
  PairRange pairs;
};

ExpertItem expert_item(const ExpertItems& items, int64_t index);
inline int64_t num_items(const ExpertItems& items) { return items.offsets[items.num_experts]; }

// The work of one chunk, once its tokens are grouped.
//
// GEMM 2 adds up experts in a fixed order, so an item is a range of pairs of output panels for all experts. Where so
// few items cannot keep all threads busy, experts are split: items are as those of GEMM 1, leave each slot's output in
// memory, and a last step adds them up by panels, in the same order.
struct ChunkPlan {
  int num_threads;
  bool split_experts;
  int64_t num_pack_items;
  ExpertItems gate_up;
  ExpertItems down;  // if experts are split
  int64_t num_output_items;
};

PairRange output_range(const ChunkPlan& plan, int64_t index);

// `gate_up_offsets`, `down_offsets`: [num_experts + 1], where the plan's items are written.
ChunkPlan plan_chunk(const PackedLayer& layer, const MoePlan& plan, const Grouping& grouping, int num_threads,
                     int64_t* gate_up_offsets, int64_t* down_offsets);

// Operands are packed sixteen tokens at a time.
inline int64_t pack_items(const TokenGroup& group) { return ceil_div(group.count, 16); }

}  // namespace mxfp4moe
