// K cut in segments, for panels whose float32 scales change along K. Each segment lies within one range of K that has a
// scale, and is no longer than a slab of decoded weights, which holds whole segments. `Panels` is one panel or several
// of a matrix: it has k_blocks, range_blocks and scale_rows as in PackedMatrix, and the scales. Included inside a
// kernel table's own namespace.

struct BlockRange {
  int64_t begin, end;  // K-blocks
};

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
