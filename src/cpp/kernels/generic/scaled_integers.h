// Integers times their scale as float32 weights, which leaves sums as they are, so that K need not be cut in segments.
// That is exact where scales have few enough bits, as those that came in 16 bits have. Included inside a kernel table's
// own namespace whose Element is float32, after weight_formats.h and segments.h.

// A weight (code - z) * scale is computed as (code - c) * scale + (c - z) * scale, where c is the zero point that
// each_int4 or each_int8 subtracts at the least cost.
template <WeightFormat kFormat>
constexpr int kCheapestZero = block_layout(kFormat).weight_bits() == 4 ? kCheapestInt4Zero : kCheapestInt8Zero;

// Counts the bits of a number from its highest 1 to its lowest 1.
constexpr int significant_bits(int number) {
  const unsigned magnitude = static_cast<unsigned>(number < 0 ? -number : number);
  return magnitude == 0 ? 0 : 32 - __builtin_clz(magnitude) - __builtin_ctz(magnitude);
}

// The bits of float32 that a scale must not use, so that the second product has no more than 24 bits, and the weight
// neither. c - z has the bits of the one z of a format that stores none, or those of the largest sum. code - z has a
// bit less where codes are counted from the middle. scale_and_add rounds once, or else c is 0. Unless multiply_add
// rounds only once, the product of weight and activation, of 8 bits, must not have more than 24 bits either.
constexpr uint32_t inexact_bits(WeightFormat format) {
  const int bits = block_layout(format).weight_bits(), c = bits == 4 ? kCheapestInt4Zero : kCheapestInt8Zero;
  const bool has_zeros = block_layout(format).scale_bytes != 0, is_centered = !has_zeros && !has_offsets(format);
  const int sum_bits = 32 - __builtin_clz(static_cast<unsigned>(((1 << bits) - 1) - c));
  const int addend_bits = has_zeros ? sum_bits : significant_bits(implied_zero(format) - c);
  const int weight_bits = bits - (is_centered ? 1 : 0) + (kFusedProducts ? 0 : 8);
  return (1u << (addend_bits > weight_bits ? addend_bits : weight_bits)) - 1;
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

// Some decoders read scales that are written for them. This is done for a range of K-blocks at a time, just before it
// is decoded, so that what is written stays in L1. Such a decoder has write_scales(panel, range, out).
template <class Decoder>
constexpr bool kWritesScales = false;

// What the rows of a K-block have beside their codes, in the place of block scales.
struct RowScales {
  float scale[kPanelRows], addend[kPanelRows];
};

// Writes the scales of K-blocks of a panel, which has a float32 scale for each row, or one for all rows, and range of
// K, and zero points as `Decoder` has them, all alike unless the format stores them.
template <class Decoder, class Panel>
inline void write_row_scales(const Panel& panel, BlockRange blocks, int zero, RowScales* out) {
  // These are copies, which the compiler knows not to change while scales are written.
  const int64_t range_blocks = panel.range_blocks, scale_rows = panel.scale_rows;
  const uint8_t* zeros = panel.scales;
  const auto write = [&](auto&& addend_of) MXFP4MOE_INLINE_LAMBDA {
    int64_t range = blocks.begin / range_blocks;
    for (int64_t kb = blocks.begin; kb < blocks.end; ++range) {
      const float* of_range = panel.sum_scales + range * scale_rows;
      const F32 scales = scale_rows == 1 ? broadcast(*of_range) : load(of_range);
      const int64_t range_end = (range + 1) * range_blocks, end = range_end < blocks.end ? range_end : blocks.end;
      do {
        store(out->scale, scales);
        store(out->addend, addend_of(kb, scales));
        ++out;
      } while (++kb < end);
    }
  };
  if (panel.format != Decoder::kFormat) {
    const F32 difference = broadcast(static_cast<float>(zero - Decoder::zero_of(zeros, 0)));
    write([&](int64_t, F32 scales) MXFP4MOE_INLINE_LAMBDA { return mul(difference, scales); });
  } else {
    write([&](int64_t kb, F32 scales) MXFP4MOE_INLINE_LAMBDA {
      uint8_t of_rows[kPanelRows];
      std::memcpy(of_rows, zeros + kb * kScaleBytes<Decoder>, kPanelRows);
      float differences[kPanelRows];
      for (int row = 0; row < kPanelRows; ++row) {
        differences[row] = static_cast<float>(zero - Decoder::zero_of(of_rows, row));
      }
      return mul(load(differences), scales);
    });
  }
}

template <WeightFormat kFormat_>
struct ScaledIntegers {
  static constexpr WeightFormat kFormat = kFormat_;
  static constexpr int kSumFactor = 1;
  static constexpr int kZero = kCheapestZero<kFormat>;

  template <class Panel>
  static void write_scales(const Panel& panel, BlockRange blocks, float* out) {
    write_row_scales<Integers<kFormat>>(panel, blocks, kZero, reinterpret_cast<RowScales*>(out));
  }

  // `scales` points to the scale of the first row of the quad.
  template <class F>
  static MXFP4MOE_INLINE void each_vec(const uint8_t* quad, const uint8_t* scales, F&& f) {
    const float* of_rows = reinterpret_cast<const float*>(scales);
    const auto scale_of = [&](auto row) MXFP4MOE_INLINE_LAMBDA { return of_rows[row.value]; };
    const auto addend_of = [&](auto row) MXFP4MOE_INLINE_LAMBDA { return of_rows[kPanelRows + row.value]; };
    if constexpr (block_layout(kFormat).weight_bits() == 4) {
      each_scaled_int4(quad, scale_of, addend_of, f);
    } else {
      const auto zero_of = [](auto) MXFP4MOE_INLINE_LAMBDA { return kZero; };
      each_int8(quad, zero_of, [&](auto row, auto part, const Vec& vec) MXFP4MOE_INLINE_LAMBDA {
        f(row, part, scale_and_add(vec, scale_of(row), addend_of(row)));
      });
    }
  }
};

template <WeightFormat kFormat>
constexpr int kScaleBytes<ScaledIntegers<kFormat>> = sizeof(RowScales);
template <WeightFormat kFormat>
constexpr int kQuadScaleBytes<ScaledIntegers<kFormat>> = 4 * sizeof(float);
template <WeightFormat kFormat>
constexpr bool kWritesScales<ScaledIntegers<kFormat>> = true;

// --- scales of halves of K-blocks ---

// What the rows of a K-block have beside their codes where each half of the K-block has a scale.
struct HalfScales {
  float scale[2][kPanelRows];
  int32_t zero[kPanelRows];
};
constexpr int64_t kMaxRowScaleBytes = sizeof(HalfScales);
static_assert(kMaxRowScaleBytes >= static_cast<int64_t>(sizeof(RowScales)), "one buffer serves both");

// Writes the scales and the zero points of K-blocks of a panel, which has a float32 scale for each row, or one for all
// rows, and half of a K-block.
template <class Decoder, class Panel>
inline void write_half_scales(const Panel& panel, BlockRange blocks, HalfScales* out) {
  for (int64_t kb = blocks.begin; kb < blocks.end; ++kb, ++out) {
    uint8_t zeros[kPanelRows];
    std::memcpy(zeros, panel.scales + kb * kScaleBytes<Decoder>, kPanelRows);
    for (int row = 0; row < kPanelRows; ++row) out->zero[row] = Decoder::zero_of(zeros, row);
    for (int half = 0; half < 2; ++half) {
      const int64_t range = 2 * kb + half;
      const float* scales = panel.sum_scales + range * panel.scale_rows;
      // The last half may be padding.
      const bool is_padding = range >= panel.num_ranges;
      store(out->scale[half], is_padding ? broadcast(0.0f) : panel.scale_rows == 1 ? broadcast(*scales) : load(scales));
    }
  }
}

// Weights of `Decoder`, each rounded once to float32 after it is multiplied by the scale of its half.
template <class Decoder>
struct HalfBlockIntegers {
  static constexpr WeightFormat kFormat = Decoder::kFormat;
  static constexpr int kSumFactor = 1;

  template <class Panel>
  static void write_scales(const Panel& panel, BlockRange blocks, float* out) {
    write_half_scales<Decoder>(panel, blocks, reinterpret_cast<HalfScales*>(out));
  }

  // `scales` points to the scale of the first half of the first row of the quad.
  template <class F>
  static MXFP4MOE_INLINE void each_vec(const uint8_t* quad, const uint8_t* scales, F&& f) {
    const float* of_rows = reinterpret_cast<const float*>(scales);
    const int32_t* zeros = reinterpret_cast<const int32_t*>(scales + offsetof(HalfScales, zero));
    const auto zero_of = [&](auto row) MXFP4MOE_INLINE_LAMBDA { return zeros[row.value]; };
    const auto scaled = [&](auto row, auto part, const Vec& vec) MXFP4MOE_INLINE_LAMBDA {
      f(row, part, scale_halves(part, vec, of_rows[row.value], of_rows[kPanelRows + row.value]));
    };
    if constexpr (Decoder::kNibbles) {
      each_int4(quad, zero_of, scaled);
    } else {
      each_int8(quad, zero_of, scaled);
    }
  }
};

template <class Decoder>
constexpr int kScaleBytes<HalfBlockIntegers<Decoder>> = sizeof(HalfScales);
template <class Decoder>
constexpr int kQuadScaleBytes<HalfBlockIntegers<Decoder>> = 4 * sizeof(float);
template <class Decoder>
constexpr bool kWritesScales<HalfBlockIntegers<Decoder>> = true;
