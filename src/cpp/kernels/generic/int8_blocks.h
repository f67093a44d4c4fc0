// Activations rounded to eight bits. Each operation rounds once, so that all instruction sets give the same bits.
// Included inside a kernel table's own namespace, after math.h.

// A K-block of one token. A value is scale times an integer of -127 to 127.
struct QuantizedBlock {
  int8_t values[kBlockK];
  // The sums of the values, from which zero points are taken: of all k, of the first and of the last sixteen. Each is
  // two numbers, of k % 4 < 2 and of the others, as the products of bytes are summed in pairs.
  int16_t sums[3][2];
  float scale;  // NaN if a value of the block is NaN or infinite
};

inline void sum_values(QuantizedBlock* block) {
  for (int half = 0; half < 2; ++half) {
    for (int parity = 0; parity < 2; ++parity) {
      int sum = 0;
      for (int k = 16 * half + 2 * parity; k < 16 * (half + 1); k += 4) sum += block->values[k] + block->values[k + 1];
      block->sums[1 + half][parity] = static_cast<int16_t>(sum);
    }
  }
  for (int parity = 0; parity < 2; ++parity) {
    block->sums[0][parity] = static_cast<int16_t>(block->sums[1][parity] + block->sums[2][parity]);
  }
}

// Rounds 32 values: scale = amax / 127, integer = value / scale to nearest even, both quotients rounded once. Where
// amax is so small that the scale is 0, the integers are 0, and where it is subnormal, they are clamped.
inline void quantize_block(const float* values, QuantizedBlock* block) {
  const F32 x[2] = {load(values), load(values + 16)};
  const uint32_t amax = reduce_max_u32(max_u32(bits(abs(x[0])), bits(abs(x[1]))));
  constexpr uint32_t kInfinity = 0x7f800000u;
  const float scale = f32_from_bits(amax) / 127.0f;
  if (amax >= kInfinity || scale == 0.0f) {
    std::memset(block, 0, sizeof(QuantizedBlock));
    if (amax >= kInfinity) block->scale = f32_from_bits(0x7fc00000u);
    return;
  }
  block->scale = scale;
  for (int i = 0; i < 2; ++i) {
    const F32 quotient = div(x[i], broadcast(scale));
    const F32 clamped = max(broadcast(-127.0f), min(broadcast(127.0f), quotient));
    // Adding 1.5 * 2^23 leaves the rounded integer in the low bits.
    store_bytes(reinterpret_cast<uint8_t*>(block->values + 16 * i), bits(add(clamped, broadcast(kIntegerMagic))));
  }
  sum_values(block);
}

// Rounds a row of `n` values; what is missing in the last K-block counts as 0.
inline void quantize_row(const uint8_t* row, DType dtype, int64_t n, QuantizedBlock* blocks) {
  float values[kBlockK];
  for (int64_t k = 0; k < n; k += kBlockK) {
    const int count = n - k < kBlockK ? static_cast<int>(n - k) : kBlockK;
    if (count < kBlockK) std::memset(values, 0, sizeof(values));
    if (dtype == DType::kFloat32) {
      std::memcpy(values, row + k * 4, static_cast<size_t>(count) * 4);
    } else {
      const uint16_t* from = reinterpret_cast<const uint16_t*>(row) + k;
      const bool is_bf16 = dtype == DType::kBFloat16;
      if (count == kBlockK) {
        for (int i = 0; i < kBlockK; i += 16) store(values + i, is_bf16 ? load_bf16(from + i) : load_f16(from + i));
      } else {
        for (int i = 0; i < count; ++i) values[i] = is_bf16 ? bf16_to_f32(from[i]) : f16_to_f32(from[i]);
      }
    }
    quantize_block(values, blocks + k / kBlockK);
  }
}
