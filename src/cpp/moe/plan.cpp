#include "moe/plan.h"

#include <algorithm>
#include <numeric>

namespace mxfp4moe {
namespace {

// The work of some tokens on some weights, as the number of bytes that could be streamed in the same time: reading the
// weights once, plus the arithmetic. As many tokens as a weight has bits take about as long as reading the weights.
int64_t read_equivalent(int64_t bytes, int64_t tokens, WeightFormat format) {
  return bytes + bytes * tokens / block_layout(format).weight_bits();
}

// With so many items per thread, a thread that a neighbour slows down holds up the others for only a few percent.
constexpr int64_t kItemsPerThread = 16;

// These bound the memory that each token and slot takes beside its operands.
constexpr int64_t kMaxChunkTokens = 1 << 14, kMaxChunkSlots = 1 << 17;

// Where experts are split, the outputs of all slots may take so much memory per thread; beyond that, experts are not
// split.
constexpr int64_t kSlotBytesPerThread = 1 << 20;

// The bytes of packed weights and block scales of one expert.
int64_t matrix_bytes(const PackedMatrix& m) {
  const BlockLayout block = block_layout(m.format);
  return m.num_panels * m.k_blocks * (block.weight_bytes + block.scale_bytes);
}

int64_t down_pairs(const PackedLayer& layer) { return ceil_div(layer.w2.num_panels, 2); }

// Tells whether some threads would wait for others for more than a tenth of the time.
bool is_uneven(int64_t items, int64_t threads) { return ceil_div(items, threads) * threads * 10 > items * 11; }

// The largest number of items, up to a limit per thread, with which no thread gets a tenth more than its share even if
// it happens to take the larger items.
int64_t even_items(int64_t pairs, int64_t threads, int64_t limit_per_thread) {
  for (int64_t n = limit_per_thread; n > 1; --n) {
    if (n * threads >= pairs) return pairs;
    if (ceil_div(pairs, n * threads) * n * threads * 10 <= pairs * 11) return n * threads;
  }
  return std::min(threads, pairs);
}

// Hot experts, which have several times the mean number of tokens, come first: where arithmetic limits the speed their
// items take longest, and a long item that is done last leaves the other threads waiting. The items of the other
// experts are nearly alike.
void order_experts(const Grouping& grouping, int64_t used_experts, int64_t num_experts, int32_t* order) {
  constexpr int64_t kHot = 3;
  const auto rank_of = [&](int32_t e) {
    const int64_t tokens = grouping.slots_of(e);
    return tokens * used_experts > kHot * grouping.num_slots ? tokens : 0;
  };
  std::iota(order, order + num_experts, 0);
  std::sort(order, order + num_experts,
            [&](int32_t a, int32_t b) { return rank_of(a) != rank_of(b) ? rank_of(a) > rank_of(b) : a < b; });
}

// Cuts the experts into about `target` items in all; each expert gets a number according to its share of the work.
void cut_experts(const PackedLayer& layer, const PackedMatrix& m, const Grouping& grouping, int64_t target,
                 const ExpertItems& items) {
  const int64_t bytes = matrix_bytes(m);
  const auto work_of = [&](int64_t e) {
    const int64_t tokens = grouping.slots_of(e);
    return tokens == 0 ? 0 : read_equivalent(bytes, tokens, m.format);
  };
  int64_t work = 0;
  for (int64_t e = 0; e < layer.num_experts; ++e) work += work_of(e) * items.num_nodes;
  int64_t* offset = items.offsets;
  *offset = 0;
  for (int node = 0; node < items.num_nodes; ++node) {
    const ItemRange node_pairs = part_of({0, items.pairs}, node, items.num_nodes);
    for (int64_t r = 0; r < layer.num_experts; ++r, ++offset) {
      const int64_t e = items.order[r];
      const int64_t limit = work_of(e) == 0 ? 0 : node_pairs.end - node_pairs.begin;
      const double part = static_cast<double>(work_of(e)) / static_cast<double>(std::max<int64_t>(work, 1));
      const int64_t share = static_cast<int64_t>(static_cast<double>(target) * part + 0.5);
      offset[1] = offset[0] + std::clamp<int64_t>(share, limit == 0 ? 0 : 1, limit);
    }
  }
}

// A call that would need more memory than this is computed in chunks of tokens, which does not change its result. Each
// thread has up to 4 MiB besides.
int64_t max_call_bytes(const MoeProblem& problem) {
  constexpr int64_t kLimit = int64_t{512} << 20;
  constexpr int64_t kSpare = 1 << 20;  // so that calls of tiny sizes need no chunks
  const int64_t sizes = problem.layer.hidden_size + problem.layer.intermediate_size;
  const int64_t token_bytes = 2 * sizes * problem.top_k + 4 * problem.layer.hidden_size * rows_per_token(problem);
  const int64_t needed = problem.num_tokens * token_bytes + 32 * problem.layer.num_experts * sizes;
  return std::min(kLimit, needed + kSpare);
}

}  // namespace

MoePlan make_plan(const KernelTable& kernels, const MoeProblem& problem, Team team) {
  const PackedLayer& layer = problem.layer;
  const int64_t k = round_up(layer.hidden_size, kBlockK);
  const int64_t i = round_up(layer.intermediate_size, kBlockK);
  const int64_t max_k = std::max(k, i);
  const int64_t sum_bytes = 4 * sum_row_floats(layer.hidden_size);
  // A token needs its part of the operands of both GEMMs, its sorted slots, and its rows of accumulators.
  const int64_t token_bytes = problem.top_k * (2 * (k + i) + 12) + rows_per_token(problem) * sum_bytes;
  // Tile kernels pad the last group of each expert to a whole tile of tokens.
  const int64_t padding = 2 * kTokenTile * std::min(layer.num_experts, problem.num_tokens * problem.top_k) * (k + i);
  const int64_t limit = max_call_bytes(problem);
  const int64_t bytes = std::max(limit - padding, limit / 2);
  const int64_t chunk =
      std::max<int64_t>(1, std::min({bytes / token_bytes, kMaxChunkTokens, kMaxChunkSlots / problem.top_k}));
  // The chunks have equal sizes, in whole tiles of tokens.
  const int64_t even = round_up(ceil_div(problem.num_tokens, ceil_div(problem.num_tokens, chunk)), kTokenTile);
  const int64_t chunk_tokens = std::min(problem.num_tokens, std::min(chunk, even));
  const bool may_split =
      team.num_threads > 1 && chunk_tokens * problem.top_k * sum_bytes <= team.num_threads * kSlotBytesPerThread;
  const int64_t gate_up_pairs = kernels.whole_blocks ? block_pairs(layer.w13, layer.intermediate_size) : 1;
  return {team, chunk_tokens, {kernels.group_tokens(max_k), kernels.padded_tokens}, max_k, may_split, gate_up_pairs};
}

ItemRange items_of_node(const ExpertItems& items, int node) {
  return {items.offsets[node * items.num_experts], items.offsets[(node + 1) * items.num_experts]};
}

ExpertItem expert_item(const ExpertItems& items, int64_t index) {
  const int64_t* offsets = items.offsets;
  const int64_t i = std::upper_bound(offsets, offsets + items.num_nodes * items.num_experts, index) - offsets - 1;
  const ItemRange node_pairs = part_of({0, items.pairs}, i / items.num_experts, items.num_nodes);
  return {items.order[i % items.num_experts], part_of(node_pairs, index - offsets[i], offsets[i + 1] - offsets[i])};
}

ItemRange output_items_of_node(const ChunkPlan& plan, int node) {
  return part_of({0, plan.num_output_items}, node, plan.team.num_nodes);
}

ItemRange output_pairs(const ChunkPlan& plan, int64_t item) {
  return part_of({0, plan.down.pairs}, item, plan.num_output_items);
}

ItemMemory take_items(Arena* arena, int64_t num_experts, int num_nodes) {
  ItemMemory memory;
  memory.gate_up_offsets = arena->take<int64_t>(num_nodes * num_experts + 1);
  memory.down_offsets = arena->take<int64_t>(num_nodes * num_experts + 1);
  memory.order = arena->take<int32_t>(num_experts);
  return memory;
}

ChunkPlan plan_chunk(const PackedLayer& layer, const MoePlan& moe_plan, const Grouping& grouping,
                     const ItemMemory& memory) {
  const int64_t w13_bytes = matrix_bytes(layer.w13);
  const int64_t w2_bytes = matrix_bytes(layer.w2);
  int64_t used_experts = 0;
  for (int64_t e = 0; e < layer.num_experts; ++e) used_experts += grouping.slots_of(e) > 0;
  order_experts(grouping, used_experts, layer.num_experts, memory.order);

  ChunkPlan plan;
  const int64_t useful = used_experts * (w13_bytes + w2_bytes) / kMinThreadBytes;
  const int threads = static_cast<int>(std::clamp<int64_t>(useful, 1, moe_plan.team.num_threads));
  plan.team = {threads, moe_plan.team.num_nodes};
  const int64_t items = threads == 1 ? 1 : threads * kItemsPerThread;
  const auto items_of = [&](int64_t* offsets, int64_t pairs) {
    return ExpertItems{offsets, memory.order, layer.num_experts, plan.team.num_nodes, pairs};
  };
  plan.gate_up_pairs = moe_plan.gate_up_pairs;
  plan.gate_up = items_of(memory.gate_up_offsets, layer.w13.num_panels / 2 / plan.gate_up_pairs);
  plan.down = items_of(memory.down_offsets, down_pairs(layer));
  cut_experts(layer, layer.w13, grouping, items, plan.gate_up);

  plan.split_experts = moe_plan.may_split_experts && is_uneven(plan.down.pairs, threads);
  if (plan.split_experts) {
    cut_experts(layer, layer.w2, grouping, items, plan.down);
    plan.num_output_items = std::min<int64_t>(threads, plan.down.pairs);
  } else {
    // Each item reads all intermediates, so there are only as many items as keep that below the traffic of the weights.
    const int64_t operand = grouping.num_slots * round_up(layer.intermediate_size, kBlockK) * 2;
    const int64_t limit = std::min(items, used_experts * w2_bytes / std::max<int64_t>(operand, 1));
    plan.num_output_items = even_items(plan.down.pairs, threads, limit / threads);
  }

  plan.num_pack_items = 0;
  for (int64_t g = 0; g < grouping.num_groups; ++g) plan.num_pack_items += pack_items(grouping.groups[g]);
  return plan;
}

}  // namespace mxfp4moe
