// Integers as bfloat16 with a lane for each row of a panel. A vector has two consecutive k of each row, a pair. A class
// of weights has each_pair(block, zeros, f), which calls f(Index<pair>, vector) for the sixteen pairs of a K-block in
// order, and kIsCheap, which tells that decoding hides behind the products of some tokens. Where nothing else is to be
// done, four bits take 49 cycles on Zen 4, of which 8 put the rows of all quads together. Included inside the namespace
// of the kernel table whose Vec is a zmm register of bfloat16, after dot_gemm.h.

// Makes a vector of the 16 bytes of each 64 that start at 32 * kHalf, and one of the 16 bytes after them.
template <int kHalf>
MXFP4MOE_INLINE void load_columns(const uint8_t* p, Vec (&out)[2]) {
  // Otherwise the compiler would load once for both halves and keep what it loads on the stack.
  asm("" : "+r"(p));
  out[0] = pieces(p, Index<2 * kHalf>{});
  out[1] = pieces(p, Index<2 * kHalf + 1>{});
}

// Calls f(Index<pair>, words) for the sixteen pairs, of which the lowest bits of each word are the code.
template <class F>
MXFP4MOE_INLINE void each_int4_pair(const uint8_t* block, F&& f) {
  const Vec shifts = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 4, 8, 12));
  unroll<2>([&](auto half) MXFP4MOE_INLINE_LAMBDA {
    Vec codes[2];  // four bytes of a quad have a pair of its four rows
    load_columns<half.value>(block, codes);
    unroll<8>([&](auto i) MXFP4MOE_INLINE_LAMBDA {
      constexpr auto kLane = static_cast<_MM_PERM_ENUM>(0x55 * (i.value % 4));
      const Vec repeated = _mm512_shuffle_epi32(codes[i.value / 4], kLane);
      f(Index<8 * half.value + i.value>{}, _mm512_srlv_epi32(repeated, shifts));
    });
  });
}

// Codes of four bits that have the zero point that a format without any stands for.
struct Int4Lanes {
  static constexpr int kWeightBytes = block_layout(WeightFormat::kInt4).weight_bytes;
  static constexpr bool kIsCheap = true;
  const Vec table;

  explicit MXFP4MOE_INLINE Int4Lanes(const PanelView& panel)
      : table(_mm512_load_si512(kInt4Bf16.row[implied_zero(panel.format)])) {}

  template <class F>
  MXFP4MOE_INLINE void each_pair(const uint8_t* block, const uint8_t*, F&& f) const {
    each_int4_pair(
        block, [&](auto pair, Vec words) MXFP4MOE_INLINE_LAMBDA { f(pair, _mm512_permutexvar_epi16(words, table)); });
  }
};

constexpr Int4Differences kInt4Differences = make_int4_differences();

// Codes of four bits and zero points of rows: five bits of their difference look up the weight.
struct Int4ZeroLanes {
  static constexpr int kWeightBytes = block_layout(WeightFormat::kInt4Zeros).weight_bytes;
  static constexpr bool kIsCheap = true;
  const Vec table;

  explicit MXFP4MOE_INLINE Int4ZeroLanes(const PanelView&) : table(_mm512_load_si512(kInt4Differences.values)) {}

  template <class F>
  MXFP4MOE_INLINE void each_pair(const uint8_t* block, const uint8_t* zeros, F&& f) const {
    const Vec nibble = _mm512_set1_epi16(15);
    const Vec bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros)));
    const Vec zero = _mm512_and_si512(_mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 16)), nibble);
    each_int4_pair(block, [&](auto pair, Vec words) MXFP4MOE_INLINE_LAMBDA {
      const Vec difference = _mm512_sub_epi16(_mm512_and_si512(words, nibble), zero);
      f(pair, _mm512_permutexvar_epi16(difference, table));
    });
  }
};

// Calls f(Index<n>, low, high) for eight k after eight k of a K-block of eight bits, of the rows below 8 and above.
template <class F>
MXFP4MOE_INLINE void each_int8_columns(const uint8_t* block, F&& f) {
  unroll<2>([&](auto half) MXFP4MOE_INLINE_LAMBDA {
    Vec low[2], high[2];
    load_columns<half.value>(block, low);
    load_columns<half.value>(block + block_layout(WeightFormat::kInt8).weight_bytes / 2, high);
    unroll<2>([&](auto i)
                  MXFP4MOE_INLINE_LAMBDA { f(Index<2 * half.value + i.value>{}, low[i.value], high[i.value]); });
  });
}

// The bytes of the bfloat16 of magnitudes up to 127.
constexpr float int8_magnitude(uint8_t code) { return code; }
constexpr Fp8ByteTables kInt8Magnitudes = make_fp8_byte_tables<int8_magnitude>();

// Of eight k of sixteen rows, the words of the first four k, and of the last four: in each 128 bits, the first two k of
// four rows, then the next two.
struct Int8Words {
  alignas(64) uint16_t index[2][32];
};
constexpr Int8Words make_int8_words() {
  Int8Words t{};
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 32; ++i) {
      const int row = i / 8 * 4 + i % 4, pair = 2 * half + i % 8 / 4;
      t.index[half][i] = static_cast<uint16_t>(4 * row + pair);
    }
  }
  return t;
}
constexpr Int8Words kInt8Words = make_int8_words();

