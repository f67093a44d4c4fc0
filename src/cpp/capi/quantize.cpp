// The quantizers of mxfp4moe.h and their inverses.
#include "quantize/quantize.h"

#include <algorithm>
#include <cmath>

#include "capi/formats.h"
#include "formats/bf16.h"

using namespace mxfp4moe;
using namespace mxfp4moe::capi;

namespace {

constexpr int64_t kDefaultBlock = 128;
constexpr uint8_t kNanE8m0 = 255, kNanE4m3 = 127;

// What the sizes of the arrays follow from.
struct Problem {
  mxfp4moe_quantize_shape shape;
  const Format* format;
  DType dtype;
  int64_t num_values, num_codes, num_scales;  // codes in bytes
  ScaleBlockGrid grid;
  int64_t group_size;

  bool is_mx() const { return shape.format <= MXFP4MOE_FORMAT_MXFP8; }
  bool is_nvfp4() const { return shape.format == MXFP4MOE_FORMAT_NVFP4; }
  MxElement element() const {
    if (shape.format == MXFP4MOE_FORMAT_MXFP4) return MxElement::kE2m1;
    return shape.e5m2 ? MxElement::kE5m2 : MxElement::kE4m3;
  }
};

int64_t block_size(const char* name, int64_t value, int64_t size) {
  if (value == MXFP4MOE_WHOLE_AXIS) return size;
  if (value == 0) value = kDefaultBlock;
  check_range(name, value, 1, kMaxSize);
  return std::min(value, size);
}

Problem check_shape(const mxfp4moe_quantize_shape* given) {
  Problem p{};
  p.shape = read_struct("shape", given);
  const mxfp4moe_quantize_shape& s = p.shape;
  p.format = find_format(s.format);
  if (p.format == nullptr || !p.format->has_scales()) invalid("format", "one with scales", text_of(int64_t{s.format}));
  p.dtype = float_dtype("values_dtype", s.values_dtype, true);
  check_flag("e5m2", s.e5m2);
  check_flag("nonfinite_is_nan", s.nonfinite_is_nan);
  check_range("scale_rule", s.scale_rule, MXFP4MOE_SCALE_FLOOR, MXFP4MOE_SCALE_EVEN);
  if (s.e5m2 && s.format != MXFP4MOE_FORMAT_MXFP8) invalid("e5m2", "0 with this format", "1");
  if (s.scale_rule != 0 && !p.is_mx()) invalid("scale_rule", "0 with this format", text_of(int64_t{s.scale_rule}));
  check_range("num_matrices", s.num_matrices, 1, kMaxSize);
  check_range("num_rows", s.num_rows, 1, kMaxSize);
  check_range("num_columns", s.num_columns, 1, kMaxSize);
  const int64_t multiple = p.format->k_multiple;
  if (s.num_columns % multiple != 0)
    invalid("num_columns", "a multiple of " + text_of(multiple), text_of(s.num_columns));
  const bool blocks = p.format->has_block_shape(), groups = p.format->has_groups;
  if (!blocks && (s.block_rows != 0 || s.block_columns != 0)) invalid("block_rows", "0 with this format", "another");
  if (!groups && s.group_size != 0) invalid("group_size", "0 with this format", text_of(s.group_size));
  p.num_values = product({s.num_matrices, s.num_rows, s.num_columns});
  check_range("the values", p.num_values, 1, int64_t{1} << 58);
  p.num_codes = p.format->element_bits == 4 ? p.num_values / 2 : p.num_values;
  if (blocks) {
    p.grid = {s.num_matrices, s.num_rows, s.num_columns, block_size("block_rows", s.block_rows, s.num_rows),
              block_size("block_columns", s.block_columns, s.num_columns)};
    p.num_scales =
        s.num_matrices * ceil_div(s.num_rows, p.grid.block_rows) * ceil_div(s.num_columns, p.grid.block_columns);
  } else if (groups) {
    p.group_size = s.group_size == 0 ? s.num_columns : s.group_size;
    const bool whole = p.group_size == s.num_columns;
    if (p.group_size < 1 || s.num_columns % p.group_size != 0 || (!whole && p.group_size % kGroupMultiple != 0)) {
      invalid("group_size", "0 or a multiple of 32 that divides " + text_of(s.num_columns), text_of(s.group_size));
    }
    p.num_scales = p.num_values / p.group_size;
  } else {
    p.num_scales = p.num_values / p.format->scale_block;
  }
  return p;
}

// An array or a buffer of `count` elements.
Extent check_elements(const char* name, const void* data, uint64_t size, int64_t count, int64_t element_bytes) {
  const int64_t bytes = product({count, element_bytes});
  if (data == nullptr || size != static_cast<uint64_t>(bytes)) {
    invalid(name, text_of(bytes) + " bytes", data == nullptr ? "NULL" : std::to_string(size));
  }
  return check_memory(name, data, bytes, element_bytes);
}

Extent check_buffer(const char* name, const mxfp4moe_buffer& buffer, int64_t count, int64_t element_bytes) {
  return check_elements(name, buffer.data, buffer.size, count, element_bytes);
}

Extent check_array(const char* name, const mxfp4moe_array& array, int64_t count,
                   std::initializer_list<int32_t> dtypes) {
  if (std::find(dtypes.begin(), dtypes.end(), array.dtype) == dtypes.end()) {
    invalid(std::string(name) + ".dtype", "one that the format has", dtype_name(array.dtype));
  }
  return check_elements(name, array.data, array.size, count, dtype_bytes(array.dtype));
}

template <class Memory>
void check_absent(const char* name, const Memory& memory, bool may_be_given) {
  if (!may_be_given && (memory.data != nullptr || memory.size != 0)) invalid(name, "none with this format", "some");
}

uint8_t* bytes_of(const mxfp4moe_buffer& buffer) { return static_cast<uint8_t*>(buffer.data); }
const uint8_t* bytes_of(const mxfp4moe_array& array) { return static_cast<const uint8_t*>(array.data); }

void quantize(const Call& call, const Problem& p, const uint8_t* values, const mxfp4moe_quantized& to) {
  uint8_t* const codes = bytes_of(to.codes);
  uint8_t* const scales = bytes_of(to.scales);
  float* const float_scales = static_cast<float*>(to.scales.data);
  if (p.is_mx()) {
    const ScaleRule rule = static_cast<ScaleRule>(p.shape.scale_rule);
    quantize_mx(call.kernels(), {values, p.dtype, p.element(), rule, p.num_scales, codes, scales}, call.num_threads());
  } else if (p.is_nvfp4()) {
    const int64_t blocks = p.num_scales / p.shape.num_matrices;
    quantize_nvfp4(call.kernels(), {values, p.dtype, 1.0f, blocks, codes, scales}, p.shape.num_matrices,
                   static_cast<float*>(to.tensor_scales.data), false, call.num_threads());
  } else if (p.format->has_groups) {
    const IntegerGroups groups{values, p.dtype, p.format->element_bits, p.num_scales, p.group_size};
    quantize_integers(groups, {codes, float_scales, bytes_of(to.zero_points)}, call.num_threads());
  } else {
    const ScaleBlockArgs args{values, p.dtype, p.shape.num_rows, p.shape.num_columns, p.shape.num_columns};
    quantize_fp8_block(call.kernels(), p.grid, args, codes, float_scales, call.num_threads());
  }
  if (p.shape.nonfinite_is_nan) return;
  const uint8_t nan = p.is_mx() ? kNanE8m0 : kNanE4m3;
  const bool wrong =
      p.format->has_sum_scales()
          ? std::any_of(float_scales, float_scales + p.num_scales, [](float scale) { return std::isnan(scale); })
          : std::find(scales, scales + p.num_scales, nan) != scales + p.num_scales;
  if (wrong) invalid("values", "finite values", "others");
}

// Scales of 16 bits in float32.
std::vector<float> widened(const mxfp4moe_array& scales, int64_t count) {
  std::vector<float> result;
  if (scales.dtype == MXFP4MOE_DTYPE_FLOAT32) return result;
  const uint16_t* const bits = static_cast<const uint16_t*>(scales.data);
  for (int64_t i = 0; i < count; ++i) {
    result.push_back(scales.dtype == MXFP4MOE_DTYPE_BFLOAT16 ? bf16_to_f32(bits[i]) : f16_to_f32(bits[i]));
  }
  return result;
}

void dequantize(const Call& call, const Problem& p, const mxfp4moe_quantized_arrays& from, uint8_t* values) {
  const uint8_t* const codes = bytes_of(from.codes);
  const uint8_t* const scales = bytes_of(from.scales);
  if (p.is_mx()) {
    dequantize_mx(call.kernels(), {codes, scales, p.element(), p.dtype, p.num_scales, values}, call.num_threads());
  } else if (p.is_nvfp4()) {
    const int64_t blocks = p.num_scales / p.shape.num_matrices;
    dequantize_nvfp4(call.kernels(), {codes, scales, 1.0f, p.dtype, blocks, values}, p.shape.num_matrices,
                     static_cast<const float*>(from.tensor_scales.data), call.num_threads());
  } else if (p.format->has_groups) {
    const std::vector<float> wide = widened(from.scales, p.num_scales);
    const float* const floats = wide.empty() ? static_cast<const float*>(from.scales.data) : wide.data();
    const IntegerArrays arrays{const_cast<uint8_t*>(codes), const_cast<float*>(floats),
                               const_cast<uint8_t*>(bytes_of(from.zero_points))};  // only read
    dequantize_integers({nullptr, p.dtype, p.format->element_bits, p.num_scales, p.group_size}, arrays, values,
                        call.num_threads());
  } else {
    const ScaleBlockValuesArgs args{codes,   1.0f,  p.shape.num_rows, p.shape.num_columns, p.shape.num_columns,
                                    p.dtype, values};
    dequantize_fp8_block(call.kernels(), p.grid, args, static_cast<const float*>(from.scales.data), call.num_threads());
  }
}

}  // namespace

