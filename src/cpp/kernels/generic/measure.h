// What a roofline is measured with: the fastest read and the fastest arithmetic of this kernel table.
// Included inside a kernel table's own namespace, after dot_gemm.h.

// Reads every byte once; the checksum keeps the loads alive.
inline uint64_t read_memory(const uint8_t* data, int64_t bytes) {
  U32 a[4] = {broadcast_u32(0), broadcast_u32(0), broadcast_u32(0), broadcast_u32(0)};
  int64_t i = 0;
  for (; i + 256 <= bytes; i += 256) {
    for (int j = 0; j < 4; ++j) {
      __builtin_prefetch(data + i + kPrefetchBytes + 64 * j);
      a[j] = bit_xor(a[j], load_u32(reinterpret_cast<const uint32_t*>(data + i + 64 * j)));
    }
  }
  uint64_t sum = reduce_max_u32(bit_xor(bit_xor(a[0], a[1]), bit_xor(a[2], a[3])));
  for (; i < bytes; ++i) sum += data[i];
  return sum;
}

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
