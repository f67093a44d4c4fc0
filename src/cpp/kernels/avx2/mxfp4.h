// Decodes MXFP4 to float32 rows.
// Included inside a kernel table's own namespace, after avx2/dot.h.

// The e8m0 bytes with which every value of e2m1 is zero or a normal bfloat16, and the largest of them.
constexpr int kLeastOrdinaryScale = 2, kMostOrdinaryScale = 252;

// What a scale takes off the exponents of the largest ordinary one, in the low and in the high half of a lane.
struct ExponentTable {
  uint32_t low[256], high[256];
};
constexpr ExponentTable make_exponent_table() {
  ExponentTable t{};
  for (uint32_t s = 0; s <= kMostOrdinaryScale; ++s) {
    t.low[s] = (kMostOrdinaryScale - s) << 7;
    t.high[s] = t.low[s] << 16;
  }
  return t;
}
constexpr ExponentTable kExponents = make_exponent_table();
constexpr E8m0TableF32 kE8m0F32 = make_e8m0_table_f32();

// The bytes of the bfloat16 of the sixteen codes at scale byte s, for byte shuffles; -0 is 0.
struct CodeBytes {
  alignas(16) uint8_t low[16], high[16];
};
constexpr CodeBytes make_code_bytes(int s) {
  CodeBytes t{};
  for (int code = 0; code < 16; ++code) {
    const uint16_t value = code == 8 ? 0 : mxfp4_bf16(code, s);
    t.low[code] = static_cast<uint8_t>(value);
    t.high[code] = static_cast<uint8_t>(value >> 8);
  }
  return t;
}

// Two byte shuffles give the high and the low bytes of the bfloat16 of 32 codes: of two rows, whose codes are the low
// (or the high) nibbles of the even and of the odd bytes. Unpacked, they stand side by side in 32-bit lanes, one row's
// value in the low half, the other's in the high half. Where all scales of a panel are ordinary, a saturating
// subtraction lowers the exponents and leaves zeros: a port that FMAs do not use. Else the scale multiplies.
template <bool kOrdinary>
struct Mxfp4Rows {
  template <class F>
  static MXFP4MOE_INLINE void each_vec(const uint8_t* quad, const uint8_t* scales, F&& f) {
    unroll<2>([&](auto first) MXFP4MOE_INLINE_LAMBDA {
      __m256i words[kParts];
      unroll<2>([&](auto half) MXFP4MOE_INLINE_LAMBDA {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(quad + 32 * half.value));
        const __m256i nibbles = first.value == 0 ? bytes : _mm256_srli_epi16(bytes, 4);
        const __m256i codes = _mm256_and_si256(nibbles, _mm256_set1_epi8(15));
        const __m256i high = _mm256_shuffle_epi8(load_table(kBytes.high), codes);
        const __m256i low = _mm256_shuffle_epi8(load_table(kBytes.low), codes);
        words[2 * half.value] = _mm256_unpacklo_epi8(low, high);
        words[2 * half.value + 1] = _mm256_unpackhi_epi8(low, high);
      });
      const uint8_t scale0 = scales[first.value], scale1 = scales[first.value + 2];
      if constexpr (kOrdinary) {
        const __m256i exponents = _mm256_or_si256(_mm256_set1_epi32(static_cast<int>(kExponents.low[scale0])),
                                                  _mm256_set1_epi32(static_cast<int>(kExponents.high[scale1])));
        unroll<kParts>([&](auto part) MXFP4MOE_INLINE_LAMBDA {
          words[part.value] = _mm256_subs_epu16(words[part.value], exponents);
        });
      }
      unroll<kParts>([&](auto part) MXFP4MOE_INLINE_LAMBDA {
        f(Index<first.value>{}, part, scaled(low_halves(words[part.value]), scale0));
      });
      unroll<kParts>([&](auto part) MXFP4MOE_INLINE_LAMBDA {
        f(Index<first.value + 2>{}, part, scaled(high_halves(words[part.value]), scale1));
      });
    });
  }

 private:
  static constexpr CodeBytes kBytes = make_code_bytes(kOrdinary ? kMostOrdinaryScale : 127);

  static MXFP4MOE_INLINE Vec scaled(Vec v, uint8_t scale) {
    return kOrdinary ? v : _mm256_mul_ps(v, _mm256_broadcast_ss(kE8m0F32.values + scale));
  }
  static MXFP4MOE_INLINE __m256i load_table(const uint8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
  }
};

struct Mxfp4 : Mxfp4Rows<false> {
  using Ordinary = Mxfp4Rows<true>;
  static bool is_ordinary(const uint8_t* scales, int64_t n) {
    uint8_t most = 0;
    for (int64_t i = 0; i < n; ++i) {
      const uint8_t above_least = static_cast<uint8_t>(scales[i] - kLeastOrdinaryScale);
      most = above_least > most ? above_least : most;
    }
    return most <= kMostOrdinaryScale - kLeastOrdinaryScale;
  }
};
