// K-blocks of a panel as bytes of sixteen rows by four consecutive k: for kernels on activations of eight bits, which
// sum along k in their lanes. The first half of the vectors are the even rows, the second one the odd rows, because
// these are the low and the high nibbles of the same bytes.
// Included inside a kernel table's own namespace, after int8_dot.h, whose halves() puts even and odd rows into vectors.

// Two pieces of 16 bytes.
MXFP4MOE_INLINE __m256i load_pieces(const uint8_t* low, const uint8_t* high) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(low))),
                                 _mm_loadu_si128(reinterpret_cast<const __m128i*>(high)), 1);
}

// Eight k of a K-block with two codes to a byte, four k each: the lanes hold rows 0 and 1, 2 and 3, ..., 14 and 15.
template <class Unit>
MXFP4MOE_INLINE void nibble_pairs(const uint8_t* block, Unit unit, __m256i (&pairs)[2]) {
  const uint8_t* at = block + 16 * unit.value;  // a quad of rows is 64 bytes
  const __m256i order =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
  const __m256i first = _mm256_shuffle_epi8(load_pieces(at, at + 128), order);
  const __m256i second = _mm256_shuffle_epi8(load_pieces(at + 64, at + 192), order);
  pairs[0] = _mm256_unpacklo_epi64(first, second);
  pairs[1] = _mm256_unpackhi_epi64(first, second);
}

MXFP4MOE_INLINE __m256i low_nibbles(__m256i bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(15)); }
MXFP4MOE_INLINE __m256i high_nibbles(__m256i bytes) { return low_nibbles(_mm256_srli_epi16(bytes, 4)); }

// Decodes E2M1 to bytes that are twice the value, plus 12.
template <class Unit>
MXFP4MOE_INLINE void decode_e2m1(const uint8_t* block, Unit unit, Bytes (&w)[2][kHalves]) {
  const __m256i table =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
  __m256i pairs[2];
  nibble_pairs(block, unit, pairs);
  for (int i = 0; i < 2; ++i) {
    halves(_mm256_shuffle_epi8(table, low_nibbles(pairs[i])), _mm256_shuffle_epi8(table, high_nibbles(pairs[i])), w[i]);
  }
}

template <class Unit>
MXFP4MOE_INLINE void decode_int4(const uint8_t* block, Unit unit, Bytes (&w)[2][kHalves]) {
  __m256i pairs[2];
  nibble_pairs(block, unit, pairs);
  for (int i = 0; i < 2; ++i) halves(low_nibbles(pairs[i]), high_nibbles(pairs[i]), w[i]);
}

// A pair of rows is 64 bytes, of which each 16 are eight k of both.
template <class Unit>
MXFP4MOE_INLINE void decode_int8(const uint8_t* block, Unit unit, Bytes (&w)[2][kHalves]) {
  const __m256i flip = _mm256_set1_epi8(static_cast<char>(kByteOffset));
  __m256i rows[4];  // of the pairs i and i + 4, as lanes: even row, four k and four k, odd row the same
  for (int i = 0; i < 4; ++i) {
    const uint8_t* at = block + 64 * i + 16 * unit.value;
    rows[i] = _mm256_xor_si256(load_pieces(at, at + 256), flip);
  }
  const __m256i even01 = _mm256_unpacklo_epi32(rows[0], rows[1]), even23 = _mm256_unpacklo_epi32(rows[2], rows[3]);
  const __m256i odd01 = _mm256_unpackhi_epi32(rows[0], rows[1]), odd23 = _mm256_unpackhi_epi32(rows[2], rows[3]);
  halves(_mm256_unpacklo_epi64(even01, even23), _mm256_unpacklo_epi64(odd01, odd23), w[0]);
  halves(_mm256_unpackhi_epi64(even01, even23), _mm256_unpackhi_epi64(odd01, odd23), w[1]);
}

// 2^(byte - 127), of which that of 0 is subnormal and that of 255 NaN.
MXFP4MOE_INLINE __m256 e8m0_values(__m256i bytes) {
  const __m256i power = _mm256_max_epi32(_mm256_slli_epi32(bytes, 23), _mm256_set1_epi32(0x00400000));
  return _mm256_castsi256_ps(_mm256_or_si256(power, _mm256_cmpeq_epi32(bytes, _mm256_set1_epi32(255))));
}

MXFP4MOE_INLINE void e8m0_scales(const uint8_t* scales, Floats (&out)[kHalves]) {
  const __m256i pairs = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
  halves(e8m0_values(_mm256_and_si256(pairs, _mm256_set1_epi32(255))), e8m0_values(_mm256_srli_epi32(pairs, 8)), out);
}

// The magnitude, moved to where a float32 has exponent and mantissa, is too small by 2^120; all of this is exact.
MXFP4MOE_INLINE __m256 e4m3_values(__m256i bytes) {
  const __m256i magnitude = _mm256_and_si256(bytes, _mm256_set1_epi32(0x7f));
  const __m256 value = _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(magnitude, 20)), _mm256_set1_ps(0x1p120f));
  const __m256i sign = _mm256_slli_epi32(_mm256_and_si256(bytes, _mm256_set1_epi32(0x80)), 24);
  const __m256i nan = _mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7f));
  return _mm256_castsi256_ps(_mm256_or_si256(_mm256_castps_si256(value), _mm256_or_si256(sign, nan)));
}

template <int kHalf>
MXFP4MOE_INLINE void e4m3_scales(const uint8_t* scales, Floats (&out)[kHalves]) {
  const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales));  // each row has two
  const __m256i byte = _mm256_set1_epi32(255);
  halves(e4m3_values(_mm256_and_si256(_mm256_srli_epi32(all, 8 * kHalf), byte)),
         e4m3_values(_mm256_and_si256(_mm256_srli_epi32(all, 16 + 8 * kHalf), byte)), out);
}

MXFP4MOE_INLINE void float_scales(const float* scales, Floats (&out)[kHalves]) {
  const __m256 low = _mm256_loadu_ps(scales), high = _mm256_loadu_ps(scales + 8);
  const auto order = [](__m256 v) MXFP4MOE_INLINE_LAMBDA {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8));
  };
  halves(order(_mm256_shuffle_ps(low, high, 0x88)), order(_mm256_shuffle_ps(low, high, 0xdd)), out);
}

MXFP4MOE_INLINE void one_scale(float scale, Floats (&out)[kHalves]) {
  halves(_mm256_set1_ps(scale), _mm256_set1_ps(scale), out);
}

// Writes the negated zero point of each row, less the offset of its codes, twice into each lane.
template <int kMask, int kOffset>
MXFP4MOE_INLINE void zero_pairs(const uint8_t* zeros, Ints (&out)[kHalves]) {
  __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros));
  if (kMask != 0xff) bytes = _mm_and_si128(bytes, _mm_set1_epi8(static_cast<char>(kMask)));
  const __m256i negated = _mm256_sub_epi16(_mm256_set1_epi16(-kOffset), _mm256_cvtepi8_epi16(bytes));
  halves(_mm256_shufflehi_epi16(_mm256_shufflelo_epi16(negated, 0xa0), 0xa0),
         _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(negated, 0xf5), 0xf5), out);
}

// Puts the sums of a token, even rows first, in the order of rows.
MXFP4MOE_INLINE void order_rows(float* sums) {
  const __m256 even = _mm256_loadu_ps(sums), odd = _mm256_loadu_ps(sums + 8);
  const __m256 low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
  _mm256_storeu_ps(sums, _mm256_permute2f128_ps(low, high, 0x20));
  _mm256_storeu_ps(sums + 8, _mm256_permute2f128_ps(low, high, 0x31));
}
