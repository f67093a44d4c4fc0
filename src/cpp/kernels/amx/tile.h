// The tile instructions. Tile numbers are template arguments, because they are part of the instruction. The functions
// are inline assembly, because the intrinsics of GCC 12 neither order tile loads after the stores that fill their
// memory nor tell the compiler that the whole 64-byte configuration is read. tile_model.h has the same functions in
// plain C++. Included inside a kernel table's own namespace.

inline void tile_configure(const TileConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config)); }
inline void tile_release() { asm volatile("tilerelease" : : : "memory"); }

template <int T>
MXFP4MOE_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(T));
}
template <int T>
MXFP4MOE_INLINE void tile_load(const void* p, int64_t stride) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(T), "r"(p), "r"(stride) : "memory");
}
// Loads data that a loop over panels finds in L2 and that should not displace the weights in L1.
template <int T>
MXFP4MOE_INLINE void tile_stream_load(const void* p, int64_t stride) {
  asm volatile("tileloaddt1 (%1,%2,1), %%tmm%c0" : : "i"(T), "r"(p), "r"(stride) : "memory");
}
template <int T>
MXFP4MOE_INLINE void tile_store(void* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(T), "r"(p), "r"(stride) : "memory");
}
// Computes C += A x B over pairs of bfloat16.
template <int C, int A, int B>
MXFP4MOE_INLINE void tile_dot() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}
