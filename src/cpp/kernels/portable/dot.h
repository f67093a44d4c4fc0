// Dot products in four-lane vectors, a GCC and Clang extension that every target has. Eight k are two vectors, the
// even ones and the odd ones, as the halves of 32-bit lanes of words hold them.

using Element = float;
typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));
typedef int16_t Short8 __attribute__((vector_size(16)));
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
  for (int i = 0; i < kBlockK; i += 8) {
    for (int j = 0; j < 4; ++j) {
      to[i + j] = bf16_to_f32(from[i + 2 * j]);
      to[i + 4 + j] = bf16_to_f32(from[i + 2 * j + 1]);
    }
  }
}

constexpr E8m0TableF32 kE8m0F32 = make_e8m0_table_f32();

// Arithmetic instead of table look-ups, which no baseline can do for several lanes: the magnitudes 0..7 are the
// values 0, 1, 2, 3, 4, 6, 8, 12 in halves, and comparisons give -1 where true.
struct Mxfp4 {
  template <class F>
  static MXFP4MOE_INLINE void each_row(const uint8_t* quad, const uint8_t* scales, F&& f) {
    unroll<4>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
      const float half_scale = 0.5f * kE8m0F32.values[scales[i.value]];
      Vec row[kParts];
      unroll<kParts>([&](auto part) MXFP4MOE_INLINE_LAMBDA {
        Short8 words;
        std::memcpy(&words, quad + 16 * part.value, sizeof(words));
        const Short8 m = (words >> (4 * i.value)) & 7;
        const Short8 halves = m - (m > 4) - (m > 5) - (m > 6) * 3;
        const Short8 sign = (words << (12 - 4 * i.value)) >> 15;
        const Short8 value = (halves ^ sign) - sign;
        Int4 lanes;
        std::memcpy(&lanes, &value, sizeof(lanes));
        row[part.value].v[0] = __builtin_convertvector((lanes << 16) >> 16, Float4) * half_scale;
        row[part.value].v[1] = __builtin_convertvector(lanes >> 16, Float4) * half_scale;
      });
      f(i, row);
    });
  }
};
