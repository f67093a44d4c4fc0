// Dot products in plain C++: eight lanes in two four-float vectors (a GCC and Clang extension that every target
// has), natural order of k.

using Element = float;
typedef float Float4 __attribute__((vector_size(16)));
struct Vec {
  Float4 v[2];
};
using Acc = Vec;
constexpr int kParts = 4, kVecElements = 8, kLanes = 8;

constexpr int kDirectTokens = 1;
constexpr int64_t kDirectLimit = 1;
constexpr int direct_rows(int) { return 4; }
constexpr int kSlabRows = 2, kSlabTokens = 3;
constexpr int64_t kSlabBytes = 16 << 10;

MXFP4MOE_INLINE Vec load_vec(const Element* p) {
  Vec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
MXFP4MOE_INLINE void store_vec(Element* p, const Vec& v) { std::memcpy(p, &v, sizeof(v)); }
MXFP4MOE_INLINE Acc multiply_add(const Acc& acc, const Vec& w, const Vec& x) {
  return {{acc.v[0] + w.v[0] * x.v[0], acc.v[1] + w.v[1] * x.v[1]}};
}
MXFP4MOE_INLINE Acc zero_acc() { return {{Float4{0, 0, 0, 0}, Float4{0, 0, 0, 0}}}; }
MXFP4MOE_INLINE Acc load_acc(const float* p) { return load_vec(p); }
MXFP4MOE_INLINE void store_acc(float* p, const Acc& a) { store_vec(p, a); }

inline F32 sum_lanes(const float* p) {
  F32 r;
  for (int i = 0; i < kPanelRows; ++i, p += kLanes) {
    r.v[i] = ((p[0] + p[4]) + (p[1] + p[5])) + ((p[2] + p[6]) + (p[3] + p[7]));
  }
  return r;
}

inline void widen_block(const uint16_t* from, Element* to) {
  for (int i = 0; i < kBlockK; ++i) to[i] = bf16_to_f32(from[i]);
}

constexpr Mxfp4TableF32 kMxfp4F32 = make_mxfp4_table_f32();

struct Mxfp4 {
  using Quad = const uint8_t*;
  static MXFP4MOE_INLINE Quad load_quad(const uint8_t* p) { return p; }
  template <int I>
  static MXFP4MOE_INLINE void decode(Quad q, uint8_t scale, Vec* row) {
    const uint32_t* table = kMxfp4F32.row[scale];
    uint32_t values[kBlockK];
    for (int k = 0; k < kBlockK; ++k) values[k] = table[(q[2 * k + I / 2] >> (4 * (I & 1))) & 15];
    std::memcpy(row, values, sizeof(values));
  }
};
