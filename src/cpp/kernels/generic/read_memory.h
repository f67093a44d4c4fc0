// The memory side of the roofline: the fastest read.
// Included inside a kernel table's own namespace, after simd.h.

constexpr int64_t kReadPrefetchBytes = 4096;

// Reads every byte once. The checksum keeps the compiler from leaving the loads out.
inline uint64_t read_memory(const uint8_t* data, int64_t bytes) {
  U32 a[4] = {broadcast_u32(0), broadcast_u32(0), broadcast_u32(0), broadcast_u32(0)};
  int64_t i = 0;
  for (; i + 256 <= bytes; i += 256) {
    for (int j = 0; j < 4; ++j) {
      __builtin_prefetch(data + i + kReadPrefetchBytes + 64 * j);
      a[j] = bit_xor(a[j], load_u32(reinterpret_cast<const uint32_t*>(data + i + 64 * j)));
    }
  }
  uint64_t sum = reduce_max_u32(bit_xor(bit_xor(a[0], a[1]), bit_xor(a[2], a[3])));
  for (; i < bytes; ++i) sum += data[i];
  return sum;
}
