// Integers times their scale as float32 weights, which leaves sums as they are, so that K need not be cut in segments.
// That is exact where scales have few enough bits, as those that came in 16 bits have. Included inside a kernel table's
// own namespace whose Element is float32, after weight_formats.h and segments.h.

// A weight (code - z) * scale is computed as (code - c) * scale + (c - z) * scale, where c is the zero point that
// each_int4 or each_int8 subtracts at the least cost.
template <WeightFormat kFormat>
constexpr int kCheapestZero = block_layout(kFormat).weight_bits() == 4 ? kCheapestInt4Zero : kCheapestInt8Zero;

// The bits of float32 that a scale must not use, so that the second product has no more than 24 bits, and the weight
// neither: c - z has 8 bits, or 9 in a c of more bits without a z, or 16 in such a c with one. scale_and_add rounds
// once, or else c is 0. Unless multiply_add rounds only once, the product of weight and activation, of 8 bits, must not
// have more than 24 bits either.
template <WeightFormat kFormat>
constexpr uint32_t inexact_bits(bool has_zero_points) {
  if (!kFusedProducts) return 0xffff;
  return kCheapestZero<kFormat> >= -255 ? 0xff : has_zero_points ? 0xffff : 0x1ff;
}

// The factors of the scale are at most 2^16, so that its products are finite. Infinity and NaN are larger.
constexpr uint32_t kLargestExactScale = static_cast<uint32_t>(127 + 111) << 23;

inline bool has_exact_products(const float* scales, int64_t count, uint32_t inexact) {
  uint32_t any = 0, largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = f32_bits(scales[i]), magnitude = bits & 0x7fffffffu;
    any |= bits;
    largest = magnitude > largest ? magnitude : largest;
  }
  return (any & inexact) == 0 && largest <= kLargestExactScale;
}

// What the rows of a K-block have beside their codes, in the place of block scales.
struct RowScales {
  float scale[kPanelRows], addend[kPanelRows];
};

template <WeightFormat kFormat_>
struct ScaledIntegers {
  static constexpr WeightFormat kFormat = kFormat_;
  static constexpr int kSumFactor = 1;
  static constexpr int kZero = kCheapestZero<kFormat>;

  // `scales` points to the scale of the first row of the quad.
  template <class F>
  static MXFP4MOE_INLINE void each_vec(const uint8_t* quad, const uint8_t* scales, F&& f) {
    const float* of_rows = reinterpret_cast<const float*>(scales);
    const auto zero_of = [](auto) MXFP4MOE_INLINE_LAMBDA { return kZero; };
    const auto scaled = [&](auto row, auto part, const Vec& vec) MXFP4MOE_INLINE_LAMBDA {
      f(row, part, scale_and_add(vec, of_rows[row.value], of_rows[kPanelRows + row.value]));
    };
    if constexpr (block_layout(kFormat).weight_bits() == 4) {
      each_int4(quad, zero_of, scaled);
    } else {
      each_int8(quad, zero_of, scaled);
    }
  }
};

template <WeightFormat kFormat>
constexpr int kScaleBytes<ScaledIntegers<kFormat>> = sizeof(RowScales);
template <WeightFormat kFormat>
constexpr int kQuadScaleBytes<ScaledIntegers<kFormat>> = 4 * sizeof(float);

// Writes the scales of the K-blocks of a panel, which has a float32 scale for each row, or one for all rows, and range
// of K, and zero points as `Decoder` has them, all alike if it came without any.
template <class Decoder, class Panel>
inline void write_row_scales(const Panel& panel, int zero, RowScales* out) {
  const F32 common = broadcast(static_cast<float>(zero - Decoder::zero_of(panel.scales, 0)));
  const uint8_t* zeros = panel.scales;
  const float* of_range = panel.sum_scales;
  for (int64_t kb = 0; kb < panel.k_blocks; of_range += panel.scale_rows) {
    const F32 scales = panel.scale_rows == 1 ? broadcast(*of_range) : load(of_range);
    const int64_t end = kb + panel.range_blocks < panel.k_blocks ? kb + panel.range_blocks : panel.k_blocks;
    for (; kb < end; ++kb, zeros += kScaleBytes<Decoder>, ++out) {
      store(out->scale, scales);
      if (!panel.has_zero_points) {
        store(out->addend, mul(common, scales));
        continue;
      }
      uint8_t of_rows[kPanelRows];  // a copy, which the compiler knows not to change while differences are written
      std::memcpy(of_rows, zeros, kPanelRows);
      float differences[kPanelRows];
      for (int row = 0; row < kPanelRows; ++row) {
        differences[row] = static_cast<float>(zero - Decoder::zero_of(of_rows, row));
      }
      store(out->addend, mul(load(differences), scales));
    }
  }
}

// --- scales of halves of K-blocks ---

// What a quad of rows of a K-block has beside its codes where each half of the K-block has a scale.
struct HalfScales {
  float scale[2][4];
  int32_t zero[4];
};
constexpr int64_t kMaxRowScaleBytes = 4 * sizeof(HalfScales);
static_assert(kMaxRowScaleBytes >= static_cast<int64_t>(sizeof(RowScales)), "one buffer serves both");

// Weights of `Decoder`, each rounded once to float32 after it is multiplied by the scale of its half.
template <class Decoder>
struct HalfBlockIntegers {
  static constexpr WeightFormat kFormat = Decoder::kFormat;
  static constexpr int kSumFactor = 1;

  template <class F>
  static MXFP4MOE_INLINE void each_vec(const uint8_t* quad, const uint8_t* scales, F&& f) {
    const HalfScales& of_rows = *reinterpret_cast<const HalfScales*>(scales);
    const auto zero_of = [&](auto row) MXFP4MOE_INLINE_LAMBDA { return of_rows.zero[row.value]; };
    const auto scaled = [&](auto row, auto part, const Vec& vec) MXFP4MOE_INLINE_LAMBDA {
      constexpr int half = part.value * kVecElements / (kBlockK / 2);
      f(row, part, scale_vec(vec, of_rows.scale[half][row.value]));
    };
    if constexpr (Decoder::kNibbles) {
      each_int4(quad, zero_of, scaled);
    } else {
      each_int8(quad, zero_of, scaled);
    }
  }
};

template <class Decoder>
constexpr int kScaleBytes<HalfBlockIntegers<Decoder>> = 4 * sizeof(HalfScales);

// Writes the scales and the zero points of the quads of a panel, which has a float32 scale for each row and half.
template <class Decoder, class Panel>
inline void write_half_scales(const Panel& panel, HalfScales* out) {
  for (int64_t kb = 0; kb < panel.k_blocks; ++kb) {
    for (int row = 0; row < kPanelRows; ++row) {
      HalfScales& quad = out[kb * 4 + row / 4];
      quad.zero[row % 4] = Decoder::zero_of(panel.scales + kb * kScaleBytes<Decoder>, row);
      for (int half = 0; half < 2; ++half) {
        const int64_t range = 2 * kb + half;
        const float* scales = panel.sum_scales + range * panel.scale_rows;
        // The last half may be padding.
        quad.scale[half][row % 4] = range < panel.num_ranges ? scales[panel.scale_rows == 1 ? 0 : row] : 0.0f;
      }
    }
  }
}
