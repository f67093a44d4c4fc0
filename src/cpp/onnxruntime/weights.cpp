#include "onnxruntime/weights.h"

namespace mxfp4moe::onnx {
namespace {

// The arrays of a matrix, or of one of each expert, as inputs that may be left out.
struct MatrixInputs {
  Tensor weight, scales, bias, zero_points, tensor_scale;
};

int32_t format_of(const Node& node) {
  return node.choice("format", "mxfp4",
                     {{"mxfp4", MXFP4MOE_FORMAT_MXFP4},
                      {"mxfp8", MXFP4MOE_FORMAT_MXFP8},
                      {"nvfp4", MXFP4MOE_FORMAT_NVFP4},
                      {"fp8_block", MXFP4MOE_FORMAT_FP8_BLOCK},
                      {"bf16", MXFP4MOE_FORMAT_BF16},
                      {"int4", MXFP4MOE_FORMAT_INT4},
                      {"int8", MXFP4MOE_FORMAT_INT8},
                      {"float32", MXFP4MOE_FORMAT_FLOAT32}});
}

bool has_groups(int32_t format) { return format == MXFP4MOE_FORMAT_INT4 || format == MXFP4MOE_FORMAT_INT8; }

// Weights in an element of the last axis.
int64_t weights_per_element(int32_t format) {
  const bool in_pairs =
      format == MXFP4MOE_FORMAT_MXFP4 || format == MXFP4MOE_FORMAT_NVFP4 || format == MXFP4MOE_FORMAT_INT4;
  return in_pairs ? 2 : 1;
}

// Weights of a row that share a scale, by the shape of the scales; 0: all.
int64_t group_size_of(int32_t format, const Tensor& weight, const Tensor& scales) {
  if (!has_groups(format) || scales.shape.size() < weight.shape.size()) return 0;
  const int64_t columns = weight.shape.back() * weights_per_element(format);
  const int64_t groups = scales.shape.back();
  if (groups <= 0 || columns % groups != 0) {
    invalid(scales.name, "a last axis that divides " + std::to_string(columns), text_of(scales.shape));
  }
  return groups == 1 ? 0 : columns / groups;
}

// The library sees sizes in bytes alone: another order of the same axes would have the same.
void check_axes(const MatrixInputs& inputs, int32_t format) {
  const Shape& shape = inputs.weight.shape;
  const size_t leading = shape.size() - 1;
  const bool by_row = format != MXFP4MOE_FORMAT_FP8_BLOCK;
  for (const Tensor* each : {&inputs.scales, &inputs.zero_points}) {
    if (!each->is_given()) continue;
    Shape expected(shape.begin(), shape.begin() + static_cast<std::ptrdiff_t>(leading));
    if (each->shape.size() != leading || !has_groups(format)) expected.push_back(-1);
    if (!by_row) expected[leading - 1] = -1;
    each->check_shape(expected);
  }
  if (inputs.bias.is_given()) inputs.bias.check_shape(Shape(shape.begin(), shape.end() - 1));
}

void read_blocks(const Node& node, int64_t& rows, int64_t& columns) {
  const std::vector<int64_t> blocks = node.integers("block_shape");
  if (blocks.empty()) return;
  if (blocks.size() != 2) invalid("block_shape", "2 integers", std::to_string(blocks.size()));
  rows = blocks[0];
  columns = blocks[1];
}

std::string path_of(const Node& node, size_t first_input, const char* first_name) {
  const std::string path = node.text("path", "");
  const bool has_weights = node.has_input(first_input);
  if (path.empty() && !has_weights) {
    invalid(first_name, "an initializer, or the attribute path of a packed file", "neither of them");
  }
  if (!path.empty() && has_weights) invalid(first_name, "no input beside the attribute path", "both of them");
  return path;
}

}  // namespace

Experts experts_of(const Node& node, size_t first_input, const mxfp4moe_options& options) {
  const std::string path = path_of(node, first_input, "w13");
  if (!path.empty()) return Experts::open(path, node.flag("verify"), &options);
  const auto constant = [&](size_t index, const char* name) { return node.constant(first_input + index, name); };
  const MatrixInputs w13{constant(0, "w13"), constant(1, "w13_scales"), constant(4, "w13_bias"),
                         constant(6, "w13_zero_points"), constant(8, "w13_tensor_scale")};
  const MatrixInputs w2{constant(2, "w2"), constant(3, "w2_scales"), constant(5, "w2_bias"),
                        constant(7, "w2_zero_points"), constant(9, "w2_tensor_scale")};
  auto arrays = make<mxfp4moe_experts_arrays>();
  arrays.format = format_of(node);
  arrays.gate_up_layout = node.choice("gate_up_layout", "concatenated",
                                      {{"concatenated", MXFP4MOE_CONCATENATED}, {"interleaved", MXFP4MOE_INTERLEAVED}});
  arrays.ungated = !node.flag("gated", true);
  w13.weight.check_rank(3);
  w2.weight.check_rank(3);
  const int64_t terms = arrays.ungated ? 1 : 2, per_element = weights_per_element(arrays.format);
  arrays.num_experts = w13.weight.shape[0];
  arrays.hidden_size = w13.weight.shape[2] * per_element;
  arrays.intermediate_size = w13.weight.shape[1] / terms;
  w13.weight.check_shape({-1, terms * arrays.intermediate_size, -1});
  w2.weight.check_shape({arrays.num_experts, arrays.hidden_size, arrays.intermediate_size / per_element});
  check_axes(w13, arrays.format);
  check_axes(w2, arrays.format);
  read_blocks(node, arrays.block_rows, arrays.block_columns);
  arrays.w13_group_size = group_size_of(arrays.format, w13.weight, w13.scales);
  arrays.w2_group_size = group_size_of(arrays.format, w2.weight, w2.scales);
  arrays.w13 = w13.weight.array();
  arrays.w13_scales = w13.scales.array();
  arrays.w13_bias = w13.bias.array();
  arrays.w13_zero_points = w13.zero_points.array();
  arrays.w13_tensor_scale = w13.tensor_scale.array();
  arrays.w2 = w2.weight.array();
  arrays.w2_scales = w2.scales.array();
  arrays.w2_bias = w2.bias.array();
  arrays.w2_zero_points = w2.zero_points.array();
  arrays.w2_tensor_scale = w2.tensor_scale.array();
  return Experts::pack(arrays, &options);
}

Linear linear_of(const Node& node, size_t first_input, const mxfp4moe_options& options) {
  const std::string path = path_of(node, first_input, "weight");
  if (!path.empty()) return Linear::open(path, node.flag("verify"), &options);
  const auto constant = [&](size_t index, const char* name) { return node.constant(first_input + index, name); };
  const MatrixInputs inputs{constant(0, "weight"), constant(1, "scales"), constant(2, "bias"),
                            constant(3, "zero_points"), constant(4, "tensor_scale")};
  auto arrays = make<mxfp4moe_linear_arrays>();
  arrays.format = format_of(node);
  inputs.weight.check_rank(2);
  check_axes(inputs, arrays.format);
  arrays.num_rows = inputs.weight.shape[0];
  arrays.num_columns = inputs.weight.shape[1] * weights_per_element(arrays.format);
  read_blocks(node, arrays.block_rows, arrays.block_columns);
  arrays.group_size = group_size_of(arrays.format, inputs.weight, inputs.scales);
  arrays.weight = inputs.weight.array();
  arrays.scales = inputs.scales.array();
  arrays.bias = inputs.bias.array();
  arrays.zero_points = inputs.zero_points.array();
  arrays.tensor_scale = inputs.tensor_scale.array();
  return Linear::pack(arrays, &options);
}

}  // namespace mxfp4moe::onnx
