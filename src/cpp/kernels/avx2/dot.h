// Dot products with float32 FMAs in 16 ymm registers. A K-block is four ymm of eight k: 0-3 and 8-11, 4-7 and 12-15,
// then the same 16 further, the order in which unpack instructions leave them.

using Element = float;
using Vec = __m256;
using Acc = __m256;
constexpr int kParts = 4, kVecElements = 8, kLanes = 8;

constexpr int kDirectTokens = 3;
constexpr int64_t kDirectLimit = 3;
constexpr int direct_rows(int) { return 4; }
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
    const __m256i zero = _mm256_setzero_si256();
    store_vec(to + 16 * half, _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, words)));
    store_vec(to + 16 * half + 8, _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, words)));
  }
}

constexpr E8m0TableF32 kE8m0F32 = make_e8m0_table_f32();

// Two pshufb give the high and low bytes of the bfloat16 of 32 codes: of two rows, whose codes are the low (or high)
// nibbles of the even and of the odd bytes. Unpacked they stand side by side in 32-bit lanes, one row's value in the
// low half, the other's in the high half. Times the scale, a power of two, they are exact.
struct Mxfp4 {
  // Words of rows (first, first + 2) in four ymm, in the order of the k.
  static MXFP4MOE_INLINE void row_pair(const __m256i (&codes)[2], __m256i (&words)[4]) {
    const __m256i high = _mm256_setr_epi8(0, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40, -128, -65, -65, -65, -64, -64, -64, -64,
                                          0, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40, -128, -65, -65, -65, -64, -64, -64, -64);
    const __m256i low = _mm256_setr_epi8(0, 0, -128, -64, 0, 0x40, -128, -64, 0, 0, -128, -64, 0, 0x40, -128, -64,
                                         0, 0, -128, -64, 0, 0x40, -128, -64, 0, 0, -128, -64, 0, 0x40, -128, -64);
    unroll<2>([&](auto v) MXFP4MOE_INLINE_LAMBDA {
      const __m256i h = _mm256_shuffle_epi8(high, codes[v.value]);
      const __m256i l = _mm256_shuffle_epi8(low, codes[v.value]);
      words[2 * v.value] = _mm256_unpacklo_epi8(l, h);
      words[2 * v.value + 1] = _mm256_unpackhi_epi8(l, h);
    });
  }

  template <class F>
  static MXFP4MOE_INLINE void each_row(const uint8_t* quad, const uint8_t* scales, F&& f) {
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    unroll<2>([&](auto first) MXFP4MOE_INLINE_LAMBDA {
      __m256i codes[2], words[4];
      unroll<2>([&](auto v) MXFP4MOE_INLINE_LAMBDA {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(quad + 32 * v.value));
        codes[v.value] = _mm256_and_si256(first.value == 0 ? bytes : _mm256_srli_epi16(bytes, 4), nibble);
      });
      row_pair(codes, words);
      const __m256 scale0 = _mm256_broadcast_ss(kE8m0F32.values + scales[first.value]);
      const __m256 scale1 = _mm256_broadcast_ss(kE8m0F32.values + scales[first.value + 2]);
      Vec row[kParts];
      unroll<kParts>([&](auto v) MXFP4MOE_INLINE_LAMBDA {
        row[v.value] = _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(words[v.value], 16)), scale0);
      });
      f(Index<first.value>{}, row);
      unroll<kParts>([&](auto v) MXFP4MOE_INLINE_LAMBDA {
        row[v.value] = _mm256_mul_ps(_mm256_castsi256_ps(_mm256_and_si256(words[v.value], upper)), scale1);
      });
      f(Index<first.value + 2>{}, row);
    });
  }
};
