// How a call is cut into work: pure functions of the problem's sizes, printable and testable by themselves.
#pragma once

#include "kernels/kernel_table.h"
#include "moe/group.h"
#include "moe/problem.h"
#include "threads/work_queue.h"

namespace mxfp4moe {

// From one row of float32 sums to the next: an odd number of cache lines, so that a column of panels, which is what a
// thread works on, spreads over all sets of a cache.
inline int64_t sum_row_floats(int64_t hidden_size) { return (ceil_div(hidden_size, kPanelRows) | 1) * kPanelRows; }

// Who computes. Panels of a matrix belong to NUMA nodes in equal parts, node 0 has the first ones.
struct Team {
  int num_threads;
  int num_nodes;
};

struct MoePlan {
  Team team;
  int64_t chunk_tokens;  // tokens computed together
  GroupRule groups;
  int64_t max_k;
  bool may_split_experts;  // there is memory for ChunkPlan::split_experts
};

MoePlan make_plan(const KernelTable& kernels, const MoeProblem& problem, Team team);

// Work on one matrix of each expert, in items of some of its panel pairs; node by node, of each node by expert, hot
// ones first.
// The items of a node's part of the expert order[r] are [offsets[i], offsets[i + 1]), i = node * num_experts + r.
struct ExpertItems {
  int64_t* offsets;  // [num_nodes * num_experts + 1]
  const int32_t* order;
  int64_t num_experts;
  int num_nodes;
  int64_t pairs;
};

struct ExpertItem {
  int64_t expert;
  ItemRange pairs;
};

ItemRange items_of_node(const ExpertItems& items, int node);
ExpertItem expert_item(const ExpertItems& items, int64_t index);

// The work of one chunk, once its tokens are grouped.
//
// GEMM 2 adds up experts in a fixed order, so an item is a range of pairs of output panels for all experts. Where so
// few items cannot keep all threads busy, experts are split: items are as those of GEMM 1, leave each slot's output in
// memory, and a last step adds them up by panels, in the same order.
struct ChunkPlan {
  Team team;
  bool split_experts;
  int64_t num_pack_items;
  ExpertItems gate_up;
  ExpertItems down;  // if experts are split
  int64_t num_output_items;
};

ItemRange output_items_of_node(const ChunkPlan& plan, int node);
ItemRange output_pairs(const ChunkPlan& plan, int64_t item);

// The arrays of a plan's ExpertItems.
struct ItemMemory {
  int64_t* gate_up_offsets;
  int64_t* down_offsets;
  int32_t* order;
};

ItemMemory take_items(Arena* arena, int64_t num_experts, int num_nodes);

ChunkPlan plan_chunk(const PackedLayer& layer, const MoePlan& plan, const Grouping& grouping, const ItemMemory& memory);

// Operands are packed sixteen tokens at a time.
inline int64_t pack_items(const TokenGroup& group) { return ceil_div(group.count, 16); }

}  // namespace mxfp4moe
