// The functions of mxfp4moe.h that make, describe and use handles.
#include <cmath>
#include <limits>
#include <utility>

#include "capi/given_layer.h"
#include "capi/layer.h"
#include "routing/ids.h"

using namespace mxfp4moe;
using namespace mxfp4moe::capi;

struct mxfp4moe_experts {
  const Experts value;
};
struct mxfp4moe_linear {
  const Linear value;
};
struct mxfp4moe_layer {
  const Layer value;
};

namespace {

constexpr int64_t kMaxTokens = (int64_t{1} << 31) - 1;

void check_result(const char* name, const void* result) {
  if (result == nullptr) invalid(name, "a place for the handle", "NULL");
}

// Opens a file of that kind; `make` makes a handle of it.
template <class Handle, class Make>
mxfp4moe_status open_handle(const char* path, const char* kind, int32_t verify, const mxfp4moe_options* options,
                            Handle** handle, Make&& make) {
  return guarded([&] {
    check_result(kind, handle);
    check_flag("verify", verify);
    const Call call(options);
    const PackedFile file(path, kind, verify ? call.num_threads() : 0);
    *handle = new Handle{make(file, call)};
  });
}

void check_tokens(int64_t num_tokens) { check_range("num_tokens", num_tokens, 0, kMaxTokens); }

// A map from global ids, if there is one, to those of `num_experts`.
Extent check_expert_map(const int64_t* map, int64_t size, int64_t num_experts) {
  check_range("num_global_experts", size, map == nullptr ? 0 : 1, map == nullptr ? 0 : kMaxExperts);
  const Extent extent = check_memory("expert_map", map, 8 * size, 8);
  for (int64_t i = 0; i < size; ++i) {
    if (map[i] < -1 || map[i] >= num_experts) {
      invalid("expert_map", "values in [-1, " + text_of(num_experts - 1) + "]",
              text_of(map[i]) + " at position " + text_of(i));
    }
  }
  return extent;
}

// Checks the ids of the slots of a call; with a map, returns the local ones.
std::vector<int32_t> check_ids(const mxfp4moe_fused_experts_args& args, int64_t num_experts) {
  const int64_t count = args.num_tokens * args.top_k;
  if (count == 0) return {};
  std::vector<int32_t> local(args.expert_map == nullptr ? 0 : static_cast<size_t>(count));
  const IdTable ids{
      reinterpret_cast<const uint8_t*>(args.topk_ids), args.num_tokens, args.top_k, 4 * args.top_k, 4, false};
  const int64_t num_ids = args.expert_map == nullptr ? num_experts : args.num_global_experts;
  const int64_t bad = local_ids(ids, args.expert_map, num_ids, local.empty() ? nullptr : local.data());
  if (bad >= 0) {
    invalid("topk_ids", "values in [-1, " + text_of(num_ids - 1) + "]",
            text_of(int64_t{args.topk_ids[bad]}) + " at position " + text_of(bad));
  }
  return local;
}

// Where the sums of a call go, or the terms of its slots.
CheckedRows check_sums(const mxfp4moe_fused_experts_args& args, int64_t columns, const CheckedRows& hidden) {
  if (args.uncombined == 0) {
    const CheckedRows out = check_rows({"out", args.out, args.num_tokens, columns, args.out_stride, args.out_dtype});
    check_in_place(out, hidden);
    return out;
  }
  if (args.out_dtype != MXFP4MOE_DTYPE_FLOAT32) invalid("out_dtype", "float32 of terms", dtype_name(args.out_dtype));
  const CheckedRows out =
      check_rows({"out", args.out, args.num_tokens * args.top_k, columns, args.out_stride, args.out_dtype});
  check_apart(out.extent, {hidden.extent});
  return out;
}

std::optional<double> given(double value) { return value == 0 ? std::nullopt : std::optional<double>(value); }

struct LayerCall {
  Layer::Input input;
  CheckedRows hidden, router;
};

LayerCall check_layer_call(const Layer& layer, const mxfp4moe_layer_args& args) {
  check_tokens(args.num_tokens);
  check_flag("propagate_nonfinite", args.propagate_nonfinite);
  const int64_t tokens = args.num_tokens, size = layer.hidden_size();
  LayerCall call{};
  call.hidden = check_rows(
      {"hidden_states", args.hidden_states, tokens, size, args.hidden_states_stride, args.hidden_states_dtype});
  call.router = call.hidden;
  if (layer.has_router_input()) {
    call.router = check_rows({"router_hidden_states", args.router_hidden_states, tokens, size,
                              args.router_hidden_states_stride, args.router_hidden_states_dtype});
  } else if (args.router_hidden_states != nullptr) {
    invalid("router_hidden_states", "NULL, for the router of this layer reads hidden_states", "an array");
  }
  if (layer.routes_by_ids()) check_memory("input_ids", args.input_ids, 8 * tokens, 8);
  call.input = {call.hidden.rows, call.router.rows, args.input_ids, tokens, args.propagate_nonfinite != 0};
  return call;
}

}  // namespace