mxfp4moe_status mxfp4moe_quantize(const mxfp4moe_quantize_shape* shape, mxfp4moe_array values,
                                  const mxfp4moe_quantized* quantized, const mxfp4moe_options* options) {
  return guarded([&] {
    const Problem p = check_shape(shape);
    const mxfp4moe_quantized to = read_struct("quantized", quantized);
    const Call call(options);
    const Extent from = check_array("values", values, p.num_values, {p.shape.values_dtype});
    const Extent codes = check_buffer("codes", to.codes, p.num_codes, 1);
    const Extent scales = check_buffer("scales", to.scales, p.num_scales, p.format->has_sum_scales() ? 4 : 1);
    check_absent("tensor_scales", to.tensor_scales, p.is_nvfp4());
    check_absent("zero_points", to.zero_points, p.format->has_groups);
    Extent tensor{"tensor_scales", nullptr, 0}, zeros{"zero_points", nullptr, 0};
    if (p.is_nvfp4()) tensor = check_buffer("tensor_scales", to.tensor_scales, p.shape.num_matrices, 4);
    if (to.zero_points.data != nullptr || to.zero_points.size != 0) {
      zeros = check_buffer("zero_points", to.zero_points, p.num_scales, 1);
    }
    check_apart(codes, {from, scales, tensor, zeros});
    check_apart(scales, {from, tensor, zeros});
    check_apart(tensor, {from});
    check_apart(zeros, {from});
    quantize(call, p, bytes_of(values), to);
  });
}

