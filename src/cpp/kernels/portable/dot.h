// Dot products in four-lane vectors, an extension of GCC and Clang that exists for every target. Eight k are two
// vectors, one of the even k and one of the odd k, as the halves of the 32-bit lanes of their words hold them.
// generic/dot_gemm.h says what each constant means.

using Element = float;
typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));
typedef int16_t Short8 __attribute__((vector_size(16)));
struct Vec {
  Float4 v[2];
};
using Acc = Vec;
constexpr int kParts = 4, kVecElements = 8, kLanes = 8;

constexpr int kRegisters = 16;
constexpr int kDirectTokens = 1;
constexpr int direct_tokens(WeightFormat) { return kDirectTokens; }
constexpr int64_t direct_limit(WeightFormat) { return kDirectTokens; }
constexpr int direct_rows(int) { return 4; }
constexpr int direct_segment_rows(int tokens) { return direct_rows(tokens); }
constexpr int64_t kDirectBlocks = 0;  // a walk is all of K
constexpr int kSlabRows = 2, kSlabSegmentRows = kSlabRows, kSlabTokens = 3;
constexpr int64_t kSlabBytes = 16 << 10;
constexpr bool kFusedProducts = false;

MXFP4MOE_INLINE Vec load_vec(const Element* p) {
  Vec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
MXFP4MOE_INLINE Vec load_vec_once(const Element* p) { return load_vec(p); }
MXFP4MOE_INLINE void store_vec(Element* p, const Vec& v) { std::memcpy(p, &v, sizeof(v)); }
MXFP4MOE_INLINE Acc multiply_add(const Acc& acc, const Vec& w, const Vec& x) {
  return {{acc.v[0] + w.v[0] * x.v[0], acc.v[1] + w.v[1] * x.v[1]}};
}
MXFP4MOE_INLINE Acc zero_acc() { return {{Float4{0, 0, 0, 0}, Float4{0, 0, 0, 0}}}; }
MXFP4MOE_INLINE Acc load_acc(const float* p) { return load_vec(p); }
MXFP4MOE_INLINE void store_acc(float* p, const Acc& a) { store_vec(p, a); }
MXFP4MOE_INLINE Acc add_scaled(const Acc& sum, const Acc& acc, float scale) {
  return {{sum.v[0] + acc.v[0] * scale, sum.v[1] + acc.v[1] * scale}};
}
template <int kFactor>
MXFP4MOE_INLINE Acc scale_acc(const Acc& acc) {
  return acc;
}

inline F32 sum_lanes(const float* p) {
  F32 r;
  for (int i = 0; i < kPanelRows; ++i, p += kLanes) {
    r.v[i] = ((p[0] + p[4]) + (p[1] + p[5])) + ((p[2] + p[6]) + (p[3] + p[7]));
  }
  return r;
}

inline void widen_block(const uint16_t* from, Element* to) {
  for (int i = 0; i < kBlockK; i += 8) {
    for (int j = 0; j < 4; ++j) {
      to[i + j] = bf16_to_f32(from[i + 2 * j]);
      to[i + 4 + j] = bf16_to_f32(from[i + 2 * j + 1]);
    }
  }
}
