#include "moe/schedule.h"

#include <algorithm>
#include <numeric>

#include "kernels/registry.h"
#include "memory/workspace.h"
#include "moe/group.h"
#include "moe/plan.h"
#include "threads/pool.h"
#include "threads/work_queue.h"

namespace mxfp4moe {
namespace {

// The parts of the workspace that a chunk of tokens uses.
struct ChunkMemory {
  Grouping grouping;
  ItemMemory items;
  int32_t* pack_first_item;  // for each group, the item that packs its first tile of tokens
  uint8_t* operand;          // the operand of GEMM 1, group after group
  uint8_t* intermediate;     // the operand of GEMM 2, group after group
  float* accumulators;       // [tokens, or slots that stay apart][sum_row_floats]
  int32_t* slot_rows;        // 0, 1, 2, ...: the rows of slot_outputs
  float* slot_outputs;       // [slots][sum_row_floats], if experts may be split
  uint8_t* scratch;          // scratch_bytes for each thread
  int64_t scratch_bytes;
};

int64_t take_chunk(Arena* arena, const KernelTable& kernels, const MoeProblem& chunk, const MoePlan& plan,
                   ChunkMemory* m) {
  const PackedLayer& layer = chunk.layer;
  const int64_t slots = chunk.num_tokens * chunk.top_k;
  const int64_t padded_slots = max_padded_slots(layer.num_experts, slots, plan.groups);
  take_grouping(arena, chunk, plan.groups, &m->grouping);
  m->items = take_items(arena, layer.num_experts, plan.team.num_nodes);
  m->pack_first_item = arena->take<int32_t>(max_groups(layer.num_experts, slots, plan.groups));
  m->operand = arena->take<uint8_t>(kernels.operand_bytes(padded_slots, layer.hidden_size));
  m->intermediate = arena->take<uint8_t>(kernels.operand_bytes(padded_slots, layer.intermediate_size));
  const int64_t row = sum_row_floats(layer.hidden_size);
  m->accumulators = arena->take<float>(chunk.num_tokens * rows_per_token(chunk) * row);
  m->slot_rows = arena->take<int32_t>(plan.may_split_experts ? slots : 0);
  m->slot_outputs = arena->take<float>(plan.may_split_experts ? slots * row : 0);
  const int64_t group = std::min(plan.groups.max_tokens, round_up(slots, kTokenTile));
  m->scratch_bytes = round_up(kernels.scratch_bytes(group, plan.max_k), 4096);
  m->scratch = arena->take<uint8_t>(m->scratch_bytes * plan.team.num_threads);
  return arena->used();
}

// This is one chunk of tokens, which the threads that compute it share.
class Chunk {
 public:
  Chunk(const KernelTable& kernels, const MoeProblem& problem, const ChunkMemory& memory, const ChunkPlan& plan)
      : kernels_(kernels),
        gate_up_(kernels.weights[static_cast<int>(problem.layer.w13.format)].gate_up),
        accumulate_(kernels.weights[static_cast<int>(problem.layer.w2.format)].accumulate),
        p_(problem),
        m_(memory),
        plan_(plan) {}

  void run() { parallel_run(plan_.team.num_threads, &Chunk::thread_main, this); }

 private:
  static void thread_main(void* self, int thread, int num_threads) {
    static_cast<Chunk*>(self)->run_thread(thread, num_threads);
  }

  void run_thread(int thread, int num_threads) {
    uint8_t* scratch = m_.scratch + thread * m_.scratch_bytes;
    const int nodes = plan_.team.num_nodes;
    const auto pack_items = [&](int) { return ItemRange{0, plan_.num_pack_items}; };
    const auto gate_up_items = [&](int node) { return items_of_node(plan_.gate_up, node); };
    const auto down_items = [&](int node) { return items_of_node(plan_.down, node); };
    const auto output_items = [&](int node) { return output_items_of_node(plan_, node); };
    pack_queue_.run(1, pack_items, [&](int64_t item) { pack_item(item); });
    barrier_.wait(num_threads);
    gate_up_queue_.run(nodes, gate_up_items, [&](int64_t item) { gate_up_item(item, scratch); });
    barrier_.wait(num_threads);
    if (plan_.split_experts) {
      down_queue_.run(nodes, down_items, [&](int64_t item) { down_item(item, scratch); });
      barrier_.wait(num_threads);
    }
    output_queue_.run(nodes, output_items, [&](int64_t item) { output_item(item, scratch); });
  }

  uint8_t* group_operand(uint8_t* base, const TokenGroup& group, int64_t k) const {
    return base + kernels_.operand_bytes(group.operand_first, k);
  }

