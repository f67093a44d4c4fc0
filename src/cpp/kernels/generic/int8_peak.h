// The arithmetic side of the roofline, for kernels on activations of eight bits.
// Included inside a kernel table's own namespace, after int8_gemm.h.

// A microkernel with its operands at rest, on as many accumulators as the largest tile has. Returns the FLOPs done: two
// for each product of integers.
inline double peak_flops(int64_t iterations) {
  constexpr int kTokens = 1 << (kTileSizes - 1), kVector = kPanelRows / kHalves;
  alignas(64) uint8_t bytes[kPanelRows * 4] = {};
  alignas(64) int32_t ints[kPanelRows] = {};
  Ints acc[kTokens][kHalves];
  Bytes w[kHalves], x[kTokens];
  for (int h = 0; h < kHalves; ++h) w[h] = load_weights(bytes + h * kVector * 4);
  unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA {
    x[t.value] = repeat(reinterpret_cast<const int8_t*>(bytes));
    for (int h = 0; h < kHalves; ++h) acc[t.value][h] = load_ints(ints + h * kVector);
  });
  for (int64_t n = 0; n < iterations; ++n) {
    asm volatile("" : "+m"(w), "+m"(x));  // as if these changed: no product of the last round is kept
    unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA {
      unroll<kHalves>([&](auto h) MXFP4MOE_INLINE_LAMBDA {
        acc[t.value][h.value] = dot<false>(acc[t.value][h.value], w[h.value], x[t.value]);
      });
    });
  }
  unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA {
    for (int h = 0; h < kHalves; ++h) store_ints(ints + h * kVector, acc[t.value][h]);
    asm volatile("" : : "r"(ints) : "memory");
  });
  return 2.0 * kPanelRows * 4 * kTokens * static_cast<double>(iterations);
}