mxfp4moe_status mxfp4moe_pack_experts(const mxfp4moe_experts_arrays* arrays, const mxfp4moe_options* options,
                                      mxfp4moe_experts** experts) {
  return guarded([&] {
    check_result("experts", experts);
    const Call call(options);
    *experts = new mxfp4moe_experts{Experts::of_arrays(read_struct("arrays", arrays), call.num_threads())};
  });
}

mxfp4moe_status mxfp4moe_open_experts(const char* path, int32_t verify, const mxfp4moe_options* options,
                                      mxfp4moe_experts** experts) {
  return open_handle(path, "experts", verify, options, experts,
                     [](const PackedFile& file, const Call&) { return Experts::of_file(file, "experts"); });
}

void mxfp4moe_close_experts(mxfp4moe_experts* experts) { delete experts; }

mxfp4moe_status mxfp4moe_pack_linear(const mxfp4moe_linear_arrays* arrays, const mxfp4moe_options* options,
                                     mxfp4moe_linear** linear) {
  return guarded([&] {
    check_result("linear", linear);
    const Call call(options);
    *linear = new mxfp4moe_linear{Linear::of_arrays(read_struct("arrays", arrays), call.num_threads())};
  });
}

mxfp4moe_status mxfp4moe_open_linear(const char* path, int32_t verify, const mxfp4moe_options* options,
                                     mxfp4moe_linear** linear) {
  return open_handle(path, "linear", verify, options, linear,
                     [](const PackedFile& file, const Call&) { return Linear::of_file(file, "linear"); });
}

void mxfp4moe_close_linear(mxfp4moe_linear* linear) { delete linear; }

mxfp4moe_status mxfp4moe_open_layer(const char* path, int32_t verify, const mxfp4moe_options* options,
                                    mxfp4moe_layer** layer) {
  return open_handle(path, "layer", verify, options, layer,
                     [](const PackedFile& file, const Call& call) { return Layer(file, call); });
}

mxfp4moe_status mxfp4moe::capi::make_layer(const uint8_t* data, int64_t size, const std::vector<GivenExperts>& given,
                                           mxfp4moe_layer** layer) {
  return guarded([&] {
    const Call call(nullptr);
    *layer = new mxfp4moe_layer{Layer(PackedFile(data, size, "layer", given), call)};
  });
}

mxfp4moe_status mxfp4moe_open_layer_slice(const char* path, int32_t verify, const int64_t* expert_ids, int64_t num_ids,
                                          const mxfp4moe_options* options, mxfp4moe_layer** layer) {
  return open_handle(path, "layer", verify, options, layer, [&](const PackedFile& file, const Call& call) {
    check_range("num_ids", num_ids, 1, kMaxExperts);
    check_memory("expert_ids", expert_ids, 8 * num_ids, 8);
    Layer whole(file, call);
    whole.select({expert_ids, expert_ids + num_ids});
    return whole;
  });
}

void mxfp4moe_close_layer(mxfp4moe_layer* layer) { delete layer; }

mxfp4moe_status mxfp4moe_get_experts_info(const mxfp4moe_experts* experts, mxfp4moe_experts_info* info) {
  return guarded([&] {
    check_handle("experts", experts);
    const Experts& e = experts->value;
    write_struct(
        "info",
        mxfp4moe_experts_info{0, e.format->number, !e.shape.gated, e.shape.num_experts, e.shape.hidden_size,
                              e.shape.intermediate_size, e.num_bytes, e.w2_format->number, e.shape.has_columns},
        info);
  });
}