  // Packs one tile of tokens of a group into the operand of GEMM 1.
  void pack_item(int64_t item) const {
    const Grouping& g = m_.grouping;
    const int32_t* first_item = m_.pack_first_item;
    const int64_t index =
        std::upper_bound(first_item, first_item + g.num_groups, static_cast<int32_t>(item)) - first_item - 1;
    const TokenGroup& group = g.groups[index];
    const int64_t first = (item - first_item[index]) * kTokenTile;
    const int64_t k = p_.layer.hidden_size;
    const PackedLayer& layer = p_.layer;
    const int32_t* columns = layer.columns == nullptr ? nullptr : layer.columns + place_of(layer.w13, group.expert) * k;
    kernels_.pack_tokens({p_.hidden_states.data, p_.hidden_states.stride, p_.hidden_states.dtype,
                          g.tokens + group.first + first, std::min<int64_t>(kTokenTile, group.count - first),
                          std::min<int64_t>(kTokenTile, kernels_.padded_tokens(group.count) - first), k,
                          group_operand(m_.operand, group, k) + kernels_.operand_bytes(first, k), columns});
  }

  // Calls f for the groups of an expert, which has at least one.
  template <class F>
  void for_groups(int64_t expert, F&& f) const {
    const Grouping& g = m_.grouping;
    const TokenGroup* begin = g.groups;
    const TokenGroup* end = begin + g.num_groups;
    const TokenGroup* group =
        std::lower_bound(begin, end, expert, [](const TokenGroup& a, int64_t e) { return a.expert < e; });
    do {
      f(*group++);
    } while (group != end && group->expert == expert && keep_going());
  }

  void gate_up_item(int64_t index, uint8_t* scratch) const {
    const PackedLayer& layer = p_.layer;
    const ExpertItem item = expert_item(plan_.gate_up, index);
    GateUpArgs args;
    args.w13 = expert_matrix(layer.w13, item.expert);
    args.activation = p_.activation;
    args.intermediate_size = layer.intermediate_size;
    args.scratch = scratch;
    for_groups(item.expert, [&](const TokenGroup& group) {
      args.operand = group_operand(m_.operand, group, layer.hidden_size);
      args.intermediate = group_operand(m_.intermediate, group, layer.intermediate_size);
      args.num_tokens = group.count;
      args.input_weights = p_.apply_router_weight_on_input ? m_.grouping.weights + group.first : nullptr;
      const int64_t unit = plan_.gate_up_pairs;
      run_parts(item.pairs, unit * pair_products(layer.w13, group.count), [&](ItemRange units) {
        const ItemRange pairs = pairs_of(units, unit);
        args.pair_begin = pairs.begin;
        args.pair_end = pairs.end;
        gate_up_(args);
      });
    });
  }

  struct Columns {
    ItemRange pairs;
    int64_t first, count;  // with padding
  };

  Columns columns(ItemRange pairs) const {
    const int64_t begin = 2 * pairs.begin, end = std::min(p_.layer.w2.num_panels, 2 * pairs.end);
    return {pairs, begin * kPanelRows, (end - begin) * kPanelRows};
  }

  int64_t row_floats() const { return sum_row_floats(p_.layer.hidden_size); }

  // Adds what a group contributes to some columns to the rows of `accumulators` that `rows` names.
  void add_group(const TokenGroup& group, const Columns& c, const int32_t* rows, float* accumulators,
                 uint8_t* scratch) const {
    const PackedLayer& layer = p_.layer;
    AccumulateArgs args;
    args.matrix = expert_matrix(layer.w2, group.expert);
    args.operand = group_operand(m_.intermediate, group, layer.intermediate_size);
    args.num_tokens = group.count;
    args.tokens = rows + group.first;
    args.router_weights = p_.apply_router_weight_on_input ? nullptr : m_.grouping.weights + group.first;
    args.accumulators = accumulators;
    args.accumulator_stride = row_floats();
    args.scratch = scratch;
    run_parts(c.pairs, pair_products(layer.w2, group.count), [&](ItemRange pairs) {
      args.panel_begin = 2 * pairs.begin;
      args.panel_end = std::min(layer.w2.num_panels, 2 * pairs.end);
      accumulate_(args);
    });
  }

