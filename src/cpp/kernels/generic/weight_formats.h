// The weight formats as decoders: how a quad of a K-block (four rows, see packing/panels.h) becomes vectors. A format
// says which elements it has and where its scales are applied; the instruction set says how elements are decoded:
//
//   each_e2m1(quad, scale_of, f)  four-bit codes times scale_of(Index<row>, Index<k / 16>), of type E2m1Scale
//   each_e4m3(quad, f), each_e5m2(quad, f), each_bf16(quad, f)   unscaled; e4m3 values are divided by kE4m3Factor
//   each_int4(quad, zero_of, f), each_int8(quad, zero_of, f)     codes minus zero_of(Index<row>), an int
//   e4m3_scale(byte)                     as an E2m1Scale
//   scale_and_add(vec, scale, addend)    where Element is float32, with kCheapestInt4Zero
//                                        and kCheapestInt8Zero: see scaled_integers.h
//   each_scaled_int4(quad, scale_of, addend_of, f)   the same of codes minus kCheapestInt4Zero
//   scale_vec(vec, float)                exact unless a product is too large or too small
//   scale_halves(part, vec, a, b)        by a where k < 16, by b elsewhere
//   kE8m0F32                             the values of e8m0 bytes
//   Mxfp4, Mxfp8<format>                 faster than those, or Mxfp4ByE2m1, Mxfp8By...Values (mxfp*_by_*.h)
//
// Sums are multiplied by `kSumFactor` before they are multiplied by their float32 scale.
// Included inside a kernel table's own namespace, after the headers of an instruction set.

// The bytes of a K-block of a panel.
template <class Decoder>
constexpr int kWeightBytes = block_layout(Decoder::kFormat).weight_bytes;
template <class Decoder>
constexpr int kScaleBytes = block_layout(Decoder::kFormat).scale_bytes;
// From the scales of a quad to those of the next.
template <class Decoder>
constexpr int kQuadScaleBytes = kScaleBytes<Decoder> / 4;

// The decoder of a matrix whose float32 scales change along K: K is cut in segments that have a scale each. Where one
// range is all of K, the plain decoder is used and the scale multiplies the finished sum.
template <class Decoder>
struct Segmented : Decoder {};
template <class Decoder>
constexpr bool kIsSegmented = false;
template <class Decoder>
constexpr bool kIsSegmented<Segmented<Decoder>> = true;
template <class Decoder>
constexpr bool kMayHaveSegments = block_layout(Decoder::kFormat).sum_blocks;

// A decoder may name a faster one, `Ordinary`, for panels whose E8M0 scales are all in [kMinScale, kMaxScale], which
// that states; smaller ones may belong to zeros, as quantizers write them. If it states kMaxCode, no magnitude of the
// codes, of eight bits, may be larger. Both give the same weights.
template <class Decoder>
constexpr auto has_ordinary(int) -> decltype(static_cast<typename Decoder::Ordinary*>(nullptr), bool()) {
  return true;
}
template <class Decoder>
constexpr bool has_ordinary(long) {
  return false;
}

template <class Ordinary>
constexpr auto limits_codes(int) -> decltype(Ordinary::kMaxCode, bool()) {
  return true;
}
template <class Ordinary>
constexpr bool limits_codes(long) {
  return false;
}

// Returns the largest magnitude of codes of eight bits, plus 128.
inline uint8_t largest_code(const uint8_t* codes, int64_t count) {
  uint8_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t code = codes[i] | 0x80;
    largest = code > largest ? code : largest;
  }
  return largest;
}

// Tells whether all weights of a row of a K-block are zero; packing/panels.h says where they stand.
template <class Decoder>
inline bool is_zero_row(const uint8_t* block, int row) {
  constexpr bool kNibbles = block_layout(Decoder::kFormat).weight_bits() == 4;
  const uint8_t* codes = kNibbles ? block + row / 4 * 64 + row % 4 / 2 : block + row / 2 * 64 + row % 2 * 8;
  const int magnitude = kNibbles ? 7 << row % 2 * 4 : 0x7f;
  int any = 0;
  for (int k = 0; k < kBlockK; ++k) any |= codes[kNibbles ? 2 * k : k / 8 * 16 + k % 8];
  return (any & magnitude) == 0;
}

