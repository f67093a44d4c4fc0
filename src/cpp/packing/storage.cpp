#include "packing/storage.h"

#include <initializer_list>

namespace mxfp4moe {
namespace {

constexpr int64_t kAlignment = 4096;

MatrixLayout matrix_layout(const StorageShape& s, bool is_w13) {
  const BlockLayout block = block_layout(s.format);
  const bool gate_up = is_w13 && s.gated;
  const int64_t rows = (gate_up ? 2 : 1) * (is_w13 ? s.intermediate_size : s.hidden_size);
  const int64_t k = is_w13 ? s.hidden_size : s.intermediate_size;
  MatrixLayout m{};
  m.num_rows = rows;
  m.k = k;
  m.order = !gate_up ? RowOrder::kPlain : s.interleaved ? RowOrder::kInterleaved : RowOrder::kConcatenated;
  PackedMatrix& sizes = m.sizes;
  const int64_t padded = is_w13 ? round_up(s.intermediate_size, kBlockK) : round_up(rows, kPanelRows);
  sizes.num_panels = (gate_up ? 2 : 1) * padded / kPanelRows;
  sizes.k_blocks = ceil_div(k, kBlockK);
  if (block.sum_blocks || s.tensor_scales) {
    const bool per_tensor = !block.sum_blocks;
    const int64_t block_k = per_tensor || s.block_k == 0 || s.block_k > k ? k : s.block_k;
    sizes.num_ranges = ceil_div(k, block_k);
    sizes.range_blocks = ceil_div(block_k, kBlockK);
    SumScaleBlocks& blocks = m.sum_blocks;
    blocks.order = m.order;
    blocks.apart = gate_up && (per_tensor || !s.interleaved);
    blocks.num_rows = rows;
    const int64_t all = blocks.apart ? rows / 2 : rows;
    blocks.block_rows = per_tensor || s.block_rows == 0 || s.block_rows > all ? all : s.block_rows;
    // One scale serves a panel if all its rows lie in one block. The rows of a panel span twice as many rows of the
    // source where gate and up alternate.
    const int64_t span = gate_up && !blocks.apart ? 2 * kPanelRows : kPanelRows;
    sizes.scale_rows = blocks.block_rows == all || blocks.block_rows % span == 0 ? 1 : kPanelRows;
  }
  const int64_t num_blocks = sizes.num_panels * sizes.k_blocks;
  m.expert_bytes[static_cast<int>(Part::kWeights)] = num_blocks * block.weight_bytes;
  m.expert_bytes[static_cast<int>(Part::kScales)] = num_blocks * block.scale_bytes;
  m.expert_bytes[static_cast<int>(Part::kSumScales)] = sizes.num_panels * sizes.num_ranges * sizes.scale_rows * 4;
  m.expert_bytes[static_cast<int>(Part::kBias)] =
      (is_w13 ? s.has_w13_bias : s.has_w2_bias) ? sizes.num_panels * kPanelRows * 4 : 0;
  return m;
}

const uint8_t* part_at(const MatrixLayout& m, Part part, const uint8_t* data) {
  const int i = static_cast<int>(part);
  return m.expert_bytes[i] == 0 ? nullptr : data + m.offset[i];
}

PackedMatrix view_matrix(const MatrixLayout& m, const uint8_t* data) {
  PackedMatrix matrix = m.sizes;
  matrix.weights = part_at(m, Part::kWeights, data);
  matrix.scales = part_at(m, Part::kScales, data);
  matrix.sum_scales = reinterpret_cast<const float*>(part_at(m, Part::kSumScales, data));
  matrix.bias = reinterpret_cast<const float*>(part_at(m, Part::kBias, data));
  return matrix;
}

}  // namespace

StorageLayout storage_layout(const StorageShape& s) {
  StorageLayout layout{};
  // A generous bound in floating point (padding, and at most a float32 scale for each row and K-block beside two
  // bytes a weight) keeps the exact arithmetic below from overflowing.
  const double bytes = 3.0 * 4.0 * static_cast<double>(s.num_experts) * (static_cast<double>(s.hidden_size) + 64) *
                       (static_cast<double>(s.intermediate_size) + 64);
  if (bytes > 4e18) {
    layout.total = -1;
    return layout;
  }
  layout.w13 = matrix_layout(s, true);
  layout.w2 = matrix_layout(s, false);
  for (MatrixLayout* m : {&layout.w13, &layout.w2}) {
    for (int i = 0; i < kNumParts; ++i) {
      m->offset[i] = layout.total;
      layout.total = round_up(layout.total + s.num_experts * m->expert_bytes[i], kAlignment);
    }
  }
  return layout;
}

PackedLayer view_storage(const StorageShape& s, const uint8_t* data) {
  const StorageLayout layout = storage_layout(s);
  return {s.format,
          s.num_experts,
          s.hidden_size,
          s.intermediate_size,
          view_matrix(layout.w13, data),
          view_matrix(layout.w2, data)};
}

}  // namespace mxfp4moe
