// Dot products with vdpbf16ps: one zmm holds 32 k of a row as bfloat16, and a lane of an accumulator sums 2 of each 32
// k. Registers: 4 rows x 6 tokens = 24 accumulators, 6 token vectors, 1 row, 1 quad = 32. Decoding four rows takes four
// vpermw and three shifts, on other ports than the 24 dot products (on Zen 4, ports 1 and 2 against 0 and 1). So it
// hides behind them, and a panel is decoded anew for each tile of tokens: a token and K-block take 16.9 cycles, 16 at
// best. generic/dot_gemm.h says what each constant means.

using Element = uint16_t;
using Vec = __m512i;
using Acc = __m512;
constexpr int kParts = 1, kVecElements = 32, kLanes = 16;

constexpr int kRegisters = 32;
constexpr int kDirectTokens = 6;
constexpr int direct_tokens(WeightFormat) { return kDirectTokens; }
// Decoding eight bits takes longer than the dot products can hide.
constexpr int64_t direct_limit(WeightFormat format) {
  return block_layout(format).weight_bits() == 8 ? kDirectTokens : INT64_MAX;
}
constexpr int direct_rows(int tokens) { return tokens == 1 ? 16 : tokens <= 3 ? 8 : 4; }
// Half as many rows leave registers for the sums, because a store of a zmm takes as long as two dot products. For one
// token memory is the limit, and a single walk over the panel reads it best.
constexpr int direct_segment_rows(int tokens) { return tokens == 1 ? 16 : tokens <= 3 ? 4 : 2; }
constexpr int pair_step(WeightFormat) { return 1; }
constexpr int64_t kDirectBlocks = 0;  // a walk is all of K
constexpr int kSlabRows = 4, kSlabSegmentRows = 2, kSlabTokens = 6;
constexpr int64_t kSlabBytes = 24 << 10;
constexpr bool kFusedProducts = true;

MXFP4MOE_INLINE Vec load_vec(const Element* p) { return _mm512_loadu_si512(p); }
MXFP4MOE_INLINE void store_vec(Element* p, Vec v) { _mm512_storeu_si512(p, v); }
MXFP4MOE_INLINE Acc multiply_add(Acc acc, Vec w, Vec x) { return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)x); }
// The shift is not vpmulhuw, as it is for tiles: that shares a port with the dot products and made them 13 % slower.
template <int N>
MXFP4MOE_INLINE __m512i shift_words(__m512i v) {
  return N == 0 ? v : _mm512_srli_epi16(v, N);
}
inline void widen_block(const uint16_t*, Element*) {}
