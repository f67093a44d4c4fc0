// Decodes MXFP4 to float32 rows.
// Included inside a kernel table's own namespace, after avx2/dot.h.

constexpr E8m0TableF32 kE8m0F32 = make_e8m0_table_f32();

// Two byte shuffles give the high and the low bytes of the bfloat16 of 32 codes: of two rows, whose codes are the low
// (or the high) nibbles of the even and of the odd bytes. Unpacked, they stand side by side in 32-bit lanes, one row's
// value in the low half, the other's in the high half. Times the scale, a power of two, they are exact.
struct Mxfp4 {
  template <class F>
  static MXFP4MOE_INLINE void each_vec(const uint8_t* quad, const uint8_t* scales, F&& f) {
    unroll<2>([&](auto first) MXFP4MOE_INLINE_LAMBDA {
      __m256i words[kParts];
      unroll<2>([&](auto half) MXFP4MOE_INLINE_LAMBDA {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(quad + 32 * half.value));
        const __m256i nibbles = first.value == 0 ? bytes : _mm256_srli_epi16(bytes, 4);
        const __m256i codes = _mm256_and_si256(nibbles, _mm256_set1_epi8(15));
        const __m256i high = _mm256_shuffle_epi8(load_table(kHighBytes), codes);
        const __m256i low = _mm256_shuffle_epi8(load_table(kLowBytes), codes);
        words[2 * half.value] = _mm256_unpacklo_epi8(low, high);
        words[2 * half.value + 1] = _mm256_unpackhi_epi8(low, high);
      });
      const __m256 scale0 = _mm256_broadcast_ss(kE8m0F32.values + scales[first.value]);
      const __m256 scale1 = _mm256_broadcast_ss(kE8m0F32.values + scales[first.value + 2]);
      unroll<kParts>([&](auto part) MXFP4MOE_INLINE_LAMBDA {
        f(Index<first.value>{}, part, _mm256_mul_ps(low_halves(words[part.value]), scale0));
      });
      unroll<kParts>([&](auto part) MXFP4MOE_INLINE_LAMBDA {
        f(Index<first.value + 2>{}, part, _mm256_mul_ps(high_halves(words[part.value]), scale1));
      });
    });
  }

 private:
  // Of the bfloat16 of the sixteen codes.
  alignas(16) static constexpr uint8_t kHighBytes[16] = {0x00, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40,
                                                         0x80, 0xbf, 0xbf, 0xbf, 0xc0, 0xc0, 0xc0, 0xc0};
  alignas(16) static constexpr uint8_t kLowBytes[16] = {0x00, 0x00, 0x80, 0xc0, 0x00, 0x40, 0x80, 0xc0,
                                                        0x00, 0x00, 0x80, 0xc0, 0x00, 0x40, 0x80, 0xc0};
  static MXFP4MOE_INLINE __m256i load_table(const uint8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
  }
};
