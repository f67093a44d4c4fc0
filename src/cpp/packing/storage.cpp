#include "packing/storage.h"

#include "packing/panels.h"

namespace mxfp4moe {
namespace {
constexpr int64_t kAlignment = 4096;

int64_t panels_of(int64_t rows) { return ceil_div(rows, kPanelRows); }
}  // namespace

StorageLayout storage_layout(const StorageShape& s) {
  const int64_t hidden = round_up(s.hidden_size, kBlockK), intermediate = round_up(s.intermediate_size, kBlockK);
  // A generous bound in floating point keeps the exact arithmetic below from overflowing.
  const double elements = 3.0 * static_cast<double>(s.num_experts) * (static_cast<double>(hidden) + 32) *
                          (static_cast<double>(intermediate) + 32);
  if (elements > 4e18) return {0, 0, 0, 0, 0, 0, -1};
  const int64_t w13_blocks = s.num_experts * 2 * panels_of(s.intermediate_size) * (hidden / kBlockK);
  const int64_t w2_blocks = s.num_experts * panels_of(s.hidden_size) * (intermediate / kBlockK);
  StorageLayout layout;
  int64_t at = 0;
  const auto place = [&at](int64_t bytes) {
    const int64_t offset = at;
    at = round_up(at + bytes, kAlignment);
    return offset;
  };
  layout.w13 = place(w13_blocks * kMxfp4BlockBytes);
  layout.w13_scales = place(w13_blocks * kScaleBlockBytes);
  layout.w2 = place(w2_blocks * kMxfp4BlockBytes);
  layout.w2_scales = place(w2_blocks * kScaleBlockBytes);
  layout.w13_bias = place(s.has_w13_bias ? s.num_experts * 2 * panels_of(s.intermediate_size) * kPanelRows * 4 : 0);
  layout.w2_bias = place(s.has_w2_bias ? s.num_experts * panels_of(s.hidden_size) * kPanelRows * 4 : 0);
  layout.total = at;
  return layout;
}

PackedLayer view_storage(const StorageShape& s, const uint8_t* data) {
  const StorageLayout layout = storage_layout(s);
  PackedLayer layer;
  layer.format = s.format;
  layer.num_experts = s.num_experts;
  layer.hidden_size = s.hidden_size;
  layer.intermediate_size = s.intermediate_size;
  layer.w13 = data + layout.w13;
  layer.w13_scales = data + layout.w13_scales;
  layer.w2 = data + layout.w2;
  layer.w2_scales = data + layout.w2_scales;
  layer.w13_bias = s.has_w13_bias ? reinterpret_cast<const float*>(data + layout.w13_bias) : nullptr;
  layer.w2_bias = s.has_w2_bias ? reinterpret_cast<const float*>(data + layout.w2_bias) : nullptr;
  return layer;
}

}  // namespace mxfp4moe
