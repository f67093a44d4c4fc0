// Dot products with float32 FMAs in 16 ymm registers. A K-block is four ymm: even k of the first and of the second
// half, then the odd k, the order in which a quad's 32-bit lanes hold the codes.

using Element = float;
using Vec = __m256;
using Acc = __m256;
constexpr int kParts = 4, kVecElements = 8, kLanes = 8;

constexpr int kDirectTokens = 3;
constexpr int64_t kDirectLimit = 6;
constexpr int direct_rows(int tokens) { return tokens == 1 ? 8 : 4; }
constexpr int kSlabRows = 4, kSlabTokens = 3;
constexpr int64_t kSlabBytes = 24 << 10;

MXFP4MOE_INLINE Vec load_vec(const Element* p) { return _mm256_loadu_ps(p); }
MXFP4MOE_INLINE void store_vec(Element* p, Vec v) { _mm256_storeu_ps(p, v); }
MXFP4MOE_INLINE Acc multiply_add(Acc acc, Vec w, Vec x) { return _mm256_fmadd_ps(w, x, acc); }
MXFP4MOE_INLINE Acc zero_acc() { return _mm256_setzero_ps(); }
MXFP4MOE_INLINE Acc load_acc(const float* p) { return _mm256_loadu_ps(p); }
MXFP4MOE_INLINE void store_acc(float* p, Acc a) { _mm256_storeu_ps(p, a); }

// The sums of the lanes of eight accumulators, in a fixed tree.
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

inline void widen_block(const uint16_t* from, Element* to) {
  for (int half = 0; half < 2; ++half) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 16 * half));
    const __m256i odd = _mm256_and_si256(words, _mm256_set1_epi32(static_cast<int>(0xffff0000u)));
    store_vec(to + 8 * half, _mm256_castsi256_ps(_mm256_slli_epi32(words, 16)));
    store_vec(to + 16 + 8 * half, _mm256_castsi256_ps(odd));
  }
}

constexpr Mxfp4TableF32 kMxfp4F32 = make_mxfp4_table_f32();

// vpermps looks up the eight magnitudes by the three low index bits of a lane; the code's top bit becomes the sign.
struct Mxfp4 {
  struct Quad {
    __m256i words[2];
  };
  static MXFP4MOE_INLINE Quad load_quad(const uint8_t* p) {
    return {{_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
             _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))}};
  }
  template <int I>
  static MXFP4MOE_INLINE void decode(const Quad& q, uint8_t scale, Vec* row) {
    const __m256 magnitudes = _mm256_load_ps(reinterpret_cast<const float*>(kMxfp4F32.row[scale]));
    const __m256 sign = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0x80000000u)));
    unroll<4>([&](auto part) MXFP4MOE_INLINE_LAMBDA {
      constexpr int nibble = I + (part.value >= 2 ? 4 : 0);
      const __m256i words = q.words[part.value & 1];
      const __m256 magnitude = _mm256_permutevar8x32_ps(magnitudes, _mm256_srli_epi32(words, 4 * nibble));
      const __m256 top = _mm256_castsi256_ps(_mm256_slli_epi32(words, 28 - 4 * nibble));
      row[part.value] = _mm256_xor_ps(magnitude, _mm256_and_ps(top, sign));
    });
  }
};
