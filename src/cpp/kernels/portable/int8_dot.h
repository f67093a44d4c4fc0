// A panel as sixteen lanes in plain C++, for kernels on activations of eight bits, and how its K-blocks become bytes.
// avx2/int8_vectors.h, int8_dot.h and int8_decode.h hold the same functions; rows stand in their order here.
// Included inside a kernel table's own namespace, after simd.h.

constexpr int kHalves = 1;
constexpr int kDirectTokens = 0, kTileSizes = 1;
constexpr int kByteOffset = 128;
constexpr bool kWideProducts = false;

struct Bytes {
  uint8_t v[kPanelRows * 4];  // [row][four k]
};
struct Ints {
  int32_t v[kPanelRows];
};
using Floats = F32;

MXFP4MOE_INLINE Bytes load_weights(const uint8_t* p) {
  Bytes r;
  std::memcpy(r.v, p, sizeof(r.v));
  return r;
}
MXFP4MOE_INLINE void store_weights(uint8_t* p, const Bytes& v) { std::memcpy(p, v.v, sizeof(v.v)); }
MXFP4MOE_INLINE Ints load_ints(const int32_t* p) {
  Ints r;
  std::memcpy(r.v, p, sizeof(r.v));
  return r;
}
MXFP4MOE_INLINE void store_ints(int32_t* p, const Ints& v) { std::memcpy(p, v.v, sizeof(v.v)); }
MXFP4MOE_INLINE Floats load_floats(const float* p) { return load(p); }
MXFP4MOE_INLINE void store_floats(float* p, const Floats& v) { store(p, v); }

MXFP4MOE_INLINE Bytes repeat(const int8_t* four) {
  Bytes r;
  for (int row = 0; row < kPanelRows; ++row) std::memcpy(r.v + 4 * row, four, 4);
  return r;
}
MXFP4MOE_INLINE Ints repeat_pair(int value) {
  Ints r;
  for (int row = 0; row < kPanelRows; ++row) r.v[row] = value;
  return r;
}

MXFP4MOE_INLINE Floats add_term(const Floats& sum, const Floats& integer, float x_scale, const Floats& w_scale) {
  return add(sum, mul(mul(integer, broadcast(x_scale)), w_scale));
}

template <bool kWide>
MXFP4MOE_INLINE Ints begin(const Ints& zeros, const int16_t (&sums)[2]) {
  Ints r;
  for (int row = 0; row < kPanelRows; ++row) r.v[row] = zeros.v[row] * (sums[0] + sums[1]);
  return r;
}
template <bool kWide>
MXFP4MOE_INLINE Ints dot(const Ints& acc, const Bytes& w, const Bytes& x) {
  Ints r;
  for (int row = 0; row < kPanelRows; ++row) {
    int32_t sum = acc.v[row];
    for (int k = 0; k < 4; ++k) sum += w.v[4 * row + k] * static_cast<int8_t>(x.v[4 * row + k]);
    r.v[row] = sum;
  }
  return r;
}
template <bool kWide>
MXFP4MOE_INLINE Floats to_floats(const Ints& acc) {
  Floats r;
  for (int row = 0; row < kPanelRows; ++row) r.v[row] = static_cast<float>(acc.v[row]);
  return r;
}

// Two codes to a byte, see packing/panels.h.
template <class Unit, class F>
MXFP4MOE_INLINE void decode_nibbles(const uint8_t* block, Unit unit, Bytes (&w)[2][1], F&& byte_of) {
  for (int i = 0; i < 2; ++i) {
#pragma GCC unroll 1
    for (int row = 0; row < kPanelRows; ++row) {
      for (int k = 0; k < 4; ++k) {
        const uint8_t byte = block[row / 4 * 64 + 2 * (8 * unit.value + 4 * i + k) + row % 4 / 2];
        w[i][0].v[4 * row + k] = byte_of(byte >> row % 2 * 4 & 15);
      }
    }
  }
}

template <class Unit>
MXFP4MOE_INLINE void decode_e2m1(const uint8_t* block, Unit unit, Bytes (&w)[2][1]) {
  constexpr uint8_t kTwicePlus12[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
  decode_nibbles(block, unit, w, [&](int code) { return kTwicePlus12[code]; });
}
template <class Unit>
MXFP4MOE_INLINE void decode_int4(const uint8_t* block, Unit unit, Bytes (&w)[2][1]) {
  decode_nibbles(block, unit, w, [](int code) { return static_cast<uint8_t>(code); });
}
template <class Unit>
MXFP4MOE_INLINE void decode_int8(const uint8_t* block, Unit unit, Bytes (&w)[2][1]) {
  for (int i = 0; i < 2; ++i) {
#pragma GCC unroll 1
    for (int row = 0; row < kPanelRows; ++row) {
      const uint8_t* codes = block + row / 2 * 64 + 16 * unit.value + row % 2 * 8 + 4 * i;
      for (int k = 0; k < 4; ++k) w[i][0].v[4 * row + k] = codes[k] ^ kByteOffset;
    }
  }
}

constexpr Fp8TableF32 kE4m3F32 = make_fp8_table_f32<e4m3_value>();

MXFP4MOE_INLINE void e8m0_scales(const uint8_t* scales, Floats (&out)[1]) {
  for (int row = 0; row < kPanelRows; ++row) out[0].v[row] = e8m0_to_f32(scales[row]);
}
template <int kHalf>
MXFP4MOE_INLINE void e4m3_scales(const uint8_t* scales, Floats (&out)[1]) {
  for (int row = 0; row < kPanelRows; ++row) out[0].v[row] = kE4m3F32.values[scales[2 * row + kHalf]];
}
MXFP4MOE_INLINE void float_scales(const float* scales, Floats (&out)[1]) { out[0] = load(scales); }
MXFP4MOE_INLINE void one_scale(float scale, Floats (&out)[1]) { out[0] = broadcast(scale); }

template <int kMask, int kOffset>
MXFP4MOE_INLINE void zero_pairs(const uint8_t* zeros, Ints (&out)[1]) {
  for (int row = 0; row < kPanelRows; ++row) {
    out[0].v[row] = -(static_cast<int8_t>(zeros[row] & kMask) + kOffset);
  }
}

MXFP4MOE_INLINE void order_rows(float*) {}
