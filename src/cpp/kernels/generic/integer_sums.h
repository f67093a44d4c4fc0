// The sums of panels of integers where weights are decoded to float32. Included inside a kernel table's own namespace,
// after dot_table.h.

// Scales multiply weights if that is exact, or if they belong to halves of K-blocks, else sums.
template <class Decoder>
inline void integer_panel_sums(const PanelView& panel, const TokenRows& tokens, Element* slab, float* lanes,
                               float* sums) {
  if (panel.range_blocks == 0) return panel_sums_by<HalfBlockIntegers<Decoder>>(panel, tokens, slab, lanes, sums);
  if (has_exact_products(panel.sum_scales, panel.num_ranges * panel.scale_rows, inexact_bits(panel.format))) {
    return panel_sums_by<ScaledIntegers<Decoder::kFormat>>(panel, tokens, slab, lanes, sums);
  }
  panel_sums_by<Segmented<Decoder>>(panel, tokens, slab, lanes, sums);
}
