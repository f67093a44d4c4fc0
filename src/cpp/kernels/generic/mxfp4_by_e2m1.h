// MXFP4 decoded as e2m1 codes times the e8m0 scale of their K-block, for instruction sets without a faster way.
// Included inside a kernel table's own namespace, after each_e2m1 and e8m0_scale.

struct Mxfp4ByE2m1 {
  static constexpr WeightFormat kFormat = WeightFormat::kMxfp4;
  static constexpr int kSumFactor = 1;

  template <class F>
  static MXFP4MOE_INLINE void each_vec(const uint8_t* quad, const uint8_t* scales, F&& f) {
    const auto scale_of = [&](auto row, auto) MXFP4MOE_INLINE_LAMBDA { return e8m0_scale(scales[row.value]); };
    each_e2m1(quad, scale_of, f);
  }
};