  // Computes what one expert contributes to some columns, for each of its slots.
  void down_item(int64_t index, uint8_t* scratch) const {
    const ExpertItem item = expert_item(plan_.down, index);
    const Columns c = columns(item.pairs);
    for_groups(item.expert, [&](const TokenGroup& group) {
      for (int64_t s = group.first; s < group.first + group.count; ++s) {
        std::fill_n(m_.slot_outputs + s * row_floats() + c.first, c.count, 0.0f);
      }
      add_group(group, c, m_.slot_rows, m_.slot_outputs, scratch);
    });
  }

  // Computes some columns of the result. The experts of a token are added in ascending order, always the same one; or
  // each slot has a row of its own, which stays zero if it is dropped.
  void output_item(int64_t index, uint8_t* scratch) const {
    const Grouping& g = m_.grouping;
    const int64_t row = row_floats();
    const Columns c = columns(output_pairs(plan_, index));
    const int64_t num_rows = p_.num_tokens * rows_per_token(p_);
    for (int64_t r = 0; r < num_rows; ++r) std::fill_n(m_.accumulators + r * row + c.first, c.count, 0.0f);
    if (plan_.split_experts) {
      for (int64_t s = 0; s < g.num_slots; ++s) {
        const float* from = m_.slot_outputs + s * row + c.first;
        float* to = m_.accumulators + g.sum_rows[s] * row + c.first;
        for (int64_t i = 0; i < c.count; ++i) to[i] += from[i];
      }
    } else {
      for (int64_t i = 0; i < g.num_groups && keep_going(); ++i) {
        add_group(g.groups[i], c, g.sum_rows, m_.accumulators, scratch);
      }
    }
    const int64_t out_bytes = p_.out.dtype == DType::kFloat32 ? 4 : 2;
    kernels_.store_output({m_.accumulators + c.first, row, p_.out.data + c.first * out_bytes, p_.out.stride,
                           p_.out.dtype, num_rows, std::min(c.count, p_.layer.hidden_size - c.first)});
  }

  const KernelTable& kernels_;
  void (*const gate_up_)(const GateUpArgs&);
  void (*const accumulate_)(const AccumulateArgs&);
  const MoeProblem& p_;
  const ChunkMemory& m_;
  const ChunkPlan& plan_;
  Barrier barrier_;
  WorkQueue pack_queue_, gate_up_queue_, down_queue_, output_queue_;
};

// The part of a problem that has the tokens [first, first + count).
MoeProblem chunk_of(const MoeProblem& problem, int64_t first, int64_t count) {
  MoeProblem chunk = problem;
  chunk.hidden_states.data += first * chunk.hidden_states.stride;
  chunk.out.data += first * rows_per_token(chunk) * chunk.out.stride;
  chunk.topk_weights += first * chunk.top_k;
  chunk.local_ids += first * chunk.top_k;
  chunk.num_tokens = count;
  return chunk;
}

// The bytes that a call allocates beside its result.
int64_t chunk_bytes(const KernelTable& kernels, const MoeProblem& problem, const MoePlan& plan) {
  Arena arena(nullptr);
  ChunkMemory memory;
  return take_chunk(&arena, kernels, chunk_of(problem, 0, plan.chunk_tokens), plan, &memory);
}

}  // namespace

Status fused_experts(const KernelTable& table, const MoeProblem& problem, int num_threads) {
  if (problem.num_tokens == 0) return Status::kOk;
  const KernelTable& kernels = table_for(table, {problem.layer.w13, problem.layer.w2});
  const MoePlan plan = make_plan(kernels, problem, {num_threads, num_nodes()});
  Workspace workspace(chunk_bytes(kernels, problem, plan));
  if (workspace.data() == nullptr) return Status::kOutOfMemory;
  for (int64_t first = 0; first < problem.num_tokens && keep_going(); first += plan.chunk_tokens) {
    const MoeProblem chunk = chunk_of(problem, first, std::min(plan.chunk_tokens, problem.num_tokens - first));
    Arena arena(workspace.data());
    ChunkMemory memory;
    take_chunk(&arena, kernels, chunk, plan, &memory);
    group_slots(chunk, plan.groups, &memory.grouping);
    const ChunkPlan chunk_plan = plan_chunk(chunk.layer, plan, memory.grouping, memory.items);
    int32_t first_item = 0;
    for (int64_t g = 0; g < memory.grouping.num_groups; ++g) {
      memory.pack_first_item[g] = first_item;
      first_item += static_cast<int32_t>(pack_items(memory.grouping.groups[g]));
    }
    if (chunk_plan.split_experts) std::iota(memory.slot_rows, memory.slot_rows + memory.grouping.num_slots, 0);
    Chunk(kernels, chunk, memory, chunk_plan).run();
  }
  return Status::kOk;
}

}  // namespace mxfp4moe
