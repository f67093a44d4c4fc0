#include "moe/plan.h"

#include <algorithm>

namespace mxfp4moe {
namespace {

// A group's work on one panel, in bytes of weights streamed: the memory's time plus the arithmetic's. About as many
// tokens as a weight has bits take as long as reading the weights once.
int64_t read_equivalent(int64_t bytes, int64_t tokens, WeightFormat format) {
  return bytes + bytes * tokens / block_layout(format).weight_bits();
}

// Items per thread: enough that a thread slowed by a neighbour holds up the others for a few percent only.
constexpr int64_t kItemsPerThread = 16;

// Less work than this is not worth another thread (about 10 us of reading).
constexpr int64_t kMinThreadBytes = 128 << 10;

constexpr int64_t kMaxChunkTokens = 1 << 14;

// Bytes of the packed weights and block scales of one expert.
int64_t matrix_bytes(WeightFormat format, const PackedMatrix& m) {
  const BlockLayout block = block_layout(format);
  return m.num_panels * m.k_blocks * (block.weight_bytes + block.scale_bytes);
}

}  // namespace

MoePlan make_plan(const KernelTable& kernels, const PackedLayer& layer, int64_t num_tokens, int64_t top_k) {
  const int64_t k = round_up(layer.hidden_size, kBlockK);
  const int64_t i = round_up(layer.intermediate_size, kBlockK);
  const int64_t max_k = std::max(k, i);
  // Operands of both GEMMs and the sorted slots, and a row of accumulators.
  const int64_t token_bytes = top_k * (2 * (k + i) + 8) + 4 * k;
  const int64_t chunk = std::max<int64_t>(1, std::min(kMaxCallBytes / token_bytes, kMaxChunkTokens));
  // Chunks of equal size, in whole sixteens.
  const int64_t even = round_up(ceil_div(num_tokens, ceil_div(num_tokens, chunk)), 16);
  return {std::min(num_tokens, std::min(chunk, even)), {kernels.group_tokens(max_k), kernels.padded_tokens}, max_k};
}

ChunkPlan plan_chunk(const PackedLayer& layer, const Grouping& grouping, int num_threads, int64_t* item_offsets) {
  const int64_t pairs = layer.w13.num_panels / 2;
  const int64_t w13_bytes = matrix_bytes(layer.format, layer.w13);
  const int64_t w2_bytes = matrix_bytes(layer.format, layer.w2);

  int64_t used_experts = 0, gate_up_work = 0;
  for (int64_t e = 0; e < layer.num_experts; ++e) {
    const int64_t tokens = grouping.expert_offsets[e + 1] - grouping.expert_offsets[e];
    if (tokens == 0) continue;
    ++used_experts;
    gate_up_work += read_equivalent(w13_bytes, tokens, layer.format);
  }

  ChunkPlan plan;
  plan.num_threads =
      static_cast<int>(std::clamp<int64_t>(used_experts * (w13_bytes + w2_bytes) / kMinThreadBytes, 1, num_threads));
  const int64_t items = plan.num_threads == 1 ? 1 : plan.num_threads * kItemsPerThread;

  item_offsets[0] = 0;
  for (int64_t e = 0; e < layer.num_experts; ++e) {
    const int64_t tokens = grouping.expert_offsets[e + 1] - grouping.expert_offsets[e];
    const double exact = static_cast<double>(items) *
                         static_cast<double>(read_equivalent(w13_bytes, tokens, layer.format)) /
                         static_cast<double>(gate_up_work);
    const int64_t share = tokens == 0 ? 0 : std::clamp<int64_t>(static_cast<int64_t>(exact + 0.5), 1, pairs);
    item_offsets[e + 1] = item_offsets[e] + share;
  }
  plan.num_gate_up_items = item_offsets[layer.num_experts];

  // Each item of GEMM 2 reads all intermediates, so no more items than keep that below the weights' own traffic.
  const int64_t operand = grouping.num_slots * round_up(layer.intermediate_size, kBlockK) * 2;
  int64_t down_items = std::min(items, used_experts * w2_bytes / std::max<int64_t>(operand, 1));
  down_items = std::max<int64_t>(down_items / plan.num_threads, 1) * plan.num_threads;
  plan.num_down_items = std::min(down_items, ceil_div(layer.w2.num_panels, 2));

  plan.num_pack_items = 0;
  for (int64_t g = 0; g < grouping.num_groups; ++g) plan.num_pack_items += pack_items(grouping.groups[g]);
  return plan;
}

}  // namespace mxfp4moe
