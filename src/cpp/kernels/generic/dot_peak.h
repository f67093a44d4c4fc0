// The arithmetic side of the roofline, for kernels of dot products.
// Included inside a kernel table's own namespace, after dot_gemm.h.

// A microkernel with its operands at rest. It has as many independent accumulators as hide the latency of a product,
// and each has its own pair of operands, so that no product can be computed once for several. Returns the FLOPs done.
inline double peak_flops(int64_t iterations) {
  constexpr int kRows = kLanes == 16 ? 4 : 3, kTokens = kLanes == 16 ? 6 : 4;
  Acc acc[kRows][kTokens];
  Element zeros[kVecElements] = {};
  Vec w[kRows], x[kTokens];
  unroll<kRows>([&](auto r) MXFP4MOE_INLINE_LAMBDA { w[r.value] = load_vec(zeros); });
  unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA { x[t.value] = load_vec(zeros); });
  unroll<kRows>([&](auto r) MXFP4MOE_INLINE_LAMBDA {
    unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA { acc[r.value][t.value] = zero_acc(); });
  });
  for (int64_t n = 0; n < iterations; ++n) {
    asm volatile(""
                 : "+m"(w),
                   "+m"(x));  // the compiler must assume that these changed, so it keeps no product from the last round
    unroll<kRows>([&](auto r) MXFP4MOE_INLINE_LAMBDA {
      unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA {
        acc[r.value][t.value] = multiply_add(acc[r.value][t.value], w[r.value], x[t.value]);
      });
    });
  }
  float lanes[kRows * kTokens * kLanes];
  unroll<kRows>([&](auto r) MXFP4MOE_INLINE_LAMBDA {
    unroll<kTokens>([&](auto t) MXFP4MOE_INLINE_LAMBDA {
      store_acc(lanes + (r.value * kTokens + t.value) * kLanes, acc[r.value][t.value]);
    });
  });
  asm volatile("" : : "r"(lanes) : "memory");
  return 2.0 * kVecElements * kRows * kTokens * static_cast<double>(iterations);
}
