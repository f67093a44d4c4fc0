#include "capi/formats.h"

#include <algorithm>

namespace mxfp4moe::capi {
namespace {

using W = WeightFormat;

constexpr int32_t kF32 = MXFP4MOE_DTYPE_FLOAT32, kF16 = MXFP4MOE_DTYPE_FLOAT16, kBF16 = MXFP4MOE_DTYPE_BFLOAT16;
constexpr int32_t kU8 = MXFP4MOE_DTYPE_UINT8, kI8 = MXFP4MOE_DTYPE_INT8, kE4M3 = MXFP4MOE_DTYPE_FLOAT8_E4M3;
constexpr int32_t kE5M2 = MXFP4MOE_DTYPE_FLOAT8_E5M2, kE8M0 = MXFP4MOE_DTYPE_FLOAT8_E8M0;

std::vector<WeightDtype> all(std::initializer_list<int32_t> dtypes, W packed) {
  std::vector<WeightDtype> result;
  for (int32_t dtype : dtypes) result.push_back({dtype, packed});
  return result;
}

std::vector<Format> make_formats() {
  const std::vector<WeightDtype> floats = all({kBF16, kF16, kF32}, W::kBf16);
  Format mxfp4{MXFP4MOE_FORMAT_MXFP4, "mxfp4", 4, 32, all({kU8, kI8}, W::kMxfp4)};
  Format mxfp8{
      MXFP4MOE_FORMAT_MXFP8, "mxfp8", 8, 32, {{kE4M3, W::kMxfp8E4m3}, {kE5M2, W::kMxfp8E5m2}, {kU8, W::kMxfp8E4m3}}};
  for (Format* mx : {&mxfp4, &mxfp8}) {
    mx->scales = {kU8, kE8M0};
    mx->scale_block = 32;
  }
  Format nvfp4{MXFP4MOE_FORMAT_NVFP4, "nvfp4", 4, 16, all({kU8, kI8}, W::kNvfp4)};
  nvfp4.scales = {kE4M3, kU8};
  nvfp4.scale_block = 16;
  nvfp4.has_tensor_scale = true;
  Format fp8_block{MXFP4MOE_FORMAT_FP8_BLOCK, "fp8_block", 8, 1, all({kE4M3, kU8}, W::kFp8Block)};
  fp8_block.scales = {kF32};
  Format int4{MXFP4MOE_FORMAT_INT4, "int4", 4, 2, all({kU8, kI8}, W::kInt4)};
  Format int8{MXFP4MOE_FORMAT_INT8, "int8", 8, 1, all({kI8}, W::kInt8)};
  for (Format* integers : {&int4, &int8}) {
    integers->scales = {kF32, kBF16, kF16};
    integers->has_groups = true;
  }
  int4.zero_dtype = kU8;
  int4.max_zero = 15;
  int4.packed_with_zeros = W::kInt4Zeros;
  int4.packed_with_offsets = W::kInt4Offsets;
  int8.zero_dtype = kI8;
  int8.max_zero = 127;
  int8.packed_with_zeros = W::kInt8Zeros;
  int8.packed_with_offsets = W::kInt8Offsets;
  return {mxfp4,
          mxfp8,
          nvfp4,
          fp8_block,
          {MXFP4MOE_FORMAT_BF16, "bf16", 0, 1, floats},
          int4,
          int8,
          {MXFP4MOE_FORMAT_FLOAT32, "float32", 0, 1, floats}};
}

const std::vector<Format>& formats() {
  static const std::vector<Format> all_formats = make_formats();
  return all_formats;
}

template <class Matches>
const Format* find_where(Matches&& matches) {
  const auto at = std::find_if(formats().begin(), formats().end(), matches);
  return at == formats().end() ? nullptr : &*at;
}

}  // namespace

const WeightDtype* Format::find(int32_t dtype) const {
  const auto at = std::find_if(weights.begin(), weights.end(), [&](const WeightDtype& w) { return w.dtype == dtype; });
  return at == weights.end() ? nullptr : &*at;
}

const Format* find_format(int32_t number) {
  return find_where([&](const Format& format) { return format.number == number; });
}

const Format* find_format(const std::string& name) {
  return find_where([&](const Format& format) { return name == format.name; });
}

MatrixFormat packed_format(const Format& format, const MatrixDtypes& dtypes, ScaleBlocks blocks) {
  MatrixFormat result{format.find(dtypes.weights)->packed, blocks.rows, blocks.columns, DType::kFloat32};
  if (dtypes.zero_points >= 0) result.weights = format.packed_with_zeros;
  if (dtypes.offsets >= 0) result.weights = format.packed_with_offsets;
  if (format.has_sum_scales()) result.sum_dtype = static_cast<DType>(dtypes.scales);
  return result;
}

}  // namespace mxfp4moe::capi
