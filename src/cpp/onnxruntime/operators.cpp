#include "onnxruntime/operators.h"

#include <algorithm>
#include <limits>
#include <memory>

#include "onnxruntime/weights.h"

namespace mxfp4moe::onnx {
namespace {

constexpr int64_t kBlock = 32;  // values that share a scale of MXFP4

// The axes before the last one, whose size must be as told.
Shape tokens_of(const Tensor& tensor, int64_t size) {
  if (tensor.shape.empty() || tensor.shape.back() != size) {
    invalid(tensor.name, "a last axis of " + std::to_string(size), "shape " + text_of(tensor.shape));
  }
  return Shape(tensor.shape.begin(), tensor.shape.end() - 1);
}

int64_t product_of(const Shape& shape) {
  int64_t result = 1;
  for (const int64_t size : shape) result *= size;
  return result;
}

Shape with_last(Shape shape, int64_t size) {
  shape.push_back(size);
  return shape;
}

// Ids in int32, as the library takes them; those that int32 cannot hold are wrong in any case, and stay so.
class Ids {
 public:
  explicit Ids(const Tensor& ids) {
    if (ids.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32) {
      data_ = static_cast<const int32_t*>(ids.data);
      return;
    }
    if (ids.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64) {
      invalid(ids.name, "a tensor of int32 or int64", "type " + std::to_string(ids.type));
    }
    const auto* const wide = static_cast<const int64_t*>(ids.data);
    constexpr int64_t kLeast = std::numeric_limits<int32_t>::min(), kMost = std::numeric_limits<int32_t>::max();
    narrow_.resize(static_cast<size_t>(ids.num_elements()));
    std::transform(wide, wide + narrow_.size(), narrow_.begin(),
                   [&](int64_t id) { return static_cast<int32_t>(std::clamp(id, kLeast, kMost)); });
    data_ = narrow_.data();
  }

  const int32_t* data() const { return data_; }

