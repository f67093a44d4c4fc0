// The fused experts as a foreign function of XLA.
#include <cstring>
#include <vector>

#include "jax/call_frame.h"
#include "jax/weights_table.h"
#include "kernels/registry.h"
#include "moe/schedule.h"
#include "routing/ids.h"

using namespace mxfp4moe;
using namespace mxfp4moe::jax;

namespace {

KernelTable kernels_of(const CallFrame& call) {
  const int64_t index = call.integer("kernels");
  if (index < 0 || index >= num_kernel_tables() || !kernel_table_supported(static_cast<int>(index))) {
    throw Failure{xla::kFailedPrecondition,
                  "kernels: expected those of this machine, got others: the function was compiled elsewhere"};
  }
  return kernel_table_for(static_cast<int>(index), static_cast<ActivationFormat>(call.integer("activation_format")));
}

// Writes local ids to `local`, where there is a map of experts.
void check_ids(const CallFrame& call, const xla::Buffer& ids, int64_t num_experts, std::vector<int32_t>* local) {
  const int64_t rows = num_rows(ids), columns = num_columns(ids);
  const IdTable given{static_cast<const uint8_t*>(ids.data), rows, columns, 4 * columns, 4, false};
  const xla::Array map = call.integers("expert_map");
  if (map.data != nullptr) local->resize(static_cast<size_t>(rows * columns));
  const int64_t num_ids = map.data == nullptr ? num_experts : static_cast<int64_t>(map.size);
  const int64_t bad =
      local_ids(given, static_cast<const int64_t*>(map.data), num_ids, map.data == nullptr ? nullptr : local->data());
  if (bad >= 0) {
    throw Failure{xla::kInvalidArgument, "topk_ids: expected values in [-1, " + std::to_string(num_ids - 1) +
                                             "], got " + std::to_string(static_cast<const int32_t*>(ids.data)[bad]) +
                                             " at position " + position(ids, bad)};
  }
}

void compute(const CallFrame& call) {
  call.check_counts(3, 1);
  const xla::Buffer &hidden = call.argument(0), &weights = call.argument(1), &ids = call.argument(2);
  const xla::Buffer& out = call.result(0);
  const Use use(call.integer("number"), "experts");
  MoeProblem problem{};
  problem.layer = use.weights().experts;
  problem.hidden_states = rows_of(hidden);
  problem.out = rows_of(out);
  problem.num_tokens = num_rows(hidden);
  problem.top_k = num_columns(ids);
  problem.combine = call.integer("combine") != 0;
  problem.apply_router_weight_on_input = call.integer("apply_router_weight_on_input") != 0;
  problem.activation = {static_cast<ActivationKind>(call.integer("activation")), call.number("alpha"),
                        call.number("limit")};
  const int64_t size = problem.layer.hidden_size;
  if (num_columns(hidden) != size || num_columns(out) != size || ids.dtype != xla::kS32 || weights.dtype != xla::kF32 ||
      num_rows(ids) != problem.num_tokens || num_rows(weights) != problem.num_tokens ||
      num_columns(weights) != problem.top_k || num_rows(out) != problem.num_tokens * rows_per_token(problem)) {
    unexpected("arrays of other shapes");
  }
  const int64_t num_threads = call.integer("num_threads");
  if (problem.num_tokens == 0) return;
  if (problem.top_k == 0) {
    std::memset(problem.out.data, 0, static_cast<size_t>(num_rows(out) * problem.out.stride));
    return;
  }
  std::vector<int32_t> local;
  check_ids(call, ids, problem.layer.num_experts, &local);
  problem.topk_weights = static_cast<const float*>(weights.data);
  problem.local_ids = local.empty() ? static_cast<const int32_t*>(ids.data) : local.data();
  if (fused_experts(kernels_of(call), problem, static_cast<int>(num_threads)) == Status::kOutOfMemory)
    throw std::bad_alloc();
}

}  // namespace

extern "C" MXFP4MOE_API xla::Error* mxfp4moe_jax_fused_experts(xla::Frame* frame) { return guarded(frame, compute); }
