// MXFP8 decoded as unscaled values times the e8m0 scale of their K-block.
// Included inside a kernel table's own namespace, after each_e4m3, each_e5m2, scale_vec, kE4m3Factor and kE8m0F32.

// The e8m0 bytes at which every value of an element, but for zero, infinity and NaN, becomes a normal bfloat16. Values
// of e4m3 have exponents from -9 to 8, those of e5m2 from -16 to 15.
template <WeightFormat kFormat>
constexpr int kMinMxfp8Scale = kFormat == WeightFormat::kMxfp8E4m3 ? 1 + 9 : 1 + 16;
template <WeightFormat kFormat>
constexpr int kMaxMxfp8Scale = kFormat == WeightFormat::kMxfp8E4m3 ? 254 - 8 : 254 - 15;

template <WeightFormat kFormat_>
struct Mxfp8ByValues {
  static constexpr WeightFormat kFormat = kFormat_;
  static constexpr int kSumFactor = 1;

  template <class F>
  static MXFP4MOE_INLINE void each_vec(const uint8_t* quad, const uint8_t* scales, F&& f) {
    const auto scaled = [&](auto row, auto part, const Vec& vec) MXFP4MOE_INLINE_LAMBDA {
      const float scale = kE8m0F32.values[scales[row.value]];
      // There are two multiplications, because kE4m3Factor times the scale may be infinite, and infinity times a weight
      // of zero would be NaN.
      constexpr bool kTwice = kFormat == WeightFormat::kMxfp8E4m3 && kE4m3Factor != 1;
      f(row, part, scale_vec(kTwice ? scale_vec(vec, kE4m3Factor) : vec, scale));
    };
    if constexpr (kFormat == WeightFormat::kMxfp8E4m3) {
      each_e4m3(quad, scaled);
    } else {
      each_e5m2(quad, scaled);
    }
  }
};

// Where kE4m3Factor is not 1 and all scales of a panel are ordinary, one multiplication suffices, because kE4m3Factor
// times an ordinary scale is finite.
struct OrdinaryMxfp8E4m3 {
  static constexpr WeightFormat kFormat = WeightFormat::kMxfp8E4m3;
  static constexpr int kSumFactor = 1;
  static constexpr int kMinScale = kMinMxfp8Scale<kFormat>, kMaxScale = kMaxMxfp8Scale<kFormat>;

  template <class F>
  static MXFP4MOE_INLINE void each_vec(const uint8_t* quad, const uint8_t* scales, F&& f) {
    const auto scaled = [&](auto row, auto part, const Vec& vec) MXFP4MOE_INLINE_LAMBDA {
      f(row, part, scale_vec(vec, kE4m3Factor * kE8m0F32.values[scales[row.value]]));
    };
    each_e4m3(quad, scaled);
  }
};

// The decoder for instruction sets whose kE4m3Factor is not 1; it names the faster one.
template <WeightFormat kFormat>
struct Mxfp8ByDividedValues : Mxfp8ByValues<kFormat> {};
template <>
struct Mxfp8ByDividedValues<WeightFormat::kMxfp8E4m3> : Mxfp8ByValues<WeightFormat::kMxfp8E4m3> {
  using Ordinary = OrdinaryMxfp8E4m3;
};
