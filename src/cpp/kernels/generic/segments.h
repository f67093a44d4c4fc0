// K cut in segments, for panels whose float32 scales change along K. Each segment lies within one range of K that has a
// scale, and is no longer than a slab of decoded weights, which holds whole segments. `Panels` is one panel or several
// of a matrix: it has k_blocks, range_blocks and scale_rows as in PackedMatrix, and the scales. Included inside a
// kernel table's own namespace.

struct BlockRange {
  int64_t begin, end;  // K-blocks
};

// Returns the float32 scales of a panel, or its offsets, of those of all panels: [ranges][scale_rows], or null. They
// are where they stand, or widened to `buffer`, which has room for sum_scale_floats(). Those of the next panel, which
// follow, are prefetched into L2.
inline const float* panel_floats(const PackedMatrix& m, const uint8_t* all, int64_t panel, float* buffer) {
  if (all == nullptr) return nullptr;
  const int64_t count = m.num_ranges * m.scale_rows;
  if (m.sum_dtype == DType::kFloat32) return reinterpret_cast<const float*>(all) + panel * count;
  const uint16_t* from = reinterpret_cast<const uint16_t*>(all) + panel * count;
  const bool is_bf16 = m.sum_dtype == DType::kBFloat16;
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    __builtin_prefetch(from + count + i, 0, 2);
    store(buffer + i, is_bf16 ? load_bf16(from + i) : load_f16(from + i));
  }
  for (; i < count; ++i) buffer[i] = is_bf16 ? bf16_to_f32(from[i]) : f16_to_f32(from[i]);
  return buffer;
}

// Returns the block scales of a panel. Integers without zero points have those that they stand for, which are written
// to `buffer`, a byte for each row and K-block.
template <class Decoder>
inline const uint8_t* panel_scales(const PackedMatrix& m, int64_t panel, uint8_t* buffer) {
  if constexpr (is_integer(Decoder::kFormat)) {
    if (m.format != Decoder::kFormat) {
      std::memset(buffer, implied_zero(m.format), static_cast<size_t>(m.k_blocks * kScaleBytes<Decoder>));
      return buffer;
    }
  }
  return m.scales + panel * m.k_blocks * kScaleBytes<Decoder>;
}

// What a panel has beside its weights, as `Panels` hold it.
struct PanelScales {
  const uint8_t* block_scales;
  const float* sum_scales;
  const float* offsets;
};

// The floats of the buffers of a panel of rows of `k` weights: scales, offsets and zero points, one after the other.
constexpr int64_t sum_scale_floats(int64_t k) { return 2 * ceil_div(k, kBlockK) * kPanelRows; }
constexpr int64_t panel_scale_floats(int64_t k) {
  return 2 * sum_scale_floats(k) + round_up(ceil_div(k, kBlockK) * kPanelRows / 4, kPanelRows);
}

template <class Decoder>
inline PanelScales scales_of_panel(const PackedMatrix& m, int64_t panel, float* buffer) {
  const int64_t floats = sum_scale_floats(m.k_blocks * kBlockK);
  return {panel_scales<Decoder>(m, panel, reinterpret_cast<uint8_t*>(buffer + 2 * floats)),
          panel_floats(m, m.sum_scales, panel, buffer), panel_floats(m, m.offsets, panel, buffer + floats)};
}

// Offsets add to the sum of a row, for each range of K, the offset times the sum of the hidden state over that range.
// There are as many of these sums of a token as half K-blocks at the most.
constexpr int64_t range_sum_floats(int64_t k) { return 2 * ceil_div(k, kBlockK); }

// Returns the sum over ranges of offset_of(range) times sum_of(range). The order of additions is always the same.
template <class OffsetOf, class SumOf>
MXFP4MOE_INLINE F32 sum_of_offsets(int64_t num_ranges, OffsetOf&& offset_of, SumOf&& sum_of) {
  F32 parts[4] = {broadcast(0.0f), broadcast(0.0f), broadcast(0.0f), broadcast(0.0f)};
  int64_t range = 0;
  for (; range + 4 <= num_ranges; range += 4) {
    for (int i = 0; i < 4; ++i) parts[i] = mul_add(offset_of(range + i), sum_of(range + i), parts[i]);
  }
  for (; range < num_ranges; ++range) parts[0] = mul_add(offset_of(range), sum_of(range), parts[0]);
  return add(add(parts[0], parts[1]), add(parts[2], parts[3]));
}

template <class Panels>
class Segments {
 public:
  Segments(const Panels& panels, int64_t slab_blocks)
      : panels_(panels), slab_blocks_(slab_blocks), range_end_(panels.range_blocks) {}

  // Returns the end of the segment that begins at K-block `begin`, where the last one ended.
  int64_t end(int64_t begin) const {
    const int64_t range_end = range_end_ < panels_.k_blocks ? range_end_ : panels_.k_blocks;
    return begin + slab_blocks_ < range_end ? begin + slab_blocks_ : range_end;
  }

  // Moves on to the segment that begins where this one ends.
  void next(int64_t end) {
    if (end != range_end_) return;
    ++range_;
    range_end_ += panels_.range_blocks;
  }

  // Moves over as many segments as a slab holds and returns where they end.
  int64_t next_slab(int64_t begin) {
    int64_t at = begin;
    for (int64_t to = at; at < panels_.k_blocks && (to = end(at)) - begin <= slab_blocks_; at = to) next(to);
    return at;
  }

  const Panels& panels() const { return panels_; }

  // Returns where the scale of a row stands among those of its panel.
  int64_t scale_of(int row) const { return panels_.scale_rows == 1 ? range_ : range_ * kPanelRows + row; }

 private:
  const Panels& panels_;
  int64_t slab_blocks_;
  int64_t range_ = 0;
  int64_t range_end_;
};