mxfp4moe_status mxfp4moe_dequantize(const mxfp4moe_quantize_shape* shape, const mxfp4moe_quantized_arrays* arrays,
                                    mxfp4moe_buffer values, const mxfp4moe_options* options) {
  return guarded([&] {
    const Problem p = check_shape(shape);
    const mxfp4moe_quantized_arrays from = read_struct("arrays", arrays);
    const Call call(options);
    const Extent out = check_buffer("values", values, p.num_values, value_bytes(p.dtype));
    const Extent codes = check_elements("codes", from.codes.data, from.codes.size, p.num_codes, 1);
    Extent scales{}, tensor{}, zeros{};
    if (p.format->has_groups) {
      scales = check_array("scales", from.scales, p.num_scales,
                           {MXFP4MOE_DTYPE_FLOAT32, MXFP4MOE_DTYPE_BFLOAT16, MXFP4MOE_DTYPE_FLOAT16});
    } else if (p.format->has_sum_scales()) {
      scales = check_array("scales", from.scales, p.num_scales, {MXFP4MOE_DTYPE_FLOAT32});
    } else {
      scales = check_elements("scales", from.scales.data, from.scales.size, p.num_scales, 1);
    }
    check_absent("tensor_scales", from.tensor_scales, p.is_nvfp4());
    check_absent("zero_points", from.zero_points, p.format->has_groups);
    if (p.is_nvfp4()) {
      tensor = check_array("tensor_scales", from.tensor_scales, p.shape.num_matrices, {MXFP4MOE_DTYPE_FLOAT32});
    }
    if (from.zero_points.data != nullptr || from.zero_points.size != 0) {
      zeros = check_elements("zero_points", from.zero_points.data, from.zero_points.size, p.num_scales, 1);
      const uint8_t* const begin = bytes_of(from.zero_points);
      const auto is_wrong = [&](uint8_t zero) { return p.format->max_zero < 127 && zero > p.format->max_zero; };
      if (std::any_of(begin, begin + p.num_scales, is_wrong)) invalid("zero_points", "values in [0, 15]", "others");
    }
    check_apart(out, {codes, scales, tensor, zeros});
    dequantize(call, p, from, bytes_of(values));
  });
}
