#include "moe/describe_plan.h"

#include "kernels/registry.h"

namespace mxfp4moe {

CallPlan describe_plan(const KernelTable& table, const MoeProblem& problem, Team team) {
  const KernelTable& kernels = table_for(table, {problem.layer.w13, problem.layer.w2});
  const MoePlan plan = make_plan(kernels, problem, team);
  MoeProblem chunk = problem;
  chunk.num_tokens = plan.chunk_tokens;
  const std::vector<float> weights(static_cast<size_t>(chunk.num_tokens * chunk.top_k));
  chunk.topk_weights = weights.data();

  Grouping grouping;
  Arena sizes(nullptr);
  take_grouping(&sizes, chunk, plan.groups, &grouping);
  take_items(&sizes, problem.layer.num_experts, team.num_nodes);
  std::vector<uint64_t> memory(static_cast<size_t>(ceil_div(sizes.used(), 8)));
  Arena arena(reinterpret_cast<uint8_t*>(memory.data()));
  take_grouping(&arena, chunk, plan.groups, &grouping);
  const ItemMemory items = take_items(&arena, problem.layer.num_experts, team.num_nodes);
  group_slots(chunk, plan.groups, &grouping);

  const ChunkPlan c = plan_chunk(problem.layer, plan, grouping, items);

  CallPlan result{plan.chunk_tokens, c.team.num_threads, {}, {}};
  const auto append = [](const ExpertItems& items, int64_t unit, int node, std::vector<PlanItem>* to) {
    const ItemRange range = items_of_node(items, node);
    for (int64_t i = range.begin; i < range.end; ++i) {
      const ExpertItem item = expert_item(items, i);
      const ItemRange pairs = pairs_of(item.pairs, unit);
      to->push_back({node, item.expert, pairs.begin, pairs.end});
    }
  };
  for (int node = 0; node < team.num_nodes; ++node) {
    append(c.gate_up, c.gate_up_pairs, node, &result.gate_up);
    if (c.split_experts) {
      append(c.down, 1, node, &result.down);
      continue;
    }
    const ItemRange range = output_items_of_node(c, node);
    for (int64_t i = range.begin; i < range.end; ++i) {
      const ItemRange pairs = output_pairs(c, i);
      result.down.push_back({node, -1, pairs.begin, pairs.end});
    }
  }
  return result;
}

}  // namespace mxfp4moe
