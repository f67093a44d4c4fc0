// How a call is cut into work. These are pure functions of the problem's sizes and of the ids, which can be printed and
// tested by themselves (describe_plan.h).
#pragma once

#include "kernels/kernel_table.h"
#include "moe/group.h"
#include "moe/problem.h"
#include "threads/work_queue.h"

namespace mxfp4moe {

// The distance from one row of float32 sums to the next. It is an odd number of cache lines, so that a column of
// panels, which is what a thread works on, spreads over all sets of a cache.
inline int64_t sum_row_floats(int64_t hidden_size) { return (ceil_div(hidden_size, kPanelRows) | 1) * kPanelRows; }

// Who computes. Each NUMA node owns an equal part of the panels of a matrix; node 0 owns the first ones.
struct Team {
  int num_threads;
  int num_nodes;
};

struct MoePlan {
  Team team;
  int64_t chunk_tokens;  // so many tokens are computed together
  GroupRule groups;
  int64_t max_k;
  bool may_split_experts;  // there is memory for ChunkPlan::split_experts
  int64_t gate_up_pairs;   // items of GEMM 1 are so many pairs, or multiples of it
};

MoePlan make_plan(const KernelTable& kernels, const MoeProblem& problem, Team team);

// The work on one matrix of all experts, cut into items. An item is a range of panel pairs of one expert. Items are
// ordered by node, then by expert, hot experts first: with i = node * num_experts + r, the items of the node's part of
// expert order[r] are [offsets[i], offsets[i + 1]).
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

// The items of GEMM 1 are ranges of units of some pairs; this gives the pairs.
inline ItemRange pairs_of(ItemRange units, int64_t unit_pairs) {
  return {units.begin * unit_pairs, units.end * unit_pairs};
}

ItemRange items_of_node(const ExpertItems& items, int node);
ExpertItem expert_item(const ExpertItems& items, int64_t index);

// The work of one chunk, once its tokens are grouped.
//
// GEMM 2 adds up the experts of a token in a fixed order, so that one of its items is a range of pairs of output panels
// for all experts. Where so few items cannot keep all threads busy, experts are split: then an item belongs to one
// expert, as in GEMM 1, and leaves the output of each slot in memory; a last step adds these up in the same order.
struct ChunkPlan {
  Team team;
  bool split_experts;
  int64_t num_pack_items;
  int64_t gate_up_pairs;  // of an element of the ranges of `gate_up`
  ExpertItems gate_up;
  ExpertItems down;  // its offsets are only set if experts are split
  int64_t num_output_items;
};

ItemRange output_items_of_node(const ChunkPlan& plan, int node);
ItemRange output_pairs(const ChunkPlan& plan, int64_t item);

// The arrays that the ExpertItems of a plan point to.
struct ItemMemory {
  int64_t* gate_up_offsets;
  int64_t* down_offsets;
  int32_t* order;
};

ItemMemory take_items(Arena* arena, int64_t num_experts, int num_nodes);

ChunkPlan plan_chunk(const PackedLayer& layer, const MoePlan& plan, const Grouping& grouping, const ItemMemory& memory);

// Operands are packed one tile of tokens at a time.
inline int64_t pack_items(const TokenGroup& group) { return ceil_div(group.count, kTokenTile); }

}  // namespace mxfp4moe
