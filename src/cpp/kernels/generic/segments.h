// K cut in segments, for panels whose float32 scales change along K. Each segment lies within one range of K that has a
// scale, and is no longer than a slab of decoded weights, which holds whole segments. `Panels` is one panel or several
// of a matrix: it has k_blocks, range_blocks and scale_rows as in PackedMatrix, and the scales. Included inside a
// kernel table's own namespace.

struct BlockRange {
  int64_t begin, end;  // K-blocks
};

// Returns the float32 scales of a panel, [ranges][scale_rows], or null: where they stand, or widened to `buffer`, which
// has room for a scale for each row and K-block. Those of the next panel, which follow, are prefetched into L2.
inline const float* panel_sum_scales(const PackedMatrix& m, int64_t panel, float* buffer) {
  if (m.sum_scales == nullptr) return nullptr;
  const int64_t count = m.num_ranges * m.scale_rows;
  if (m.sum_dtype == DType::kFloat32) return reinterpret_cast<const float*>(m.sum_scales) + panel * count;
  const uint16_t* from = reinterpret_cast<const uint16_t*>(m.sum_scales) + panel * count;
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
      const int zero = m.format == WeightFormat::kInt4 ? 8 : 0;
      std::memset(buffer, zero, static_cast<size_t>(m.k_blocks * kScaleBytes<Decoder>));
      return buffer;
    }
  }
  return m.scales + panel * m.k_blocks * kScaleBytes<Decoder>;
}

// The floats of both buffers, one after the other, for rows of `k` weights.
constexpr int64_t sum_scale_floats(int64_t k) { return ceil_div(k, kBlockK) * kPanelRows; }
constexpr int64_t panel_scale_floats(int64_t k) {
  return sum_scale_floats(k) + round_up(sum_scale_floats(k) / 4, kPanelRows);
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
