// The arithmetic's side of the roofline, for kernels of dot products.
// Included inside a kernel table's own namespace, after dot_gemm.h.

// Independent multiply-adds on registers, as many as hide the latency. Returns the FLOPs done.
inline double peak_flops(int64_t iterations) {
  constexpr int kChains = kLanes == 16 ? 24 : 12;
  Acc acc[kChains];
  Element one[kVecElements];
  for (auto& e : one) e = 0;
  Vec w = load_vec(one), x = load_vec(one);
  unroll<kChains>([&](auto i) MXFP4MOE_INLINE_LAMBDA { acc[i.value] = zero_acc(); });
  for (int64_t n = 0; n < iterations; ++n) {
    unroll<kChains>([&](auto i) MXFP4MOE_INLINE_LAMBDA { acc[i.value] = multiply_add(acc[i.value], w, x); });
    asm volatile("" : "+m"(w), "+m"(x));  // the operands may have changed: nothing can be hoisted or merged
  }
  float lanes[kChains * kLanes];
  unroll<kChains>([&](auto i) MXFP4MOE_INLINE_LAMBDA { store_acc(lanes + i.value * kLanes, acc[i.value]); });
  asm volatile("" : : "r"(lanes) : "memory");
  return 2.0 * kVecElements * kChains * static_cast<double>(iterations);
}