mxfp4moe_status mxfp4moe_get_linear_info(const mxfp4moe_linear* linear, mxfp4moe_linear_info* info) {
  return guarded([&] {
    check_handle("linear", linear);
    const Linear& l = linear->value;
    write_struct("info",
                 mxfp4moe_linear_info{0, l.format->number, l.shape.has_bias, l.shape.num_rows, l.shape.k, l.num_bytes},
                 info);
  });
}

mxfp4moe_status mxfp4moe_get_layer_info(const mxfp4moe_layer* layer, mxfp4moe_layer_info* info) {
  return guarded([&] {
    check_handle("layer", layer);
    write_struct("info", layer->value.info(), info);
  });
}

mxfp4moe_status mxfp4moe_fused_experts(const mxfp4moe_experts* experts, const mxfp4moe_fused_experts_args* given_args,
                                       const mxfp4moe_options* options) {
  return guarded([&] {
    check_handle("experts", experts);
    const Experts& e = experts->value;
    const mxfp4moe_fused_experts_args args = read_struct("args", given_args);
    const Call call(options);
    check_tokens(args.num_tokens);
    check_range("top_k", args.top_k, 0, kMaxTokens);
    check_flag("apply_router_weight_on_input", args.apply_router_weight_on_input);
    check_flag("uncombined", args.uncombined);
    const int64_t tokens = args.num_tokens, size = e.shape.hidden_size;
    const CheckedRows hidden = check_rows(
        {"hidden_states", args.hidden_states, tokens, size, args.hidden_states_stride, args.hidden_states_dtype});
    const CheckedRows out = check_sums(args, size, hidden);
    const int64_t slot_bytes = product({tokens, args.top_k, 4});
    const Extent weights = check_memory("topk_weights", args.topk_weights, slot_bytes, 4);
    const Extent ids = check_memory("topk_ids", args.topk_ids, slot_bytes, 4);
    check_apart(out.extent, {weights, ids, check_expert_map(args.expert_map, args.num_global_experts, e.count())});
    const std::vector<int32_t> local = check_ids(args, e.count());
    MoeProblem problem{};
    problem.activation = check_activation(args.activation, given(args.alpha), given(args.limit), e.shape.gated);
    const ActivationFormat format = check_activation_format(args.activation_format, is_integral(e.layer));
    problem.combine = args.uncombined == 0;
    if (tokens == 0 || (args.top_k == 0 && !problem.combine)) return;
    problem.hidden_states = hidden.rows;
    problem.out = out.rows;
    problem.num_tokens = tokens;
    // A token without slots is one whose only slot is dropped.
    const std::vector<float> no_weights(args.top_k == 0 ? static_cast<size_t>(tokens) : 0);
    const std::vector<int32_t> dropped(no_weights.size(), -1);
    problem.topk_weights = args.top_k == 0 ? no_weights.data() : args.topk_weights;
    problem.local_ids = args.top_k == 0 ? dropped.data() : local.empty() ? args.topk_ids : local.data();
    problem.top_k = args.top_k == 0 ? 1 : args.top_k;
    problem.apply_router_weight_on_input = args.apply_router_weight_on_input != 0;
    e.compute(call, format, problem);
  });
}

mxfp4moe_status mxfp4moe_apply_linear(const mxfp4moe_linear* linear, const mxfp4moe_linear_args* given_args,
                                      const mxfp4moe_options* options) {
  return guarded([&] {
    check_handle("linear", linear);
    const Linear& l = linear->value;
    const mxfp4moe_linear_args args = read_struct("args", given_args);
    const Call call(options);
    check_tokens(args.num_tokens);
    const CheckedRows hidden = check_rows({"hidden_states", args.hidden_states, args.num_tokens, l.shape.k,
                                           args.hidden_states_stride, args.hidden_states_dtype});
    const CheckedRows out =
        check_rows({"out", args.out, args.num_tokens, l.shape.num_rows, args.out_stride, args.out_dtype});
    check_apart(out.extent, {hidden.extent});
    const ActivationFormat format = check_activation_format(args.activation_format, is_integral(l.weight.format));
    l.compute(call, {hidden.rows, out.rows, args.num_tokens, format});
  });
}

