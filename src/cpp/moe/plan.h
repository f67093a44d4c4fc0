// How a call is cut into work: a pure function of the problem's sizes, printable and testable by itself.
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
};

MoePlan make_plan(const KernelTable& kernels, const PackedLayer& layer, int64_t num_tokens, int64_t top_k);

// The work of one chunk, once its tokens are grouped: gate_up items are (expert, range of panel pairs), down items
// are ranges of pairs of output panels for all experts. Items are handed out in order to whichever thread is free.
struct ChunkPlan {
  int num_threads;
  int64_t num_pack_items;
  int64_t num_gate_up_items;
  int64_t num_down_items;
};

// `item_offsets` [num_experts + 1]: the gate_up items of expert e are [e], [e + 1].
ChunkPlan plan_chunk(const PackedLayer& layer, const Grouping& grouping, int num_threads, int64_t* item_offsets);

// Operands are packed sixteen tokens at a time.
inline int64_t pack_items(const TokenGroup& group) { return ceil_div(group.count, 16); }

}  // namespace mxfp4moe
