// The weight formats of callers: what the arrays of a matrix look like. src/mxfp4moe/formats.py is the definition.
#pragma once

#include <vector>

#include "capi/arguments.h"
#include "packing/storage.h"

namespace mxfp4moe::capi {

// What the sizes of groups are multiples of, unless a group is half of it, without zero points, or a whole row.
constexpr int64_t kGroupMultiple = 32;
constexpr int64_t kHalfGroup = kGroupMultiple / 2;
constexpr int64_t kMaxSize = int64_t{1} << 40;
constexpr int64_t kMaxExperts = (int64_t{1} << 31) - 1;

// A dtype that weights may have, and the packed format that they become.
struct WeightDtype {
  int32_t dtype;
  WeightFormat packed;
};

struct Format {
  int32_t number;  // MXFP4MOE_FORMAT_*
  const char* name;
  int element_bits;  // of one weight in an array; 0 stands for those of the dtype
  int64_t k_multiple;
  std::vector<WeightDtype> weights;
  int64_t scale_block = 0;  // weights along K that share a block scale; 0 if scales are floats that multiply sums
  bool has_tensor_scale = false;
  std::vector<int32_t> scales = {};  // dtypes; empty without scales
  // These are used by formats of integers alone.
  bool has_groups = false;
  int32_t zero_dtype = -1;
  int max_zero = 0;
  WeightFormat packed_with_zeros = WeightFormat::kBf16, packed_with_offsets = WeightFormat::kBf16;

  bool has_scales() const { return !scales.empty(); }
  bool has_sum_scales() const { return has_scales() && scale_block == 0; }
  bool has_block_shape() const { return has_sum_scales() && !has_groups; }
  bool may_have_tensor_scale() const { return !has_sum_scales() && number != MXFP4MOE_FORMAT_FLOAT32; }
  int64_t row_bytes(int64_t k, int32_t dtype) const { return element_bits == 4 ? k / 2 : k * dtype_bytes(dtype); }
  // The packed format of weights of a dtype; null if weights have no such dtype.
  const WeightDtype* find(int32_t dtype) const;
};

// Whether rows of k weights may be cut in groups of that size.
constexpr bool is_group_size(int64_t size, int64_t k) {
  return size > 0 && k % size == 0 && (size == kHalfGroup || size % kGroupMultiple == 0);
}

const Format* find_format(int32_t number);
const Format* find_format(const std::string& name);

// Rows and columns of a matrix that share a scale of sums; 0 is a whole axis.
struct ScaleBlocks {
  int64_t rows = 0, columns = 0;
};

// The dtypes of the arrays of one matrix; -1 is none.
struct MatrixDtypes {
  int32_t weights = -1, scales = -1, bias = -1, zero_points = -1, offsets = -1;
};

MatrixFormat packed_format(const Format& format, const MatrixDtypes& dtypes, ScaleBlocks blocks);

}  // namespace mxfp4moe::capi
