// K-blocks of a panel as one zmm vector of sixteen rows by four consecutive k: for kernels on activations of eight
// bits, which sum along k in their lanes. Of each four rows, the second and the third change places, because the first
// and the third are the low nibbles of the same bytes, and the others the high ones. Included inside a kernel table's
// own namespace, after int8_dot.h.

// Puts lanes in the order of rows, or back.
MXFP4MOE_INLINE __m512i order_lanes(__m512i v) { return _mm512_shuffle_epi32(v, static_cast<_MM_PERM_ENUM>(0xd8)); }
MXFP4MOE_INLINE __m512 order_lanes(__m512 v) { return _mm512_permute_ps(v, 0xd8); }

// Eight k of a K-block with two codes to a byte, four k each.
template <class Unit, class F>
MXFP4MOE_INLINE void decode_nibbles(const uint8_t* block, Unit unit, Bytes (&w)[2][kHalves], F&& value_of) {
  const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
  const __m512i nibble = _mm512_set1_epi8(15);
  const __m512i pairs = _mm512_shuffle_epi8(pieces(block, unit), order);
  const __m512i low = value_of(_mm512_and_si512(pairs, nibble));
  const __m512i high = value_of(_mm512_and_si512(_mm512_srli_epi16(pairs, 4), nibble));
  w[0][0] = _mm512_unpacklo_epi64(low, high);
  w[1][0] = _mm512_unpackhi_epi64(low, high);
}

// Decodes E2M1 to bytes that are twice the value, plus 12.
template <class Unit>
MXFP4MOE_INLINE void decode_e2m1(const uint8_t* block, Unit unit, Bytes (&w)[2][kHalves]) {
  const __m512i table =
      _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
  decode_nibbles(block, unit, w,
                 [&](__m512i codes) MXFP4MOE_INLINE_LAMBDA { return _mm512_shuffle_epi8(table, codes); });
}

template <class Unit>
MXFP4MOE_INLINE void decode_int4(const uint8_t* block, Unit unit, Bytes (&w)[2][kHalves]) {
  decode_nibbles(block, unit, w, [](__m512i codes) MXFP4MOE_INLINE_LAMBDA { return codes; });
}

// A pair of rows is 64 bytes, of which each 16 are eight k of both.
template <class Unit>
MXFP4MOE_INLINE void decode_int8(const uint8_t* block, Unit unit, Bytes (&w)[2][kHalves]) {
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(kByteOffset));
  const __m512i first = _mm512_setr_epi32(0, 4, 2, 6, 8, 12, 10, 14, 16, 20, 18, 22, 24, 28, 26, 30);
  const __m512i low = _mm512_xor_si512(pieces(block, unit), flip);
  const __m512i high = _mm512_xor_si512(pieces(block + 256, unit), flip);
  w[0][0] = _mm512_permutex2var_epi32(low, first, high);
  w[1][0] = _mm512_permutex2var_epi32(low, _mm512_add_epi32(first, _mm512_set1_epi32(1)), high);
}

// 2^(byte - 127), of which that of 0 is subnormal and that of 255 NaN.
MXFP4MOE_INLINE void e8m0_scales(const uint8_t* scales, Floats (&out)[kHalves]) {
  const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
  const __m512i power = _mm512_max_epi32(_mm512_slli_epi32(bytes, 23), _mm512_set1_epi32(0x00400000));
  const __mmask16 nan = _mm512_cmpeq_epi32_mask(bytes, _mm512_set1_epi32(255));
  out[0] = order_lanes(_mm512_castsi512_ps(_mm512_mask_mov_epi32(power, nan, _mm512_set1_epi32(-1))));
}

// The magnitude, moved to where a float32 has exponent and mantissa, is too small by 2^120; all of this is exact.
template <int kHalf>
MXFP4MOE_INLINE void e4m3_scales(const uint8_t* scales, Floats (&out)[kHalves]) {
  const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales)));
  const __m512i bytes = _mm512_srli_epi32(words, 8 * kHalf);  // each row has two
  const __m512i magnitude = _mm512_and_si512(bytes, _mm512_set1_epi32(0x7f));
  const __m512 value = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(magnitude, 20)), _mm512_set1_ps(0x1p120f));
  const __m512i sign = _mm512_slli_epi32(_mm512_and_si512(bytes, _mm512_set1_epi32(0x80)), 24);
  const __mmask16 nan = _mm512_cmpeq_epi32_mask(magnitude, _mm512_set1_epi32(0x7f));
  const __m512i bits = _mm512_or_si512(_mm512_castps_si512(value), sign);
  out[0] = order_lanes(_mm512_castsi512_ps(_mm512_mask_mov_epi32(bits, nan, _mm512_set1_epi32(-1))));
}

MXFP4MOE_INLINE void float_scales(const float* scales, Floats (&out)[kHalves]) {
  out[0] = order_lanes(_mm512_loadu_ps(scales));
}

MXFP4MOE_INLINE void one_scale(float scale, Floats (&out)[kHalves]) { out[0] = _mm512_set1_ps(scale); }

// Writes the negated zero point of each row, less the offset of its codes, twice into each lane.
template <int kMask, int kOffset>
MXFP4MOE_INLINE void zero_pairs(const uint8_t* zeros, Ints (&out)[kHalves]) {
  __m512i values = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros)));
  if (kMask != 0xff) values = _mm512_and_si512(values, _mm512_set1_epi32(kMask));
  const __m512i negated = _mm512_sub_epi32(_mm512_set1_epi32(-kOffset), values);
  const __m512i low = _mm512_and_si512(negated, _mm512_set1_epi32(0xffff));
  out[0] = order_lanes(_mm512_or_si512(low, _mm512_slli_epi32(negated, 16)));
}

// Puts the sums of a token in the order of rows.
MXFP4MOE_INLINE void order_rows(float* sums) { _mm512_storeu_ps(sums, order_lanes(_mm512_loadu_ps(sums))); }
