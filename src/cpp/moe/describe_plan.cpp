#include "moe/describe_plan.h"

#include <algorithm>

#include "moe/plan.h"

namespace mxfp4moe {

CallPlan describe_plan(const KernelTable& kernels, const MoeProblem& problem, int num_threads) {
  const MoePlan plan = make_plan(kernels, problem, num_threads);
  MoeProblem chunk = problem;
  chunk.num_tokens = plan.chunk_tokens;
  const std::vector<float> weights(static_cast<size_t>(chunk.num_tokens * chunk.top_k));
  chunk.topk_weights = weights.data();

  Grouping grouping;
  Arena sizes(nullptr);
  take_grouping(&sizes, chunk, plan.groups, &grouping);
  std::vector<uint64_t> memory(static_cast<size_t>(ceil_div(sizes.used(), 8)));
  Arena arena(reinterpret_cast<uint8_t*>(memory.data()));
  take_grouping(&arena, chunk, plan.groups, &grouping);
  group_slots(chunk, plan.groups, &grouping);

  const size_t num_offsets = static_cast<size_t>(problem.layer.num_experts + 1);
  std::vector<int64_t> gate_up_offsets(num_offsets), down_offsets(num_offsets);
  const ChunkPlan c =
      plan_chunk(problem.layer, plan, grouping, num_threads, gate_up_offsets.data(), down_offsets.data());

  CallPlan result{plan.chunk_tokens, c.num_threads, {}, {}};
  const auto append = [](const ExpertItems& items, std::vector<PlanItem>* to) {
    for (int64_t i = 0; i < num_items(items); ++i) {
      const ExpertItem item = expert_item(items, i);
      to->push_back({item.expert, item.pairs.begin, item.pairs.end});
    }
  };
  append(c.gate_up, &result.gate_up);
  if (c.split_experts) {
    append(c.down, &result.down);
  } else {
    for (int64_t i = 0; i < c.num_output_items; ++i) {
      const PairRange item = output_range(c, i);
      result.down.push_back({-1, item.begin, item.end});
    }
  }
  return result;
}

}  // namespace mxfp4moe