 private:
  std::vector<int32_t> narrow_;
  const int32_t* data_;
};

void infer_like_input(const ShapeInference& shapes) {
  const Dimensions input = shapes.input(0);
  if (!input.empty()) shapes.set_output(0, input, shapes.input_type(0));
}

// The numbers of all activations of the library, by their names.
std::vector<std::pair<const char*, int32_t>> activations() {
  std::vector<std::pair<const char*, int32_t>> result;
  for (int32_t i = 0; mxfp4moe_activation_name(i) != nullptr; ++i) result.emplace_back(mxfp4moe_activation_name(i), i);
  return result;
}

}  // namespace

FusedExperts::FusedExperts(const Node& node)
    : threads_(node), experts_(experts_of(node, 3, threads_.without_threads())), args_(make<decltype(args_)>()) {
  const mxfp4moe_experts_info info = experts_.info();
  num_experts_ = info.num_experts;
  hidden_size_ = info.hidden_size;
  args_.activation = node.choice("activation", info.ungated ? "relu2" : "silu", activations());
  args_.alpha = node.number("alpha", 0);
  args_.limit = node.number("limit", 0);
  args_.apply_router_weight_on_input = node.flag("apply_router_weight_on_input");
}

void FusedExperts::compute(const Call& call) const {
  const Tensor hidden = call.input(0, "hidden_states");
  const Tensor weights = call.input(1, "topk_weights");
  const Tensor ids = call.input(2, "topk_ids");
  const Shape tokens = tokens_of(hidden, hidden_size_);
  const int64_t num_tokens = product_of(tokens);
  // Routers often see tokens as rows, whatever the axes of hidden states are.
  const bool in_rows = ids.shape.size() == 2 && ids.shape[0] == num_tokens;
  if (!in_rows) ids.check_shape(with_last(tokens, -1));
  weights.check_shape(ids.shape);
  const Ids narrow(ids);
  mxfp4moe_fused_experts_args args = args_;
  args.hidden_states = hidden.data;
  args.hidden_states_dtype = args.out_dtype = dtype_of(hidden.type);
  args.out = call.output(0, hidden.shape);
  args.topk_weights = static_cast<const float*>(weights.data);
  args.topk_ids = narrow.data();
  args.num_tokens = num_tokens;
  args.top_k = ids.shape.back();
  const CallOptions options(threads_, call);
  check(mxfp4moe_fused_experts(experts_.get(), &args, options.get()));
}

void FusedExperts::infer_shapes(const ShapeInference& shapes) { infer_like_input(shapes); }

Linears::Linears(const Node& node) : threads_(node), linear_(linear_of(node, 1, threads_.without_threads())) {
  const mxfp4moe_linear_info info = linear_.info();
  num_rows_ = info.num_rows;
  num_columns_ = info.num_columns;
}

void Linears::compute(const Call& call) const {
  const Tensor hidden = call.input(0, "hidden_states");
  const Shape tokens = tokens_of(hidden, num_columns_);
  auto args = make<mxfp4moe_linear_args>();
  args.hidden_states = hidden.data;
  args.hidden_states_dtype = args.out_dtype = dtype_of(hidden.type);
  args.out = call.output(0, with_last(tokens, num_rows_));
  args.num_tokens = product_of(tokens);
  const CallOptions options(threads_, call);
  check(mxfp4moe_apply_linear(linear_.get(), &args, options.get()));
}

void Linears::infer_shapes(const ShapeInference& shapes) {
  Dimensions result = shapes.input(0);
  if (result.empty()) return;
  const Dimensions weight = shapes.input(1);
  const std::string path = weight.empty() ? shapes.text("path") : "";
  if (!weight.empty()) {
    result.back() = weight.front();
  } else if (!path.empty()) {
    result.back() = {Linear::open(path).info().num_rows, ""};
  } else {
    result.back() = {};
  }
  shapes.set_output(0, result, shapes.input_type(0));
}

Layers::Layers(const Node& node)
    : threads_(node),
      layer_([&] {
        const std::string path = node.text("path", "");
        if (path.empty()) invalid("path", "the path of a packed layer", "none");
        const mxfp4moe_options options = threads_.without_threads();
        return Layer::open(path, node.flag("verify"), &options);
      }()),
      info_(layer_.info()),
      propagate_nonfinite_(node.flag("propagate_nonfinite")) {}

void Layers::compute(const Call& call) const {
  const Tensor hidden = call.input(0, "hidden_states");
  const Tensor ids = call.input(1, "input_ids");
  const Tensor router = call.input(2, "router_hidden_states");
  const Shape tokens = tokens_of(hidden, info_.hidden_size);
  auto args = make<mxfp4moe_layer_args>();
  if (info_.needs_input_ids && !ids.is_given()) invalid("input_ids", "a token id for each token", "none");
  if (ids.is_given()) {
    ids.check_shape(tokens);
    args.input_ids = static_cast<const int64_t*>(ids.data);
  }
  if (router.is_given()) {
    router.check_shape(hidden.shape);
    args.router_hidden_states = router.data;
    args.router_hidden_states_dtype = dtype_of(router.type);
  }
  args.hidden_states = hidden.data;
  args.hidden_states_dtype = args.out_dtype = dtype_of(hidden.type);
  args.out = call.output(0, hidden.shape);
  args.num_tokens = product_of(tokens);
  args.propagate_nonfinite = propagate_nonfinite_;
  const CallOptions options(threads_, call);
  check(mxfp4moe_apply_layer(layer_.get(), &args, options.get()));
}

void Layers::infer_shapes(const ShapeInference& shapes) { infer_like_input(shapes); }

QuantizeMxfp4::QuantizeMxfp4(const Node& node)
    : threads_(node),
      scale_rule_(node.choice("scale_rule", "floor",
                              {{"floor", MXFP4MOE_SCALE_FLOOR},
                               {"ceil", MXFP4MOE_SCALE_CEIL},
                               {"rceil", MXFP4MOE_SCALE_RCEIL},
                               {"even", MXFP4MOE_SCALE_EVEN}})),
      nonfinite_is_nan_(node.choice("nonfinite", "raise", {{"raise", 0}, {"nan", 1}})) {}

void QuantizeMxfp4::compute(const Call& call) const {
  const Tensor values = call.input(0, "values");
  if (values.shape.empty() || values.shape.back() % kBlock != 0) {
    invalid("values", "a last axis that is a multiple of 32", "shape " + text_of(values.shape));
  }
  const int64_t columns = values.shape.back();
  const Shape rows = tokens_of(values, columns);
  auto shape = make<mxfp4moe_quantize_shape>();
  shape.format = MXFP4MOE_FORMAT_MXFP4;
  shape.values_dtype = dtype_of(values.type);
  shape.scale_rule = scale_rule_;
  shape.nonfinite_is_nan = nonfinite_is_nan_;
  shape.num_matrices = 1;
  shape.num_rows = product_of(rows);
  shape.num_columns = columns;
  auto quantized = make<mxfp4moe_quantized>();
  quantized.codes = {call.output(0, with_last(rows, columns / 2)), static_cast<uint64_t>(values.num_elements() / 2)};
  quantized.scales = {call.output(1, with_last(rows, columns / kBlock)),
                      static_cast<uint64_t>(values.num_elements() / kBlock)};
  if (values.num_elements() == 0) return;
  const CallOptions options(threads_, call);
  check(mxfp4moe_quantize(&shape, values.array(), &quantized, options.get()));
}

void QuantizeMxfp4::infer_shapes(const ShapeInference& shapes) {
  const Dimensions input = shapes.input(0);
  if (input.empty()) return;
  for (const int64_t output : {0, 1}) {
    Dimensions result = input;
    const int64_t per_element = output == 0 ? 2 : kBlock;
    result.back() = {input.back().size < 0 ? -1 : input.back().size / per_element, ""};
    shapes.set_output(static_cast<size_t>(output), result, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8);
  }
}

}  // namespace mxfp4moe::onnx
