#include "linear/linear.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "memory/workspace.h"
#include "threads/pool.h"
#include "threads/work_queue.h"

namespace mxfp4moe {
namespace {

// Rows are cut at pairs of panels, because the instruction sets with tiles compute two panels at a time.
constexpr int64_t kPartRows = 2 * kPanelRows;

// The parts of the workspace that one thread uses.
struct ThreadMemory {
  uint8_t* operand;
  float* sums;  // [tokens of a group][panels][16]
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
  WorkQueue queue;
};

int64_t take_thread(Arena* arena, const KernelTable& kernels, const LinearProblem& p, const LinearPlan& plan,
                    ThreadMemory* m) {
  const int64_t k = p.weight.k_blocks * kBlockK;
  m->operand = arena->take<uint8_t>(kernels.operand_bytes(kernels.padded_tokens(plan.group_tokens), k));
  m->sums = arena->take<float>(plan.group_tokens * p.weight.num_panels * kPanelRows);
  m->scratch = arena->take<uint8_t>(kernels.scratch_bytes(plan.group_tokens, k));
  return round_up(arena->used(), 4096);
}

// Packs the tokens [first, first + count) into the operand of the GEMM.
void pack_group(const LinearCall& call, int64_t first, int64_t count, uint8_t* operand) {
  const LinearProblem& p = call.problem;
  const int64_t padded = call.kernels.padded_tokens(count);
  for (int64_t t = 0; t < count; t += kTokenTile) {
    call.kernels.pack_tokens({p.hidden_states.data + first * p.hidden_states.stride, p.hidden_states.stride,
                              p.hidden_states.dtype, call.rows + t, std::min<int64_t>(kTokenTile, count - t),
                              std::min<int64_t>(kTokenTile, padded - t), p.shape.k,
                              operand + call.kernels.operand_bytes(t, p.shape.k)});
  }
}

// Writes the logits of rows [row, end) of a panel. The sums of its terms stand one after the other.
void add_terms(const LinearProblem& p, const float* sums, int64_t row, int64_t end, float* out) {
  const int64_t num_terms = p.shape.num_terms;
  for (int64_t r = 0; row < end; ++r, ++row) {
    float value = sums[r];
    if (num_terms > 1 && std::isfinite(value)) {
      float rest = sums[(num_terms - 1) * kPanelRows + r];
      for (int64_t t = num_terms - 2; t > 0; --t) rest += sums[t * kPanelRows + r];
      value += rest;
    }
    out[row] = p.bias != nullptr ? value + p.bias[row] : value;
  }
}

void run_item(const LinearCall& call, int64_t item, const ThreadMemory& m) {
  const LinearProblem& p = call.problem;
  const int64_t group = item / call.plan.row_parts, part = item % call.plan.row_parts;
  const int64_t first = group * call.plan.group_tokens;
  const int64_t count = std::min(call.plan.group_tokens, p.num_tokens - first);
  const ItemRange pairs = part_of({0, ceil_div(p.shape.num_rows, kPartRows)}, part, call.plan.row_parts);
  const int64_t row_begin = pairs.begin * kPartRows;
  const int64_t row_end = std::min(pairs.end * kPartRows, p.shape.num_rows);
  const int64_t stride = p.weight.num_panels * kPanelRows;

  pack_group(call, first, count, m.operand);
  AccumulateArgs args;
  args.matrix = p.weight;
  args.operand = m.operand;
  args.num_tokens = count;
  args.tokens = call.rows;
  args.router_weights = nullptr;
  args.accumulators = m.sums;
  args.accumulator_stride = stride;
  args.scratch = m.scratch;
  for (int64_t t = 0; t < count; ++t) {
    float* sums = m.sums + t * stride;
    std::fill(sums + row_begin * p.shape.num_terms, sums + round_up(row_end, kPanelRows) * p.shape.num_terms, 0.0f);
  }
  run_parts(pairs, pair_products(p.weight, count * p.shape.num_terms), [&](ItemRange step) {
    args.panel_begin = 2 * step.begin * p.shape.num_terms;
    args.panel_end = std::min(2 * step.end * p.shape.num_terms, p.weight.num_panels);
    call.kernels.weights[static_cast<int>(WeightFormat::kBf16)].accumulate(args);
  });
  for (int64_t t = 0; t < count; ++t) {
    float* out = p.out + (first + t) * p.shape.num_rows;
    for (int64_t row = row_begin; row < row_end; row += kPanelRows) {
      add_terms(p, m.sums + t * stride + row * p.shape.num_terms, row, std::min(row + kPanelRows, row_end), out);
    }
  }
}

void run_thread(void* context, int thread, int) {
  LinearCall& call = *static_cast<LinearCall*>(context);
  Arena arena(call.memory + thread * call.thread_bytes);
  ThreadMemory memory;
  take_thread(&arena, call.kernels, call.problem, call.plan, &memory);
  const ItemRange items{0, call.plan.num_groups * call.plan.row_parts};
  call.queue.run(1, [&](int) { return items; }, [&](int64_t item) { run_item(call, item, memory); });
}

}  // namespace

PackedMatrix view_linear(const LinearShape& shape, const uint8_t* data) {
  PackedMatrix m{};
  m.num_panels = ceil_div(shape.num_rows, kPanelRows) * shape.num_terms;
  m.k_blocks = ceil_div(shape.k, kBlockK);
  m.weights = data;
  return m;
}

int64_t linear_bytes(const LinearShape& shape) {
  const PackedMatrix m = view_linear(shape, nullptr);
  return m.num_panels * m.k_blocks * block_layout(WeightFormat::kBf16).weight_bytes;
}

LinearPlan plan_linear(const KernelTable& kernels, const LinearProblem& p, int num_threads) {
  const int64_t bytes = linear_bytes(p.shape), tokens = p.num_tokens;
  // As many tokens as a weight has bits take about as long as reading the weights once.
  const int64_t work = bytes + bytes / block_layout(WeightFormat::kBf16).weight_bits() * tokens;
  const int64_t threads = std::clamp<int64_t>(work / kMinThreadBytes, 1, num_threads);
  const int64_t min_groups = ceil_div(tokens, kernels.group_tokens(p.weight.k_blocks * kBlockK));
  const int64_t groups = std::min(round_up(min_groups, threads), ceil_div(tokens, kTokenTile));
  LinearPlan plan;
  plan.group_tokens = tokens <= kTokenTile ? tokens : round_up(ceil_div(tokens, groups), kTokenTile);
  plan.num_groups = ceil_div(tokens, plan.group_tokens);
  plan.row_parts = std::min(ceil_div(threads, plan.num_groups), ceil_div(p.shape.num_rows, kPartRows));
  plan.num_threads = static_cast<int>(std::min(threads, plan.num_groups * plan.row_parts));
  return plan;
}

Status linear(const KernelTable& kernels, const LinearProblem& problem, int num_threads) {
  if (problem.num_tokens == 0) return Status::kOk;
  const LinearPlan plan = plan_linear(kernels, problem, num_threads);
  Arena sizes(nullptr);
  ThreadMemory memory;
  const int64_t thread_bytes = take_thread(&sizes, kernels, problem, plan, &memory);
  const int64_t rows_bytes = round_up(plan.group_tokens * static_cast<int64_t>(sizeof(int32_t)), 64);
  const Workspace workspace(rows_bytes + plan.num_threads * thread_bytes);
  if (workspace.data() == nullptr) return Status::kOutOfMemory;
  int32_t* rows = reinterpret_cast<int32_t*>(workspace.data());
  std::iota(rows, rows + plan.group_tokens, 0);
  LinearCall call{kernels, problem, plan, rows, workspace.data() + rows_bytes, thread_bytes, {}};
  parallel_run(plan.num_threads, run_thread, &call);
  return Status::kOk;
}

}  // namespace mxfp4moe
