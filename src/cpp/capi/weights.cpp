#include "capi/weights.h"

#include <algorithm>

#include "formats/bf16.h"
#include "linear/linear.h"
#include "moe/schedule.h"

namespace mxfp4moe::capi {
namespace {

constexpr int64_t kDefaultBlock = 128;

// The arrays of one matrix of each expert, and the argument that they are.
struct MatrixArrays {
  std::string name;
  mxfp4moe_array weights, scales, zero_points, tensor_scale, bias, offsets;
};

// The sizes of one matrix of one expert.
struct MatrixSizes {
  int64_t num_experts, num_rows, k;
  int64_t scale_rows;     // of scales of sums
  int64_t tensor_scales;  // of each expert; 0 without any
  bool float16_bias;
};

const uint8_t* bytes_of(const mxfp4moe_array& array) { return static_cast<const uint8_t*>(array.data); }

bool is_given(const mxfp4moe_array& array) { return array.data != nullptr || array.size != 0; }

void check_array(const std::string& name, const mxfp4moe_array& array, int64_t bytes, int64_t alignment) {
  if (array.data == nullptr || array.size != static_cast<uint64_t>(bytes)) {
    invalid(name, text_of(bytes) + " bytes", array.data == nullptr ? "NULL" : std::to_string(array.size));
  }
  check_memory(name.c_str(), array.data, bytes, alignment);
}

void check_absent(const std::string& name, const mxfp4moe_array& array, const Format& format) {
  if (is_given(array)) invalid(name, std::string("none with format ") + format.name, "an array");
}

[[noreturn]] void wrong_dtype(const std::string& name, const mxfp4moe_array& array) {
  invalid(name + ".dtype", "one that the format has", dtype_name(array.dtype));
}

void check_zero_points(const std::string& name, const mxfp4moe_array& zeros, const Format& format) {
  if (format.max_zero == 127) return;  // any byte
  const uint8_t* const begin = bytes_of(zeros);
  const uint8_t* const end = begin + zeros.size;
  const uint8_t* const wrong = std::find_if(begin, end, [&](uint8_t zero) { return zero > format.max_zero; });
  if (wrong != end) {
    invalid(name, "values in [0, 15]", text_of(int64_t{*wrong}) + " at byte " + text_of(int64_t{wrong - begin}));
  }
}

// Returns the block shape of a call, checked. One matrix has `format`; `other` is that of the second matrix, if there
// is one.
ScaleBlocks block_shape_of(const Format& format, const Format& other, int64_t rows, int64_t columns) {
  if (!format.has_block_shape() && !other.has_block_shape()) {
    if (rows != 0 || columns != 0) invalid("block_rows", std::string("0 with format ") + format.name, text_of(rows));
    return {};
  }
  ScaleBlocks blocks;
  const auto size = [](const char* name, int64_t value, int64_t multiple) -> int64_t {
    if (value == MXFP4MOE_WHOLE_AXIS) return 0;
    if (value == 0) return kDefaultBlock;
    check_range(name, value, 1, kMaxSize);
    if (value % multiple != 0) invalid(name, "a multiple of " + text_of(multiple), text_of(value));
    return value;
  };
  blocks.rows = size("block_rows", rows, 1);
  blocks.columns = size("block_columns", columns, kBlockK);
  return blocks;
}

// What shares a scale in a matrix with rows of k weights: the blocks of the call, or groups, of which 0 is the whole
// row.
ScaleBlocks blocks_of(const char* group_name, const Format& format, ScaleBlocks blocks, int64_t group_size, int64_t k) {
  if (!format.has_groups) {
    if (group_size != 0) invalid(group_name, std::string("0 with format ") + format.name, text_of(group_size));
    return format.has_block_shape() ? blocks : ScaleBlocks{};
  }
  if (group_size != 0 && group_size != k && !is_group_size(group_size, k)) {
    invalid(group_name, "0, or 16 or a multiple of 32 that divides " + text_of(k), text_of(group_size));
  }
  return {1, group_size == k ? 0 : group_size};
}

int64_t num_blocks(int64_t size, int64_t block) { return block == 0 ? 1 : ceil_div(size, block); }

// Checks the arrays of a matrix; returns their dtypes.
MatrixDtypes check_matrix(const Format& format, const MatrixArrays& a, const MatrixSizes& s, ScaleBlocks blocks) {
  MatrixDtypes dtypes;
  if (format.find(a.weights.dtype) == nullptr) wrong_dtype(a.name, a.weights);
  dtypes.weights = a.weights.dtype;
  const int64_t row_bytes = format.row_bytes(s.k, dtypes.weights);
  check_array(a.name, a.weights, product({s.num_experts, s.num_rows, row_bytes}),
              format.element_bits == 0 ? dtype_bytes(dtypes.weights) : 1);
  int64_t num_scales = 0;
  if (format.has_scales()) {
    if (std::find(format.scales.begin(), format.scales.end(), a.scales.dtype) == format.scales.end()) {
      wrong_dtype(a.name + "_scales", a.scales);
    }
    dtypes.scales = a.scales.dtype;
    num_scales = format.scale_block > 0 ? product({s.num_experts, s.num_rows, s.k / format.scale_block})
                                        : product({s.num_experts, s.scale_rows, num_blocks(s.k, blocks.columns)});
    const int64_t bytes = dtype_bytes(dtypes.scales);
    check_array(a.name + "_scales", a.scales, product({num_scales, bytes}), bytes);
  } else {
    check_absent(a.name + "_scales", a.scales, format);
  }
  if (format.has_groups && is_given(a.zero_points)) {
    if (a.zero_points.dtype != format.zero_dtype) wrong_dtype(a.name + "_zero_points", a.zero_points);
    if (blocks.columns == kHalfGroup) invalid(a.name + "_zero_points", "none with groups of 16", "an array");
    dtypes.zero_points = format.zero_dtype;
    check_array(a.name + "_zero_points", a.zero_points, num_scales, 1);
    check_zero_points(a.name + "_zero_points", a.zero_points, format);
  } else {
    check_absent(a.name + "_zero_points", a.zero_points, format);
  }
  if (format.has_groups && is_given(a.offsets)) {
    if (dtypes.zero_points >= 0) invalid(a.name + "_offsets", "none beside zero points", "an array");
    if (a.offsets.dtype != dtypes.scales) {
      invalid(a.name + "_offsets.dtype", dtype_name(dtypes.scales), dtype_name(a.offsets.dtype));
    }
    dtypes.offsets = dtypes.scales;
    const int64_t bytes = dtype_bytes(dtypes.scales);
    check_array(a.name + "_offsets", a.offsets, product({num_scales, bytes}), bytes);
  } else {
    check_absent(a.name + "_offsets", a.offsets, format);
  }
  if (s.tensor_scales == 0) {
    check_absent(a.name + "_tensor_scale", a.tensor_scale, format);
  } else {
    if (a.tensor_scale.dtype != MXFP4MOE_DTYPE_FLOAT32) wrong_dtype(a.name + "_tensor_scale", a.tensor_scale);
    check_array(a.name + "_tensor_scale", a.tensor_scale, product({s.num_experts, s.tensor_scales, 4}), 4);
  }
  if (is_given(a.bias)) {
    const int32_t dtype = a.bias.dtype;
    const bool known = dtype == MXFP4MOE_DTYPE_FLOAT32 || dtype == MXFP4MOE_DTYPE_BFLOAT16 ||
                       (dtype == MXFP4MOE_DTYPE_FLOAT16 && s.float16_bias);
    if (!known) wrong_dtype(a.name + "_bias", a.bias);
    dtypes.bias = dtype;
    check_array(a.name + "_bias", a.bias, product({s.num_experts, s.num_rows, dtype_bytes(dtype)}), dtype_bytes(dtype));
  }
  return dtypes;
}

float float_at(const uint8_t* data, int32_t dtype, int64_t i) {
  if (dtype == MXFP4MOE_DTYPE_FLOAT32) return reinterpret_cast<const float*>(data)[i];
  const uint16_t bits = reinterpret_cast<const uint16_t*>(data)[i];
  return dtype == MXFP4MOE_DTYPE_BFLOAT16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

// Packs the matrices of all experts of checked arrays to where they stand in `packed`.
class Packer {
 public:
  Packer(const Format& format, const MatrixArrays& arrays, const MatrixLayout& layout, int64_t num_terms)
      : format_(format), arrays_(arrays), layout_(layout), num_terms_(num_terms) {}

  void pack(int64_t num_experts, uint8_t* packed, int num_threads) const {
    for (int64_t expert = 0; expert < num_experts; ++expert) {
      pack_weights(num_experts, expert, packed, num_threads);
      const mxfp4moe_array& scales = format_.has_sum_scales() ? arrays_.scales : arrays_.tensor_scale;
      if (part_bytes(Part::kSumScales) > 0) pack_scales(Part::kSumScales, scales, {num_experts, expert}, packed);
      if (part_bytes(Part::kOffsets) > 0) pack_scales(Part::kOffsets, arrays_.offsets, {num_experts, expert}, packed);
      if (part_bytes(Part::kBias) > 0) pack_biases(expert, packed);
    }
  }

 private:
  int64_t part_bytes(Part part) const { return layout_.expert_bytes[static_cast<int>(part)]; }

  uint8_t* at(Part part, int64_t expert, uint8_t* packed) const {
    return packed + layout_.offset[static_cast<int>(part)] + expert * part_bytes(part);
  }

  void pack_weights(int64_t num_experts, int64_t expert, uint8_t* packed, int num_threads) const {
    const int64_t weight_bytes = static_cast<int64_t>(arrays_.weights.size) / num_experts;
    const int64_t scale_bytes = static_cast<int64_t>(arrays_.scales.size) / num_experts;
    SourceMatrix source{};
    source.format = layout_.sizes.format;
    source.dtype = format_.element_bits == 0 ? static_cast<DType>(arrays_.weights.dtype) : DType::kFloat32;
    source.weights = bytes_of(arrays_.weights) + expert * weight_bytes;
    source.num_rows = layout_.num_rows;
    source.k = layout_.k;
    source.order = layout_.order;
    source.num_terms = num_terms_;
    PackedBytes to{at(Part::kWeights, expert, packed), at(Part::kScales, expert, packed),
                   layout_.sizes.num_panels / num_terms_};
    std::vector<uint8_t> zeros;
    if (format_.scale_block > 0) source.scales = bytes_of(arrays_.scales) + expert * scale_bytes;
    if (is_given(arrays_.zero_points)) {
      zeros = zeros_of_blocks(num_experts, expert);
      source.scales = zeros.data();
    }
    pack_matrix(source, to, num_threads);
  }

  // The zero points of the groups of each row, once for each K-block.
  std::vector<uint8_t> zeros_of_blocks(int64_t num_experts, int64_t expert) const {
    const int64_t rows = layout_.num_rows, blocks = ceil_div(layout_.k, kBlockK);
    const int64_t groups = static_cast<int64_t>(arrays_.zero_points.size) / num_experts / rows;
    const uint8_t* const zeros = bytes_of(arrays_.zero_points) + expert * rows * groups;
    std::vector<uint8_t> result(static_cast<size_t>(rows * blocks));
    for (int64_t i = 0; i < rows * blocks; ++i) {
      result[static_cast<size_t>(i)] = zeros[i / blocks * groups + i % blocks / (blocks / groups)];
    }
    return result;
  }

  struct Which {
    int64_t num_experts, expert;
  };

  void pack_scales(Part part, const mxfp4moe_array& scales, Which which, uint8_t* packed) const {
    const PackedMatrix& sizes = layout_.sizes;
    const PackedSumScales to{at(part, which.expert, packed), sizes.sum_dtype, sizes.num_panels, sizes.num_ranges,
                             sizes.scale_rows};
    const int64_t bytes = static_cast<int64_t>(scales.size) / which.num_experts;
    pack_sum_scales(layout_.sum_blocks, bytes_of(scales) + which.expert * bytes, to);
  }

  void pack_biases(int64_t expert, uint8_t* packed) const {
    std::vector<float> bias(static_cast<size_t>(layout_.num_rows));
    for (int64_t row = 0; row < layout_.num_rows; ++row) {
      bias[static_cast<size_t>(row)] =
          float_at(bytes_of(arrays_.bias), arrays_.bias.dtype, expert * layout_.num_rows + row);
    }
    pack_bias(layout_.order, layout_.num_rows, bias.data(),
              {reinterpret_cast<float*>(at(Part::kBias, expert, packed)), layout_.sizes.num_panels / num_terms_});
  }

  const Format& format_;
  const MatrixArrays& arrays_;
  const MatrixLayout& layout_;
  const int64_t num_terms_;
};

const Format& check_format(const char* name, int32_t number, int32_t largest) {
  const Format* const format = number > largest ? nullptr : find_format(number);
  if (format == nullptr) invalid(name, "a weight format", text_of(int64_t{number}));
  return *format;
}

void check_size(const char* name, int64_t value, int64_t multiple) {
  check_range(name, value, 1, kMaxSize);
  if (value % multiple != 0) invalid(name, "a multiple of " + text_of(multiple), text_of(value));
}

// An order of columns for each expert.
void check_columns(const mxfp4moe_array& array, int64_t num_experts, int64_t size) {
  if (array.dtype != MXFP4MOE_DTYPE_INT32) invalid("w13_columns.dtype", "int32", dtype_name(array.dtype));
  check_array("w13_columns", array, product({num_experts, size, 4}), 4);
  const int32_t* const columns = static_cast<const int32_t*>(array.data);
  std::vector<int64_t> seen(static_cast<size_t>(size), -1);
  for (int64_t expert = 0; expert < num_experts; ++expert) {
    for (int64_t k = 0; k < size; ++k) {
      const int32_t column = columns[expert * size + k];
      if (column < 0 || column >= size || seen[static_cast<size_t>(column)] == expert) {
        invalid("w13_columns", "a permutation of 0 to " + text_of(size - 1) + " for each expert",
                text_of(int64_t{column}) + " as number " + text_of(k) + " of expert " + text_of(expert));
      }
      seen[static_cast<size_t>(column)] = expert;
    }
  }
}

}  // namespace

Experts Experts::of_arrays(const mxfp4moe_experts_arrays& a, int num_threads) {
  Experts experts;
  const Format& format = check_format("format", a.format, MXFP4MOE_FORMAT_INT8);
  const Format& w2_format = a.w2_format == 0 ? format : check_format("w2_format", a.w2_format, MXFP4MOE_FORMAT_INT8);
  experts.format = &format;
  experts.w2_format = &w2_format;
  check_flag("ungated", a.ungated);
  check_range("gate_up_layout", a.gate_up_layout, MXFP4MOE_CONCATENATED,
              a.ungated ? MXFP4MOE_CONCATENATED : MXFP4MOE_INTERLEAVED);
  check_range("num_experts", a.num_experts, 1, kMaxExperts);
  check_size("hidden_size", a.hidden_size, format.k_multiple);
  check_size("intermediate_size", a.intermediate_size, w2_format.k_multiple);
  const ScaleBlocks blocks = block_shape_of(format, w2_format, a.block_rows, a.block_columns);
  const ScaleBlocks w13_blocks = blocks_of("w13_group_size", format, blocks, a.w13_group_size, a.hidden_size);
  const ScaleBlocks w2_blocks = blocks_of("w2_group_size", w2_format, blocks, a.w2_group_size, a.intermediate_size);
  StorageShape& shape = experts.shape;
  shape.num_experts = a.num_experts;
  shape.hidden_size = a.hidden_size;
  shape.intermediate_size = a.intermediate_size;
  shape.gated = !a.ungated;
  shape.interleaved = a.gate_up_layout == MXFP4MOE_INTERLEAVED;
  // One tensor scale needs the other, if that matrix may have one.
  shape.tensor_scales = format.has_tensor_scale || w2_format.has_tensor_scale || is_given(a.w13_tensor_scale) ||
                        is_given(a.w2_tensor_scale);
  shape.has_columns = is_given(a.w13_columns);
  if (shape.has_columns) check_columns(a.w13_columns, a.num_experts, a.hidden_size);
  const int64_t parts = shape.gated ? 2 : 1, apart = shape.interleaved ? 1 : parts;
  const auto scales_of = [&](const Format& f, int64_t count) {
    return shape.tensor_scales && f.may_have_tensor_scale() ? count : 0;
  };
  const MatrixArrays w13{"w13", a.w13, a.w13_scales, a.w13_zero_points, a.w13_tensor_scale, a.w13_bias, a.w13_offsets};
  const MatrixArrays w2{"w2", a.w2, a.w2_scales, a.w2_zero_points, a.w2_tensor_scale, a.w2_bias, a.w2_offsets};
  const int64_t rows = parts * a.intermediate_size;
  const MatrixSizes w13_sizes{
      a.num_experts, rows, a.hidden_size, apart * num_blocks(rows / apart, w13_blocks.rows), scales_of(format, parts),
      false};
  const MatrixSizes w2_sizes{a.num_experts,           a.hidden_size,
                             a.intermediate_size,     num_blocks(a.hidden_size, w2_blocks.rows),
                             scales_of(w2_format, 1), false};
  const MatrixDtypes w13_dtypes = check_matrix(format, w13, w13_sizes, w13_blocks);
  const MatrixDtypes w2_dtypes = check_matrix(w2_format, w2, w2_sizes, w2_blocks);
  if (&format == &w2_format && format.find(w13_dtypes.weights)->packed != format.find(w2_dtypes.weights)->packed) {
    invalid("w2.dtype", "elements as in w13", dtype_name(a.w2.dtype));
  }
  shape.has_w13_bias = w13_dtypes.bias >= 0;
  shape.has_w2_bias = w2_dtypes.bias >= 0;
  shape.w13 = packed_format(format, w13_dtypes, w13_blocks);
  shape.w2 = packed_format(w2_format, w2_dtypes, w2_blocks);
  const StorageLayout layout = storage_layout(shape);
  std::shared_ptr<Bytes> bytes = Bytes::of_size(layout.total, "packed experts");
  Packer(format, w13, layout.w13, 1).pack(a.num_experts, bytes->data(), num_threads);
  Packer(w2_format, w2, layout.w2, 1).pack(a.num_experts, bytes->data(), num_threads);
  if (shape.has_columns) {
    constexpr int kColumns = static_cast<int>(Part::kColumns);
    std::memcpy(bytes->data() + layout.w13.offset[kColumns], a.w13_columns.data,
                static_cast<size_t>(a.num_experts * layout.w13.expert_bytes[kColumns]));
  }
  experts.layer = view_storage(shape, bytes->data());
  experts.num_bytes = layout.total;
  experts.bytes = bytes;
  return experts;
}

Linear Linear::of_arrays(const mxfp4moe_linear_arrays& a, int num_threads) {
  Linear linear;
  const Format& format = check_format("format", a.format, MXFP4MOE_FORMAT_FLOAT32);
  linear.format = &format;
  check_size("num_rows", a.num_rows, 1);
  check_size("num_columns", a.num_columns, format.k_multiple);
  const ScaleBlocks blocks = blocks_of(
      "group_size", format, block_shape_of(format, format, a.block_rows, a.block_columns), a.group_size, a.num_columns);
  const bool scaled = format.has_tensor_scale || (is_given(a.tensor_scale) && format.may_have_tensor_scale());
  const MatrixArrays arrays{"weight", a.weight, a.scales, a.zero_points, a.tensor_scale, a.bias, a.offsets};
  const MatrixSizes sizes{1, a.num_rows, a.num_columns, num_blocks(a.num_rows, blocks.rows), scaled, true};
  const MatrixDtypes dtypes = check_matrix(format, arrays, sizes, blocks);
  MatrixShape& shape = linear.shape;
  shape.format = packed_format(format, dtypes, blocks);
  shape.num_rows = a.num_rows;
  shape.k = a.num_columns;
  shape.num_terms = 1;
  if (format.number == MXFP4MOE_FORMAT_FLOAT32) {
    SourceMatrix source{};
    source.format = WeightFormat::kBf16;
    source.dtype = static_cast<DType>(dtypes.weights);
    source.weights = bytes_of(a.weight);
    source.num_rows = a.num_rows;
    source.k = a.num_columns;
    shape.num_terms = count_terms(source, num_threads);
  }
  shape.has_bias = dtypes.bias >= 0;
  shape.tensor_scale = scaled;
  const SingleLayout layout = single_layout(shape);
  std::shared_ptr<Bytes> bytes = Bytes::of_size(layout.total, "a packed matrix");
  Packer(format, arrays, layout.matrix, shape.num_terms).pack(1, bytes->data(), num_threads);
  linear.weight = view_single(shape, bytes->data());
  linear.num_bytes = layout.total;
  linear.bytes = bytes;
  return linear;
}

Experts Experts::select(const std::vector<int32_t>& chosen) const {
  Experts some = *this;
  std::vector<int32_t> at;
  for (int32_t place : chosen) at.push_back(layer.w13.places == nullptr ? place : layer.w13.places[place]);
  some.num_bytes = num_bytes / count() * static_cast<int64_t>(at.size());
  some.places = std::make_shared<const std::vector<int32_t>>(std::move(at));
  some.layer.num_experts = static_cast<int64_t>(chosen.size());
  some.layer.w13.places = some.layer.w2.places = some.places->data();
  return some;
}

void Experts::compute(const Call& call, ActivationFormat activation_format, MoeProblem problem) const {
  problem.layer = layer;
  throw_status(fused_experts(call.kernels(activation_format), problem, call.num_threads()), "fused experts");
}

void Linear::compute(const Call& call, const Problem& p) const {
  if (p.num_tokens == 0) return;
  const LinearProblem problem{shape, weight, p.hidden_states, p.out, p.num_tokens};
  throw_status(linear(call.kernels(p.format), problem, call.num_threads()), "a linear");
}

}  // namespace mxfp4moe::capi
