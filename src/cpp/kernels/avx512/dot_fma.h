// Dot products with float32 FMAs, for CPUs without a fast vdpbf16ps. A K-block is two zmm: the even k, then the odd
// k, the order in which a quad's 32-bit lanes hold the codes. Registers: 4 rows x 6 tokens = 24 accumulators.
// Decoding competes with the FMAs for ports, so that from a few tokens on it is done once per panel into a slab in L1.
// generic/dot_gemm.h says what each constant means.

using Element = float;
using Vec = __m512;
using Acc = __m512;
constexpr int kParts = 2, kVecElements = 16, kLanes = 16;

constexpr int kRegisters = 32;
constexpr int kDirectTokens = 6;
constexpr int direct_tokens(WeightFormat) { return kDirectTokens; }
constexpr int64_t direct_limit(WeightFormat format) {
  return block_layout(format).weight_bits() == 8 ? kDirectTokens : 16;
}
constexpr int direct_rows(int tokens) { return tokens == 1 ? 16 : tokens <= 3 ? 8 : 4; }
constexpr int direct_segment_rows(int tokens) { return direct_rows(tokens); }
constexpr int64_t kDirectBlocks = 0;  // a walk is all of K
constexpr int kSlabRows = 4, kSlabSegmentRows = kSlabRows, kSlabTokens = 6;
constexpr int64_t kSlabBytes = 24 << 10;
constexpr bool kFusedProducts = true;

MXFP4MOE_INLINE Vec load_vec(const Element* p) { return _mm512_loadu_ps(p); }
MXFP4MOE_INLINE void store_vec(Element* p, Vec v) { _mm512_storeu_ps(p, v); }
MXFP4MOE_INLINE Acc multiply_add(Acc acc, Vec w, Vec x) { return _mm512_fmadd_ps(w, x, acc); }

// These make float32 of the bfloat16 in the low and in the high halves of the lanes.
MXFP4MOE_INLINE Vec low_halves(__m512i words) { return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16)); }
MXFP4MOE_INLINE Vec high_halves(__m512i words) {
  return _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

inline void widen_block(const uint16_t* from, Element* to) {
  const __m512i words = _mm512_loadu_si512(from);
  store_vec(to, low_halves(words));
  store_vec(to + 16, high_halves(words));
}
