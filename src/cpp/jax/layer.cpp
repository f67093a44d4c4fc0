// Layers as a foreign function of XLA.
#include <vector>

#include "jax/call_frame.h"
#include "jax/weights_table.h"

using namespace mxfp4moe;
using namespace mxfp4moe::jax;

namespace {

void compute(const CallFrame& call) {
  const bool has_router = call.integer("has_router_input") != 0, has_ids = call.integer("has_input_ids") != 0;
  call.check_counts(1 + has_router + has_ids, 1);
  const xla::Buffer &hidden = call.argument(0), &out = call.result(0);
  const Use use(call.integer("number"), "layer");
  const Rows rows = rows_of(hidden), results = rows_of(out);
  mxfp4moe_layer_info info{};
  info.struct_size = sizeof(info);
  if (mxfp4moe_get_layer_info(use.weights().layer, &info) != MXFP4MOE_OK) unexpected("no layer");
  mxfp4moe_layer_args args{};
  args.struct_size = sizeof(args);
  args.num_tokens = num_rows(hidden);
  if (num_columns(hidden) != info.hidden_size || num_columns(out) != info.hidden_size ||
      num_rows(out) != args.num_tokens) {
    unexpected("arrays of other shapes");
  }
  args.hidden_states = rows.data;
  args.hidden_states_dtype = static_cast<int32_t>(rows.dtype);
  args.out = results.data;
  args.out_dtype = static_cast<int32_t>(results.dtype);
  if (has_router) {
    const xla::Buffer& router = call.argument(1);
    const Rows router_rows = rows_of(router);
    if (num_columns(router) != info.hidden_size || num_rows(router) != args.num_tokens) unexpected("another router");
    args.router_hidden_states = router_rows.data;
    args.router_hidden_states_dtype = static_cast<int32_t>(router_rows.dtype);
  }
  std::vector<int64_t> ids;
  if (has_ids) {
    const xla::Buffer& given = call.argument(1 + has_router);
    int64_t count = 1;
    for (int64_t axis = 0; axis < given.rank; ++axis) count *= given.dims[axis];
    if (given.dtype != xla::kS32 || count != args.num_tokens) unexpected("other token ids");
    const int32_t* const data = static_cast<const int32_t*>(given.data);
    ids.assign(data, data + count);
    args.input_ids = ids.data();
  }
  args.propagate_nonfinite = static_cast<int32_t>(call.integer("propagate_nonfinite"));
  mxfp4moe_options options{};
  options.struct_size = sizeof(options);
  options.num_threads = static_cast<int32_t>(call.integer("num_threads"));
  options.isa = static_cast<int32_t>(call.integer("isa"));
  const mxfp4moe_status status = mxfp4moe_apply_layer(use.weights().layer, &args, &options);
  if (status == MXFP4MOE_OK) return;
  const bool no_memory = status == MXFP4MOE_OUT_OF_MEMORY;
  throw Failure{no_memory ? xla::kResourceExhausted : xla::kInvalidArgument, mxfp4moe_last_error()};
}

}  // namespace

extern "C" MXFP4MOE_API xla::Error* mxfp4moe_jax_layer(xla::Frame* frame) { return guarded(frame, compute); }
