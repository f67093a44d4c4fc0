// What the tile kernels need beside simd.h, in plain C++. See avx512/tile_lanes.h.
// Included inside a kernel table's own namespace, after portable/simd.h.

inline void store_first(uint32_t* p, U32 a, int64_t n) { std::memcpy(p, a.v, static_cast<size_t>(n) * 4); }
inline F32 load_first(const float* p, int64_t n) {
  F32 r = broadcast(0.0f);
  std::memcpy(r.v, p, static_cast<size_t>(n) * 4);
  return r;
}

inline void transpose16(U32 r[16]) {
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < i; ++j) {
      const uint32_t t = r[i].v[j];
      r[i].v[j] = r[j].v[i];
      r[j].v[i] = t;
    }
  }
}

// 32 k of a row as bfloat16.
struct Vec {
  uint16_t v[32];
};
inline void store_vec(uint16_t* p, const Vec& a) { std::memcpy(p, a.v, 64); }
