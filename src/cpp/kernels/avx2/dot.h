// Dot products with float32 FMAs in 16 ymm registers. A K-block is four ymm of eight k each: 0-3 and 8-11, 4-7 and
// 12-15, then the same for the next 16, because unpack instructions leave them in this order. generic/dot_gemm.h says
// what each constant means.

using Element = float;
using Vec = __m256;
using Acc = __m256;
constexpr int kParts = 4, kVecElements = 8, kLanes = 8;

constexpr int kRegisters = 16;
constexpr int kDirectTokens = 4;
// Scaled integers need more registers than two rows by four tokens leave.
constexpr int direct_tokens(WeightFormat format) { return is_integer(format) ? 3 : kDirectTokens; }
constexpr int64_t direct_limit(WeightFormat) { return kDirectTokens + 1; }
constexpr int direct_rows(int tokens) { return tokens <= 2 ? 4 : 2; }
constexpr int direct_segment_rows(int tokens) { return direct_rows(tokens); }
// In four-bit formats, rows 0 and 2 of a quad are the low nibbles of its bytes and rows 1 and 3 the high ones, so that
// the two rows of a walk are decoded together.
constexpr int pair_step(WeightFormat format) { return block_layout(format).weight_bits() == 4 ? 2 : 1; }
constexpr int64_t kDirectBlocks = 16;
constexpr int kSlabRows = 4, kSlabSegmentRows = kSlabRows, kSlabTokens = 3;
constexpr int64_t kSlabBytes = 24 << 10;
constexpr bool kFusedProducts = true;

MXFP4MOE_INLINE Vec load_vec(const Element* p) { return _mm256_loadu_ps(p); }
MXFP4MOE_INLINE Vec load_vec_once(const Element* p) { return load_vec(p); }
MXFP4MOE_INLINE void store_vec(Element* p, Vec v) { _mm256_storeu_ps(p, v); }
MXFP4MOE_INLINE Acc multiply_add(Acc acc, Vec w, Vec x) { return _mm256_fmadd_ps(w, x, acc); }
MXFP4MOE_INLINE Acc zero_acc() { return _mm256_setzero_ps(); }
MXFP4MOE_INLINE Acc load_acc(const float* p) { return _mm256_loadu_ps(p); }
MXFP4MOE_INLINE void store_acc(float* p, Acc a) { _mm256_storeu_ps(p, a); }
MXFP4MOE_INLINE Acc add_scaled(Acc sum, Acc acc, float scale) {
  return _mm256_fmadd_ps(acc, _mm256_set1_ps(scale), sum);
}
template <int kFactor>
MXFP4MOE_INLINE Acc scale_acc(Acc acc) {
  return kFactor == 1 ? acc : _mm256_mul_ps(acc, _mm256_set1_ps(kFactor));
}

// Sums the lanes of each of eight accumulators in a fixed tree.
inline __m256 sum_lanes8(const float* p) {
  __m256 a[4], b[2];
  for (int i = 0; i < 4; ++i) {
    const __m256 x = load_acc(p + 16 * i), y = load_acc(p + 16 * i + 8);
    a[i] = _mm256_add_ps(_mm256_unpacklo_ps(x, y), _mm256_unpackhi_ps(x, y));
  }
  for (int i = 0; i < 2; ++i) {
    const __m256d x = _mm256_castps_pd(a[2 * i]), y = _mm256_castps_pd(a[2 * i + 1]);
    b[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)), _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
  }
  return _mm256_add_ps(_mm256_permute2f128_ps(b[0], b[1], 0x20), _mm256_permute2f128_ps(b[0], b[1], 0x31));
}
inline F32 sum_lanes(const float* p) { return {sum_lanes8(p), sum_lanes8(p + 64)}; }

// These make float32 of the bfloat16 in the low and in the high halves of the lanes.
MXFP4MOE_INLINE Vec low_halves(__m256i words) { return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16)); }
MXFP4MOE_INLINE Vec high_halves(__m256i words) {
  return _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}

inline void widen_block(const uint16_t* from, Element* to) {
  for (int half = 0; half < 2; ++half) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 16 * half));
    const __m256i zero = _mm256_setzero_si256();
    store_vec(to + 16 * half, _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, words)));
    store_vec(to + 16 * half + 8, _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, words)));
  }
}
