#include "packing/storage.h"

#include <initializer_list>

namespace mxfp4moe {
namespace {

constexpr int64_t kAlignment = 4096;

// What the layout of a matrix follows from: gate and up, or one matrix of rows in their order.
struct Rectangle {
  MatrixShape shape;
  RowOrder order;
  int64_t num_panels;  // of one term
};

// A generous bound in floating point (padding, and at most two float32 scales and offsets for each row and K-block
// beside two bytes for each term of a weight) keeps the exact arithmetic below from overflowing.
bool is_too_large(int64_t matrices, int64_t rows, int64_t k) {
  const double bytes =
      3.0 * 4.0 * static_cast<double>(matrices) * (static_cast<double>(rows) + 64) * (static_cast<double>(k) + 64);
  return bytes > 4e18;
}

Rectangle w13_of(const StorageShape& s) {
  const int64_t parts = s.gated ? 2 : 1;
  const RowOrder gated = s.interleaved ? RowOrder::kInterleaved : RowOrder::kConcatenated;
  return {{s.w13, parts * s.intermediate_size, s.hidden_size, 1, s.has_w13_bias, s.tensor_scales, s.has_columns},
          s.gated ? gated : RowOrder::kPlain,
          parts * round_up(s.intermediate_size, kBlockK) / kPanelRows};
}

Rectangle w2_of(const StorageShape& s) {
  return {{s.w2, s.hidden_size, s.intermediate_size, 1, s.has_w2_bias, s.tensor_scales, false},
          RowOrder::kPlain,
          ceil_div(s.hidden_size, kPanelRows)};
}

MatrixLayout matrix_layout(const Rectangle& rectangle) {
  const MatrixShape& s = rectangle.shape;
  const MatrixFormat& format = s.format;
  const BlockLayout block = block_layout(format.weights);
  MatrixLayout m{};
  m.num_rows = s.num_rows;
  m.k = s.k;
  m.order = rectangle.order;
  PackedMatrix& sizes = m.sizes;
  sizes.format = format.weights;
  sizes.sum_dtype = block.sum_blocks ? format.sum_dtype : DType::kFloat32;
  sizes.num_panels = rectangle.num_panels * s.num_terms;
  sizes.k_blocks = ceil_div(s.k, kBlockK);
  if (block.sum_blocks || s.tensor_scale) {
    const bool per_tensor = !block.sum_blocks, gate_up = m.order != RowOrder::kPlain;
    const int64_t block_k = per_tensor || format.block_k == 0 || format.block_k > s.k ? s.k : format.block_k;
    sizes.num_ranges = ceil_div(s.k, block_k);
    sizes.range_blocks = sizes.num_ranges > 1 && block_k < kBlockK ? 0 : ceil_div(block_k, kBlockK);
    SumScaleBlocks& blocks = m.sum_blocks;
    blocks.order = m.order;
    blocks.apart = gate_up && (per_tensor || m.order == RowOrder::kConcatenated);
    blocks.num_rows = s.num_rows;
    const int64_t all = blocks.apart ? s.num_rows / 2 : s.num_rows;
    blocks.block_rows = per_tensor || format.block_rows == 0 || format.block_rows > all ? all : format.block_rows;
    // One scale serves a panel if all its rows lie in one block. The rows of a panel span twice as many rows of the
    // source where gate and up alternate.
    const int64_t span = gate_up && !blocks.apart ? 2 * kPanelRows : kPanelRows;
    sizes.scale_rows = blocks.block_rows == all || blocks.block_rows % span == 0 ? 1 : kPanelRows;
  }
  const int64_t num_blocks = sizes.num_panels * sizes.k_blocks;
  m.expert_bytes[static_cast<int>(Part::kWeights)] = num_blocks * block.weight_bytes;
  m.expert_bytes[static_cast<int>(Part::kScales)] = num_blocks * block.scale_bytes;
  const int64_t sum_bytes = sizes.num_panels * sizes.num_ranges * sizes.scale_rows * value_bytes(sizes.sum_dtype);
  m.expert_bytes[static_cast<int>(Part::kSumScales)] = sum_bytes;
  m.expert_bytes[static_cast<int>(Part::kOffsets)] = has_offsets(format.weights) ? sum_bytes : 0;
  m.expert_bytes[static_cast<int>(Part::kColumns)] = s.has_columns ? s.k * 4 : 0;
  m.expert_bytes[static_cast<int>(Part::kBias)] = s.has_bias ? rectangle.num_panels * kPanelRows * 4 : 0;
  return m;
}

// Places the parts of a matrix from `begin` on, and returns where they end.
int64_t place_parts(int64_t begin, int64_t num_experts, MatrixLayout* m) {
  for (int i = 0; i < kNumParts; ++i) {
    m->offset[i] = begin;
    begin = round_up(begin + num_experts * m->expert_bytes[i], kAlignment);
  }
  return begin;
}

const uint8_t* part_at(const MatrixLayout& m, Part part, const uint8_t* data) {
  const int i = static_cast<int>(part);
  return m.expert_bytes[i] == 0 ? nullptr : data + m.offset[i];
}

PackedMatrix view_matrix(const MatrixLayout& m, const uint8_t* data) {
  PackedMatrix matrix = m.sizes;
  matrix.weights = part_at(m, Part::kWeights, data);
  matrix.scales = part_at(m, Part::kScales, data);
  matrix.sum_scales = part_at(m, Part::kSumScales, data);
  matrix.offsets = part_at(m, Part::kOffsets, data);
  matrix.bias = reinterpret_cast<const float*>(part_at(m, Part::kBias, data));
  return matrix;
}

}  // namespace

StorageLayout storage_layout(const StorageShape& s) {
  StorageLayout layout{};
  if (is_too_large(s.num_experts, s.hidden_size, s.intermediate_size)) {
    layout.total = -1;
    return layout;
  }
  layout.w13 = matrix_layout(w13_of(s));
  layout.w2 = matrix_layout(w2_of(s));
  for (MatrixLayout* m : {&layout.w13, &layout.w2}) layout.total = place_parts(layout.total, s.num_experts, m);
  return layout;
}

SingleLayout single_layout(const MatrixShape& s) {
  SingleLayout layout{};
  if (is_too_large(s.num_terms, s.num_rows, s.k)) {
    layout.total = -1;
    return layout;
  }
  layout.matrix = matrix_layout({s, RowOrder::kPlain, ceil_div(s.num_rows, kPanelRows)});
  layout.total = place_parts(0, 1, &layout.matrix);
  return layout;
}

PackedLayer view_storage(const StorageShape& s, const uint8_t* data) {
  const StorageLayout layout = storage_layout(s);
  return {s.num_experts,
          s.hidden_size,
          s.intermediate_size,
          view_matrix(layout.w13, data),
          view_matrix(layout.w2, data),
          reinterpret_cast<const int32_t*>(part_at(layout.w13, Part::kColumns, data))};
}

int64_t first_outside(const int32_t* values, int64_t count, int64_t limit) {
  int64_t i = 0;
  while (i < count && values[i] >= 0 && values[i] < limit) ++i;
  return i;
}

PackedLayer view_some(const StorageShape& s, const uint8_t* data, const int32_t* places, int64_t num_experts) {
  PackedLayer layer = view_storage(s, data);
  layer.num_experts = num_experts;
  layer.w13.places = layer.w2.places = places;
  return layer;
}

PackedMatrix view_single(const MatrixShape& s, const uint8_t* data) {
  return view_matrix(single_layout(s).matrix, data);
}

}  // namespace mxfp4moe
