// The tile instructions in plain C++, so that packing and schedule of the AMX kernels are tested on any machine. The
// bits are those that TDPBF16PS computes on hardware: for each element two chains of multiply-adds start from zero,
// over even and over odd k; the two are added, then C is added; inputs and results below 2^-126 count as zero. (A
// product of two bfloat16 is exact in float32, so that a multiplication and an addition round as a fused multiply-add
// does.) The functions are not inlined, because inlined into every loop they take the compiler a minute. Included
// inside a kernel table's own namespace.

#define MXFP4MOE_TILE __attribute__((noinline))
// The kernels are compiled for size, but this function takes nearly all the time.
#if defined(__GNUC__) && !defined(__clang__)
#define MXFP4MOE_FAST __attribute__((optimize("O3")))
#else
#define MXFP4MOE_FAST
#endif

struct TileState {
  TileConfig config;
  alignas(64) uint8_t data[8][16][64];
};
thread_local TileState tile_state;

inline float flush_subnormal(float x) {
  const uint32_t u = f32_bits(x);
  return f32_from_bits((u & 0x7f800000u) == 0 ? u & 0x80000000u : u);
}

inline void tile_configure(const TileConfig& config) {
  tile_state.config = config;
  std::memset(tile_state.data, 0, sizeof(tile_state.data));
}
inline void tile_release() { std::memset(&tile_state, 0, sizeof(tile_state)); }

template <int T>
MXFP4MOE_TILE void tile_zero() {
  std::memset(tile_state.data[T], 0, sizeof(tile_state.data[T]));
}
template <int T>
MXFP4MOE_TILE void tile_load(const void* p, int64_t stride) {
  tile_zero<T>();
  for (int r = 0; r < tile_state.config.rows[T]; ++r) {
    std::memcpy(tile_state.data[T][r], static_cast<const uint8_t*>(p) + r * stride, tile_state.config.row_bytes[T]);
  }
}
template <int T>
MXFP4MOE_TILE void tile_stream_load(const void* p, int64_t stride) {
  tile_load<T>(p, stride);
}
template <int T>
MXFP4MOE_TILE void tile_store(void* p, int64_t stride) {
  for (int r = 0; r < tile_state.config.rows[T]; ++r) {
    std::memcpy(static_cast<uint8_t*>(p) + r * stride, tile_state.data[T][r], tile_state.config.row_bytes[T]);
  }
}
MXFP4MOE_TILE MXFP4MOE_FAST void add_tile_product(int C, int A, int B) {
  const TileConfig& config = tile_state.config;
  const int pairs = config.row_bytes[A] / 4;
  const int columns = config.row_bytes[C] / 4;
  for (int r = 0; r < config.rows[C]; ++r) {
    float even[16] = {}, odd[16] = {}, c[16];
    uint16_t a[32], b[32];
    std::memcpy(a, tile_state.data[A][r], 64);
    for (int p = 0; p < pairs; ++p) {
      std::memcpy(b, tile_state.data[B][p], 64);
      const float a0 = flush_subnormal(bf16_to_f32(a[2 * p])), a1 = flush_subnormal(bf16_to_f32(a[2 * p + 1]));
      for (int n = 0; n < columns; ++n) {
        even[n] = flush_subnormal(even[n] + a0 * flush_subnormal(bf16_to_f32(b[2 * n])));
        odd[n] = flush_subnormal(odd[n] + a1 * flush_subnormal(bf16_to_f32(b[2 * n + 1])));
      }
    }
    std::memcpy(c, tile_state.data[C][r], 64);
    for (int n = 0; n < columns; ++n) c[n] = flush_subnormal(c[n] + flush_subnormal(even[n] + odd[n]));
    std::memcpy(tile_state.data[C][r], c, 64);
  }
}
template <int C, int A, int B>
void tile_dot() {
  add_tile_product(C, A, B);
}
