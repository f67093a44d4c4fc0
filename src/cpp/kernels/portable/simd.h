// Sixteen float32 lanes in plain C++, in loops that a compiler can vectorize for any target.
// avx2/simd.h and avx512/simd.h hold the same functions; generic code is written against them.
// This header is included inside the namespace of one kernel table; it must not be included anywhere else.

struct F32 {
  float v[16];
};
struct U32 {
  uint32_t v[16];
};

// Each operation takes one line.
// clang-format off
#define MXFP4MOE_LANES(expr)      \
  for (int i = 0; i < 16; ++i) {  \
    r.v[i] = (expr);              \
  }                               \
  return r

inline F32 load(const float* p) { F32 r; std::memcpy(r.v, p, 64); return r; }
inline void store(float* p, F32 a) { std::memcpy(p, a.v, 64); }
inline F32 broadcast(float a) { F32 r; MXFP4MOE_LANES(a); }
inline F32 add(F32 a, F32 b) { F32 r; MXFP4MOE_LANES(a.v[i] + b.v[i]); }
inline F32 sub(F32 a, F32 b) { F32 r; MXFP4MOE_LANES(a.v[i] - b.v[i]); }
inline F32 mul(F32 a, F32 b) { F32 r; MXFP4MOE_LANES(a.v[i] * b.v[i]); }
inline F32 div(F32 a, F32 b) { F32 r; MXFP4MOE_LANES(a.v[i] / b.v[i]); }
// a * b + c with one rounding or two. It is used for approximations alone, never where the contract counts roundings.
inline F32 mul_add(F32 a, F32 b, F32 c) { F32 r; MXFP4MOE_LANES(a.v[i] * b.v[i] + c.v[i]); }
// If one operand is NaN the second one is returned, so that min(limit, x) keeps a NaN in x.
inline F32 min(F32 a, F32 b) { F32 r; MXFP4MOE_LANES(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
inline F32 max(F32 a, F32 b) { F32 r; MXFP4MOE_LANES(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
// Selects a < b ? x : y in each lane.
inline F32 select_less(F32 a, F32 b, F32 x, F32 y) { F32 r; MXFP4MOE_LANES(a.v[i] < b.v[i] ? x.v[i] : y.v[i]); }
// Rounds to the nearest integer, ties to even, for |a| < 2^22: adding 1.5 * 2^23 leaves the integer in the low bits.
inline F32 round_even(F32 a) { F32 r; MXFP4MOE_LANES((a.v[i] + 12582912.0f) - 12582912.0f); }

inline U32 bits(F32 a) { U32 r; std::memcpy(r.v, a.v, 64); return r; }
inline F32 from_bits(U32 a) { F32 r; std::memcpy(r.v, a.v, 64); return r; }
inline U32 broadcast_u32(uint32_t a) { U32 r; MXFP4MOE_LANES(a); }
inline U32 load_u32(const uint32_t* p) { U32 r; std::memcpy(r.v, p, 64); return r; }
inline U32 bit_and(U32 a, U32 b) { U32 r; MXFP4MOE_LANES(a.v[i] & b.v[i]); }
inline U32 bit_or(U32 a, U32 b) { U32 r; MXFP4MOE_LANES(a.v[i] | b.v[i]); }
inline U32 bit_xor(U32 a, U32 b) { U32 r; MXFP4MOE_LANES(a.v[i] ^ b.v[i]); }
inline U32 add_u32(U32 a, U32 b) { U32 r; MXFP4MOE_LANES(a.v[i] + b.v[i]); }
inline U32 sub_u32(U32 a, U32 b) { U32 r; MXFP4MOE_LANES(a.v[i] - b.v[i]); }
inline U32 max_u32(U32 a, U32 b) { U32 r; MXFP4MOE_LANES(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
template <int N>
inline U32 shift_left(U32 a) { U32 r; MXFP4MOE_LANES(a.v[i] << N); }
template <int N>
inline U32 shift_right(U32 a) { U32 r; MXFP4MOE_LANES(a.v[i] >> N); }
inline uint32_t reduce_max_u32(U32 a) {
  uint32_t m = 0;
  for (int i = 0; i < 16; ++i) m = a.v[i] > m ? a.v[i] : m;
  return m;
}

inline F32 load_bf16(const uint16_t* p) {
  U32 r;
  for (int i = 0; i < 16; ++i) r.v[i] = static_cast<uint32_t>(p[i]) << 16;
  return from_bits(r);
}
// Rounds each lane to bfloat16, which stands in its low half: to nearest even; NaN stays NaN and becomes quiet.
inline U32 round_bf16(F32 a) {
  const U32 u = bits(a);
  U32 r;
  MXFP4MOE_LANES((u.v[i] & 0x7fffffffu) > 0x7f800000u ? (u.v[i] >> 16) | 0x40u
                                                      : (u.v[i] + 0x7fffu + ((u.v[i] >> 16) & 1u)) >> 16);
}
inline void store_bf16(uint16_t* p, F32 a) {
  const U32 u = round_bf16(a);
  for (int i = 0; i < 16; ++i) p[i] = static_cast<uint16_t>(u.v[i]);
}
inline F32 load_f16(const uint16_t* p) {
  F32 r;
  MXFP4MOE_LANES(f16_to_f32(p[i]));
}
inline void store_f16(uint16_t* p, F32 a) {
  for (int i = 0; i < 16; ++i) p[i] = f32_to_f16(a.v[i]);
}

// 4-bit codes stand two to a byte, that of the even lane in the low nibble. Storing takes the low nibbles of the lanes and
// ignores the bits above.
inline U32 load_nibbles(const uint8_t* p) { U32 r; MXFP4MOE_LANES((p[i / 2] >> (i % 2 * 4)) & 15u); }
inline void store_nibbles(uint8_t* p, U32 a) {
  for (int i = 0; i < 8; ++i) p[i] = static_cast<uint8_t>((a.v[2 * i] & 15u) | a.v[2 * i + 1] << 4);
}
// Stores the low bytes of the lanes and ignores the bits above.
inline void store_bytes(uint8_t* p, U32 a) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<uint8_t>(a.v[i]);
}
// Returns table[index], 0 <= index < 16.
inline F32 lookup(const float* table, U32 index) { F32 r; MXFP4MOE_LANES(table[index.v[i]]); }

// clang-format on
#undef MXFP4MOE_LANES
