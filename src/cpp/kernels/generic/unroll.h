// Loops at compile time: unroll<N>(f) calls f(Index<0>{}), ..., f(Index<N - 1>{}) inline, so that the counter can be a
// template argument or an immediate of an instruction. Included inside a kernel table's own namespace.

#define MXFP4MOE_INLINE inline __attribute__((always_inline))
#define MXFP4MOE_NOINLINE __attribute__((noinline))
#define MXFP4MOE_INLINE_LAMBDA __attribute__((always_inline))

template <int I>
struct Index {
  static constexpr int value = I;
};

template <int N, int I = 0, class F>
MXFP4MOE_INLINE void unroll(F&& f) {
  if constexpr (I < N) {
    f(Index<I>{});
    unroll<N, I + 1>(f);
  }
}