// Codes of eight bits without zero points: their magnitudes look up both bytes of a bfloat16.
struct Int8Lanes {
  static constexpr int kWeightBytes = block_layout(WeightFormat::kInt8).weight_bytes;
  static constexpr bool kIsCheap = false;

  explicit MXFP4MOE_INLINE Int8Lanes(const PanelView&) {}

  template <class F>
  MXFP4MOE_INLINE void each_pair(const uint8_t* block, const uint8_t*, F&& f) const {
    const Vec sign = _mm512_set1_epi8(static_cast<char>(0x80));
    each_int8_columns(block, [&](auto n, Vec low_rows, Vec high_rows) MXFP4MOE_INLINE_LAMBDA {
      unroll<2>([&](auto half) MXFP4MOE_INLINE_LAMBDA {
        const Vec words = _mm512_load_si512(kInt8Words.index[half.value]);
        const Vec codes = _mm512_permutex2var_epi16(low_rows, words, high_rows);
        const Vec magnitude = _mm512_abs_epi8(codes);
        const Vec low = look_up(kInt8Magnitudes.low, magnitude), high = look_up(kInt8Magnitudes.high, magnitude);
        // That of -128 has another bit, which the tables do not see: they give 0, whose low byte is that of 128.
        const Vec magnitude_high = _mm512_mask_mov_epi8(high, _mm512_movepi8_mask(magnitude), _mm512_set1_epi8(0x43));
        const Vec signed_high = _mm512_ternarylogic_epi32(magnitude_high, codes, sign, 0xf8);  // high | (codes & sign)
        constexpr int kPair = 4 * n.value + 2 * half.value;
        f(Index<kPair>{}, _mm512_unpacklo_epi8(low, signed_high));
        f(Index<kPair + 1>{}, _mm512_unpackhi_epi8(low, signed_high));
      });
    });
  }

 private:
  static MXFP4MOE_INLINE Vec look_up(const uint8_t (&table)[128], Vec index) {
    return _mm512_permutex2var_epi8(_mm512_load_si512(table), index, _mm512_load_si512(table + 64));
  }
};

// Codes of eight bits, and zero points. Codes plus 128 become floats by standing in the mantissa of a power of two,
// which a subtraction takes away together with the zero point: low bytes in that of 2^23, the bytes above them in that
// of 2^15. The upper halves of the differences are exact.
struct Int8ZeroLanes {
  static constexpr int kWeightBytes = block_layout(WeightFormat::kInt8Zeros).weight_bytes;
  static constexpr bool kIsCheap = false;

  explicit MXFP4MOE_INLINE Int8ZeroLanes(const PanelView&) {}

  template <class F>
  MXFP4MOE_INLINE void each_pair(const uint8_t* block, const uint8_t* zeros, F&& f) const {
    const Vec zero = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros)));
    const Vec first_lanes = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const Vec second_lanes = _mm512_or_si512(first_lanes, _mm512_set1_epi32(1));
    each_int8_columns(block, [&](auto n, Vec low_rows, Vec high_rows) MXFP4MOE_INLINE_LAMBDA {
      unroll<2>([&](auto half) MXFP4MOE_INLINE_LAMBDA {
        const Vec lanes = half.value == 0 ? first_lanes : second_lanes;
        const Vec codes = _mm512_permutex2var_epi32(low_rows, lanes, high_rows);
        constexpr int kPair = 4 * n.value + 2 * half.value;
        f(Index<kPair>{}, pair_of(codes, zero));
        f(Index<kPair + 1>{}, pair_of(_mm512_srli_epi32(codes, 16), zero));
      });
    });
  }

 private:
  // The differences of the two lowest bytes of each lane and the zero points, as two bfloat16.
  static MXFP4MOE_INLINE Vec pair_of(Vec codes, Vec zero) {
    const Vec low_power = _mm512_set1_epi32(0x4b000080), high_power = _mm512_set1_epi32(0x47008000);
    const __m512 low_number = _mm512_castsi512_ps(_mm512_add_epi32(low_power, zero));
    const __m512 high_number = _mm512_castsi512_ps(_mm512_add_epi32(high_power, _mm512_slli_epi32(zero, 8)));
    // (codes & byte) ^ power
    const Vec low = _mm512_ternarylogic_epi32(codes, _mm512_set1_epi32(0xff), low_power, 0x6a);
    const Vec high = _mm512_ternarylogic_epi32(codes, _mm512_set1_epi32(0xff00), high_power, 0x6a);
    const Vec first = _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(low), low_number));
    const Vec second = _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(high), high_number));
    return _mm512_permutex2var_epi16(first, upper_halves(), second);
  }
  // The upper words of the lanes of two vectors in turn.
  static MXFP4MOE_INLINE Vec upper_halves() {
    const Vec lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_add_epi32(_mm512_mullo_epi32(lanes, _mm512_set1_epi32(0x00020002)), _mm512_set1_epi32(0x00210001));
  }
};