template <class Decoder>
inline bool is_ordinary(const uint8_t* weights, const uint8_t* scales, int64_t k_blocks) {
  constexpr uint8_t kMin = Decoder::Ordinary::kMinScale, kMax = Decoder::Ordinary::kMaxScale;
  static_assert(kScaleBytes<Decoder> == kPanelRows, "each row of a K-block has one scale");
  if constexpr (limits_codes<typename Decoder::Ordinary>(0)) {
    if (largest_code(weights, k_blocks * kWeightBytes<Decoder>) > 0x80 + Decoder::Ordinary::kMaxCode) return false;
  }
  uint8_t largest = 0;
  for (int64_t i = 0; i < k_blocks * kPanelRows; ++i) {
    const uint8_t above_min = static_cast<uint8_t>(scales[i] - kMin);
    largest = above_min > largest ? above_min : largest;
  }
  if (largest <= kMax - kMin) return true;
  for (int64_t i = 0; i < k_blocks * kPanelRows; ++i) {
    if (scales[i] > kMax) return false;
    const uint8_t* block = weights + i / kPanelRows * kWeightBytes<Decoder>;
    if (scales[i] < kMin && !is_zero_row<Decoder>(block, static_cast<int>(i % kPanelRows))) return false;
  }
  return true;
}

struct Nvfp4 {
  static constexpr WeightFormat kFormat = WeightFormat::kNvfp4;
  static constexpr int kSumFactor = 1;

  template <class F>
  static MXFP4MOE_INLINE void each_vec(const uint8_t* quad, const uint8_t* scales, F&& f) {
    const auto scale_of = [&](auto row, auto half)
                              MXFP4MOE_INLINE_LAMBDA { return e4m3_scale(scales[2 * row.value + half.value]); };
    each_e2m1(quad, scale_of, f);
  }
};

struct Fp8Block {
  static constexpr WeightFormat kFormat = WeightFormat::kFp8Block;
  static constexpr int kSumFactor = kE4m3Factor;

  template <class F>
  static MXFP4MOE_INLINE void each_vec(const uint8_t* quad, const uint8_t*, F&& f) {
    each_e4m3(quad, f);
  }
};

struct Bf16 {
  static constexpr WeightFormat kFormat = WeightFormat::kBf16;
  static constexpr int kSumFactor = 1;

  template <class F>
  static MXFP4MOE_INLINE void each_vec(const uint8_t* quad, const uint8_t*, F&& f) {
    each_bf16(quad, f);
  }
};

// Integer codes minus their zero point. Codes and zero points of 4 bits are 0 to 15, those of 8 bits are signed. The
// differences, at most 255, are bfloat16 numbers. panel_scales() gives zero points to formats without any; what offsets
// add to the sums is computed apart from the codes.
template <WeightFormat kFormat_>
struct Integers {
  static constexpr WeightFormat kFormat = kFormat_;
  static constexpr int kSumFactor = 1;
  static constexpr bool kNibbles = block_layout(kFormat).weight_bits() == 4;

  // The zero point of a row.
  static MXFP4MOE_INLINE int zero_of(const uint8_t* zeros, int row) {
    return kNibbles ? zeros[row] & 15 : static_cast<int8_t>(zeros[row]);
  }

  template <class F>
  static MXFP4MOE_INLINE void each_vec(const uint8_t* quad, const uint8_t* zeros, F&& f) {
    const auto zero = [&](auto row) MXFP4MOE_INLINE_LAMBDA { return zero_of(zeros, row.value); };
    if constexpr (kNibbles) {
      each_int4(quad, zero, f);
    } else {
      each_int8(quad, zero, f);
    }
  }
};
using Int4Weights = Integers<WeightFormat::kInt4Zeros>;
using Int8Weights = Integers<WeightFormat::kInt8Zeros>;

// Two functions of each format, first<Decoder> and second<Decoder>, in the order of WeightFormat.
#define MXFP4MOE_ALL_FORMATS(first, second)                                              \
  {                                                                                      \
      {first<Mxfp4>, second<Mxfp4>},                                                     \
      {first<Nvfp4>, second<Nvfp4>},                                                     \
      {first<Mxfp8<WeightFormat::kMxfp8E4m3>>, second<Mxfp8<WeightFormat::kMxfp8E4m3>>}, \
      {first<Mxfp8<WeightFormat::kMxfp8E5m2>>, second<Mxfp8<WeightFormat::kMxfp8E5m2>>}, \
      {first<Fp8Block>, second<Fp8Block>},                                               \
      {first<Bf16>, second<Bf16>},                                                       \
      {first<Int4Weights>, second<Int4Weights>},                                         \
      {first<Int4Weights>, second<Int4Weights>},                                         \
      {first<Int8Weights>, second<Int8Weights>},                                         \
      {first<Int8Weights>, second<Int8Weights>},                                         \
      {first<Int4Weights>, second<Int4Weights>},                                         \
      {first<Int8Weights>, second<Int8Weights>},                                         \
  }
