#include "linear/linear.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/registry.h"
#include "memory/workspace.h"
#include "threads/pool.h"
#include "threads/split.h"
#include "threads/work_queue.h"

namespace mxfp4moe {
namespace {

// Rows are cut at pairs of panels, because the instruction sets with tiles compute two panels at a time.
constexpr int64_t kPairRows = 2 * kPanelRows;

// The sums of a step stay in an L2 cache.
constexpr int64_t kStepFloats = 32 << 10;

// Each item packs its tokens. With this many rows, computing takes about a hundred times as long as packing.
constexpr int64_t kMinPartRows = 512;

// The last items of a call end at about the same time if each thread has had some.
constexpr int64_t kPartsPerThread = 8;

// The parts of the workspace that one thread uses.
struct ThreadMemory {
  uint8_t* operand;
  float* sums;  // [tokens of a group][panels of a step][16]
  uint8_t* scratch;
};

// This is one call, as its threads see it.
struct LinearCall {
  const KernelTable& kernels;
  const LinearProblem& problem;
  const LinearPlan& plan;
  const int32_t* rows;  // 0, 1, ...: the tokens of a group are consecutive rows
  uint8_t* memory;      // thread_bytes for each thread
  int64_t thread_bytes;
  int num_nodes;
  WorkQueue queue;
};

int64_t num_pairs(const MatrixShape& shape) { return ceil_div(shape.num_rows, kPairRows); }

int64_t step_floats(const LinearPlan& plan, const MatrixShape& shape) {
  return plan.step_pairs * kPairRows * shape.num_terms;
}

int64_t take_thread(Arena* arena, const KernelTable& kernels, const LinearProblem& p, const LinearPlan& plan,
                    ThreadMemory* m) {
  const int64_t k = p.weight.k_blocks * kBlockK;
  m->operand = arena->take<uint8_t>(kernels.operand_bytes(kernels.padded_tokens(plan.group_tokens), k));
  m->sums = arena->take<float>(plan.group_tokens * step_floats(plan, p.shape));
  m->scratch = arena->take<uint8_t>(kernels.scratch_bytes(plan.group_tokens, k));
  return round_up(arena->used(), 4096);
}

struct TokenRange {
  int64_t first, count;
};

// Packs the tokens of a group into the operand of the GEMM.
void pack_group(const LinearCall& call, TokenRange group, uint8_t* operand) {
  const LinearProblem& p = call.problem;
  const int64_t padded = call.kernels.padded_tokens(group.count);
  for (int64_t t = 0; t < group.count; t += kTokenTile) {
    call.kernels.pack_tokens({p.hidden_states.data + group.first * p.hidden_states.stride, p.hidden_states.stride,
                              p.hidden_states.dtype, call.rows + t, std::min<int64_t>(kTokenTile, group.count - t),
                              std::min<int64_t>(kTokenTile, padded - t), p.shape.k,
                              operand + call.kernels.operand_bytes(t, p.shape.k), nullptr});
  }
}

// `sums` of a token holds, for each panel of rows, one panel of sums for each term. Adds the terms of a row, so that
// `panels` panels of finished sums are left.
void add_terms(int64_t num_terms, int64_t panels, float* sums) {
  for (int64_t panel = 0; panel < panels; ++panel) {
    const float* terms = sums + panel * num_terms * kPanelRows;
    for (int64_t r = 0; r < kPanelRows; ++r) {
      const float value = terms[r];
      float rest = terms[(num_terms - 1) * kPanelRows + r];
      for (int64_t t = num_terms - 2; t > 0; --t) rest += terms[t * kPanelRows + r];
      sums[panel * kPanelRows + r] = std::isfinite(value) ? value + rest : value;
    }
  }
}

// Computes and writes what some pairs of panels give for a group of tokens.
void run_step(const LinearCall& call, TokenRange group, ItemRange step, const ThreadMemory& m) {
  const LinearProblem& p = call.problem;
  const int64_t terms = p.shape.num_terms, stride = step_floats(call.plan, p.shape);
  const int64_t first_panel = 2 * step.begin * terms;
  const int64_t panels = std::min(2 * step.end * terms, p.weight.num_panels) - first_panel;
  for (int64_t t = 0; t < group.count; ++t) std::fill_n(m.sums + t * stride, panels * kPanelRows, 0.0f);

  AccumulateArgs args;
  args.matrix = skip_panels(p.weight, first_panel);
  args.matrix.bias = nullptr;  // which is added after the terms
  args.operand = m.operand;
  args.num_tokens = group.count;
  args.tokens = call.rows;
  args.router_weights = nullptr;
  args.accumulators = m.sums;
  args.accumulator_stride = stride;
  args.scratch = m.scratch;
  const ItemRange all{0, step.end - step.begin};
  run_parts(all, pair_products(p.weight, group.count * terms), [&](ItemRange part) {
    args.panel_begin = 2 * part.begin * terms;
    args.panel_end = std::min(2 * part.end * terms, panels);
    call.kernels.weights[static_cast<int>(p.weight.format)].accumulate(args);
  });

  const int64_t begin = step.begin * kPairRows, end = std::min(step.end * kPairRows, p.shape.num_rows);
  for (int64_t t = 0; t < group.count; ++t) {
    float* sums = m.sums + t * stride;
    if (terms > 1) add_terms(terms, panels / terms, sums);
    if (p.weight.bias == nullptr) continue;
    for (int64_t row = begin; row < end; ++row) sums[row - begin] += p.weight.bias[row];
  }
  uint8_t* out = p.out.data + group.first * p.out.stride + begin * value_bytes(p.out.dtype);
  call.kernels.store_output({m.sums, stride, out, p.out.stride, p.out.dtype, group.count, end - begin});
}

void run_item(const LinearCall& call, int64_t item, const ThreadMemory& m) {
  const LinearPlan& plan = call.plan;
  const int64_t first = item % plan.num_groups * plan.group_tokens;
  const TokenRange group{first, std::min(plan.group_tokens, call.problem.num_tokens - first)};
  const ItemRange pairs = part_of({0, num_pairs(call.problem.shape)}, item / plan.num_groups, plan.row_parts);
  pack_group(call, group, m.operand);
  for (int64_t pair = pairs.begin; pair < pairs.end; pair += plan.step_pairs) {
    if (pair > pairs.begin && !keep_going()) return;
    run_step(call, group, {pair, std::min(pair + plan.step_pairs, pairs.end)}, m);
  }
}

void run_thread(void* context, int thread, int) {
  LinearCall& call = *static_cast<LinearCall*>(context);
  Arena arena(call.memory + thread * call.thread_bytes);
  ThreadMemory memory;
  take_thread(&arena, call.kernels, call.problem, call.plan, &memory);
  const auto items = [&](int node) {
    const ItemRange parts = part_of({0, call.plan.row_parts}, node, call.num_nodes);
    return ItemRange{parts.begin * call.plan.num_groups, parts.end * call.plan.num_groups};
  };
  call.queue.run(call.num_nodes, items, [&](int64_t item) { run_item(call, item, memory); });
}

}  // namespace

LinearPlan plan_linear(const KernelTable& kernels, const LinearProblem& p, int num_threads) {
  const BlockLayout block = block_layout(p.weight.format);
  const int64_t tokens = p.num_tokens, pairs = num_pairs(p.shape);
  const int64_t bytes = p.weight.num_panels * p.weight.k_blocks * block.weight_bytes;
  // As many tokens as a weight has bits take about as long as reading the weights once.
  const int64_t work = bytes + bytes / block.weight_bits() * tokens;
  const int64_t threads = std::clamp<int64_t>(work / kMinThreadBytes, 1, num_threads);
  const int64_t min_groups = ceil_div(tokens, kernels.group_tokens(p.weight.k_blocks * kBlockK));
  const int64_t groups = std::min(round_up(min_groups, threads), ceil_div(tokens, kTokenTile));
  LinearPlan plan;
  plan.group_tokens = tokens <= kTokenTile ? tokens : round_up(ceil_div(tokens, groups), kTokenTile);
  plan.num_groups = ceil_div(tokens, plan.group_tokens);
  const int64_t needed = ceil_div(threads, plan.num_groups);
  const int64_t useful = std::min(kPartsPerThread * needed, p.shape.num_rows / kMinPartRows);
  plan.row_parts = std::min(std::max(needed, useful), pairs);
  plan.num_threads = static_cast<int>(std::min(threads, plan.num_groups * plan.row_parts));
  const int64_t limit = kStepFloats / (plan.group_tokens * kPairRows * p.shape.num_terms);
  plan.step_pairs = std::clamp<int64_t>(limit, 1, ceil_div(pairs, plan.row_parts));
  return plan;
}

Status linear(const KernelTable& table, const LinearProblem& problem, int num_threads) {
  if (problem.num_tokens == 0) return Status::kOk;
  const KernelTable& kernels = table_for(table, {problem.weight});
  const LinearPlan plan = plan_linear(kernels, problem, num_threads);
  Arena sizes(nullptr);
  ThreadMemory memory;
  const int64_t thread_bytes = take_thread(&sizes, kernels, problem, plan, &memory);
  const int64_t rows_bytes = round_up(plan.group_tokens * static_cast<int64_t>(sizeof(int32_t)), 64);
  const Workspace workspace(rows_bytes + plan.num_threads * thread_bytes);
  if (workspace.data() == nullptr) return Status::kOutOfMemory;
  int32_t* rows = reinterpret_cast<int32_t*>(workspace.data());
  std::iota(rows, rows + plan.group_tokens, 0);
  LinearCall call{kernels, problem, plan, rows, workspace.data() + rows_bytes, thread_bytes, num_nodes(), {}};
  parallel_run(plan.num_threads, run_thread, &call);
  return Status::kOk;
}

}  // namespace mxfp4moe