mxfp4moe_status mxfp4moe_apply_layer(const mxfp4moe_layer* layer, const mxfp4moe_layer_args* given_args,
                                     const mxfp4moe_options* options) {
  return guarded([&] {
    check_handle("layer", layer);
    const Layer& l = layer->value;
    const mxfp4moe_layer_args args = read_struct("args", given_args);
    const Call call(options);
    const LayerCall checked = check_layer_call(l, args);
    const CheckedRows out =
        check_rows({"out", args.out, args.num_tokens, l.hidden_size(), args.out_stride, args.out_dtype});
    check_in_place(out, checked.hidden);
    if (l.has_router_input()) check_apart(out.extent, {checked.router.extent});
    if (l.routes_by_ids()) check_apart(out.extent, {{"input_ids", args.input_ids, 8 * args.num_tokens}});
    if (args.num_tokens == 0) return;
    l.add_up(call, checked.input, l.route(call, checked.input), out.rows);
  });
}

mxfp4moe_status mxfp4moe_route_layer(const mxfp4moe_layer* layer, const mxfp4moe_layer_args* given_args,
                                     float* topk_weights, int32_t* topk_ids, const mxfp4moe_options* options) {
  return guarded([&] {
    check_handle("layer", layer);
    const Layer& l = layer->value;
    const mxfp4moe_layer_args args = read_struct("args", given_args);
    const Call call(options);
    const LayerCall checked = check_layer_call(l, args);
    const int64_t bytes = product({args.num_tokens, l.top_k(), 4});
    const Extent weights = check_memory("topk_weights", topk_weights, bytes, 4);
    const Extent ids = check_memory("topk_ids", topk_ids, bytes, 4);
    check_apart(weights, {ids, checked.hidden.extent, checked.router.extent});
    check_apart(ids, {checked.hidden.extent, checked.router.extent});
    if (args.num_tokens == 0) return;
    // Shared experts that the router weighs come after those that are chosen.
    const Slots slots = l.route(call, checked.input);
    for (int64_t i = 0; i < args.num_tokens * l.top_k(); ++i) {
      const size_t from = static_cast<size_t>(i / l.top_k() * slots.per_token + i % l.top_k());
      topk_weights[i] = slots.weights[from];
      topk_ids[i] = slots.ids[from];
    }
  });
}

mxfp4moe_status mxfp4moe_init_routing(mxfp4moe_routing* routing) {
  return guarded([&] { write_struct("routing", default_routing(), routing); });
}

mxfp4moe_status mxfp4moe_route(const mxfp4moe_routing* given_routing, const mxfp4moe_route_args* given_args,
                               const mxfp4moe_options* options) {
  return guarded([&] {
    const mxfp4moe_routing routing = read_struct("routing", given_routing);
    const mxfp4moe_route_args args = read_struct("args", given_args);
    const Call call(options);
    check_tokens(args.num_tokens);
    check_routing(routing, args.num_logits, args.top_k);
    const int64_t num_slots = args.top_k + routing.num_shared_experts;
    const Extent logits =
        check_memory("router_logits", args.router_logits, product({args.num_tokens, args.num_logits, 4}), 4);
    const int64_t bytes = product({args.num_tokens, num_slots, 4});
    const Extent weights = check_memory("topk_weights", args.topk_weights, bytes, 4);
    const Extent ids = check_memory("topk_ids", args.topk_ids, bytes, 4);
    const auto optional = [&](const char* name, const float* data, int64_t count) {
      return check_memory(name, data, data == nullptr ? 0 : 4 * count, 4);
    };
    const Extent bias =
        optional("routing.correction_bias", routing.correction_bias, args.num_logits - routing.num_shared_experts);
    const Extent scale = optional("routing.expert_scale", routing.expert_scale, args.num_logits);
    check_apart(weights, {ids, logits, bias, scale});
    check_apart(ids, {logits, bias, scale});
    run_route(routing, args, call.num_threads());
  });
}
