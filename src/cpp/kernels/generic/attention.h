// Attention over a key/value cache: kernels/attention_kernels.h says what each function does. The result of a row never
// depends on the rows that are computed with it: each function does the same operations, in the same order, for one row
// as for many. Included inside a kernel table's own namespace, after simd.h and math.h and the constant kRowTile: so
// many rows of queries are multiplied by sixteen lanes at once.

constexpr float kMinusInfinity = -__builtin_huge_valf();
constexpr float kLaneNumbers[kAttentionLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

MXFP4MOE_INLINE F32 load_lanes(const float* p) { return load(p); }
MXFP4MOE_INLINE F32 load_lanes(const uint16_t* p) { return load_bf16(p); }

inline float exp_of(float x) {
  float lanes[kAttentionLanes];
  store(lanes, exp(broadcast(x)));
  return lanes[0];
}

// What is subtracted from scores: their largest, or 0 where all are -infinity, so that their weights become 0.
inline float finite_max(float max) { return max == kMinusInfinity ? 0.0f : max; }

// Returns the largest lane. A NaN may be the result or be ignored; the weights of its row become NaN in any case.
inline float largest_lane(F32 x) {
  // Floats are ordered as integers once all bits of the negative ones are inverted.
  const U32 u = bits(x);
  const U32 negative = sub_u32(broadcast_u32(0), shift_right<31>(u));
  const uint32_t largest = reduce_max_u32(bit_xor(u, bit_or(negative, broadcast_u32(0x80000000u))));
  return f32_from_bits((largest & 0x80000000u) != 0 ? largest ^ 0x80000000u : ~largest);
}

// The positions that a row sees among those of a block or a segment, counted from its first.
struct Seen {
  int64_t begin, end;
  bool empty() const { return begin >= end; }
  bool operator==(const Seen& other) const { return begin == other.begin && end == other.end; }
};

inline Seen seen_by(const AttentionRows& rows, int64_t row, int64_t first, int64_t count) {
  const int64_t position = rows.first_position + row / rows.group;
  const int64_t begin = (position < rows.window ? 0 : position - rows.window + 1) - first, end = position + 1 - first;
  return {begin < 0 ? 0 : begin, end > count ? count : end};
}

// Sixteen lanes for each of `count` k.
template <class Element>
struct Columns {
  const Element* data;
  int64_t stride;
  int64_t count;
  int64_t ahead;  // so many bytes ahead is what is read next
};

// Adds products to acc[r][lane]: a[r][k] * b[k][lane] for k = 0, 1, ..., count - 1. The hardware does not find out by
// itself what is read after a page, so that it is asked for here.
template <int kRows, bool kPrefetch, class Element>
MXFP4MOE_INLINE void multiply(const float* a, int64_t a_stride, const Columns<Element>& b, F32 (&acc)[kRows]) {
  for (int64_t k = 0; k < b.count; ++k) {
    const Element* lanes = b.data + k * b.stride;
    if constexpr (kPrefetch) __builtin_prefetch(reinterpret_cast<const uint8_t*>(lanes) + b.ahead);
    const F32 x = load_lanes(lanes);
    unroll<kRows>([&](auto r) MXFP4MOE_INLINE_LAMBDA {
      acc[r.value] = mul_add(broadcast(a[r.value * a_stride + k]), x, acc[r.value]);
    });
  }
}

// The keys and the values of one head in one block, as bfloat16 or float32.
template <class Element>
struct HeadBlock {
  const Element* keys;    // [group of sixteen positions][head_dim][16]
  const Element* values;  // [position][padded]
  int64_t head_dim, padded;
  int64_t ahead;  // so many bytes ahead is the block that is read next
};

// Scores of rows [row, row + kRows) for the groups of sixteen positions [begin, end).
template <int kRows, bool kPrefetch, class Element>
inline void score_rows(const AttentionRows& rows, const HeadBlock<Element>& block, int64_t row, Seen groups,
                       float* scores) {
  const float* queries = rows.queries + row * block.head_dim;
  for (int64_t g = groups.begin; g < groups.end; ++g) {
    F32 acc[kRows];
    for (int r = 0; r < kRows; ++r) acc[r] = broadcast(0.0f);
    const Columns<Element> keys{block.keys + g * kAttentionLanes * block.head_dim, kAttentionLanes, block.head_dim,
                                block.ahead};
    multiply<kRows, kPrefetch>(queries, block.head_dim, keys, acc);
    for (int r = 0; r < kRows; ++r) {
      store(scores + (row + r) * kBlockPositions + g * kAttentionLanes, mul(acc[r], broadcast(rows.scale)));
    }
  }
}

// The groups of sixteen positions that have some of `seen`.
inline Seen groups_of(Seen seen) { return {seen.begin / kAttentionLanes, ceil_div(seen.end, kAttentionLanes)}; }

// Makes weights of the scores that a row sees in a block: e^(score - largest so far), and 0 of the other lanes of their
// groups. The maximum and the sums of weights of the row's state go on. Returns what the sums before are multiplied by.
inline float weigh_row(Seen seen, float* scores, float* state) {
  const Seen groups = groups_of(seen);
  const F32 minus_infinity = broadcast(kMinusInfinity);
  F32 largest = minus_infinity;
  for (int64_t g = groups.begin; g < groups.end; ++g) {
    F32 s = load(scores + g * kAttentionLanes);
    if (g * kAttentionLanes < seen.begin || (g + 1) * kAttentionLanes > seen.end) {
      const F32 lane = load(kLaneNumbers);
      const float first = static_cast<float>(seen.begin - g * kAttentionLanes);
      const float end = static_cast<float>(seen.end - g * kAttentionLanes);
      s = select_less(lane, broadcast(first), minus_infinity, select_less(lane, broadcast(end), s, minus_infinity));
      store(scores + g * kAttentionLanes, s);
    }
    largest = max(largest, s);
  }
  const float before = state[kStateMax], here = largest_lane(largest);
  const float now = here > before || here != here ? here : before;
  const float factor = now == before ? 1.0f : exp_of(before - finite_max(now));
  const F32 subtracted = broadcast(finite_max(now));
  F32 sums = mul(load(state + kStateWeights), broadcast(factor));
  for (int64_t g = groups.begin; g < groups.end; ++g) {
    const F32 weight = exp(sub(load(scores + g * kAttentionLanes), subtracted));
    store(scores + g * kAttentionLanes, weight);
    sums = add(sums, weight);
  }
  state[kStateMax] = now;
  store(state + kStateWeights, sums);
  return factor;
}

// Adds to the values of rows [row, row + kRows) those of the positions `seen`, times their weights.
template <int kRows, bool kPrefetch, class Element>
inline void add_values(const HeadBlock<Element>& block, Seen seen, const float* weights, const float* factors,
                       float* states) {
  const int64_t stride = kStateValues + block.padded;
  for (int64_t d = 0; d < block.padded; d += kAttentionLanes) {
    float* values = states + kStateValues + d;
    F32 acc[kRows];
    for (int r = 0; r < kRows; ++r) acc[r] = mul(load(values + r * stride), broadcast(factors[r]));
    const Columns<Element> columns{block.values + seen.begin * block.padded + d, block.padded, seen.end - seen.begin,
                                   block.ahead};
    multiply<kRows, kPrefetch>(weights + seen.begin, kBlockPositions, columns, acc);
    for (int r = 0; r < kRows; ++r) store(values + r * stride, acc[r]);
  }
}

// The memory of one call of attend.
struct AttendScratch {
  float* scores;   // [row][position of the block]; they become weights
  float* factors;  // [row]
};

// Calls f with the number of rows that are computed together and with whether they are the first, both as an Index. The
// first rows ask for the memory of the next block.
template <int kRows = kRowTile, class F>
MXFP4MOE_INLINE void with_rows(int64_t count, bool is_first, F&& f) {
  if (count == kRows) {
    is_first ? f(Index<kRows>{}, Index<1>{}) : f(Index<kRows>{}, Index<0>{});
  } else if constexpr (kRows > 1) {
    with_rows<kRows / 2>(count, is_first, f);
  }
}

// Returns how many rows from `row` on are computed together: kRowTile or its half, quarter, ...
inline int64_t tile_rows(const AttentionRows& rows, int64_t row) {
  int64_t count = kRowTile;
  while (rows.num_rows - row < count) count /= 2;
  return count;
}

template <class Element>
inline void attend_block(const AttentionRows& rows, const HeadBlock<Element>& block, int64_t first, AttendScratch m,
                         float* states) {
  const int64_t stride = kStateValues + block.padded;
  const auto seen_of = [&](int64_t row) { return seen_by(rows, row, first, kBlockPositions); };
  for (int64_t row = 0, count; row < rows.num_rows; row += count) {
    count = tile_rows(rows, row);
    // The first row sees the positions from the smallest on, the last row those up to the largest.
    const Seen groups = groups_of({seen_of(row).begin, seen_of(row + count - 1).end});
    with_rows(count, row == 0,
              [&](auto n, auto is_first) { score_rows<n.value, is_first.value>(rows, block, row, groups, m.scores); });
  }
  for (int64_t row = 0; row < rows.num_rows; ++row) {
    const Seen seen = seen_of(row);
    if (!seen.empty()) m.factors[row] = weigh_row(seen, m.scores + row * kBlockPositions, states + row * stride);
  }
  for (int64_t row = 0, count; row < rows.num_rows; row += count) {
    const Seen seen = seen_of(row);
    count = tile_rows(rows, row);
    while (!(seen == seen_of(row + count - 1))) count /= 2;
    if (seen.empty()) continue;
    with_rows(count, row == 0, [&](auto n, auto is_first) {
      add_values<n.value, is_first.value>(block, seen, m.scores + row * kBlockPositions, m.factors + row,
                                          states + row * stride);
    });
  }
}

template <class Element>
inline void attend_segment(const AttentionRows& rows, const AttentionSegment& segment, float* states, AttendScratch m) {
  const KVLayout& layout = segment.layout;
  const int64_t padded = padded_dim(layout), stride = state_floats(layout);
  for (int64_t row = 0; row < rows.num_rows; ++row) {
    float* state = states + row * stride;
    std::memset(state, 0, static_cast<size_t>(stride) * 4);
    state[kStateMax] = kMinusInfinity;
  }
  // Blocks before the window of the first row and behind the last row's own position are seen by none.
  const int64_t base = segment.segment * kSegmentPositions;
  const Seen first = seen_by(rows, 0, base, kSegmentPositions);
  const Seen last = seen_by(rows, rows.num_rows - 1, base, kSegmentPositions);
  const int64_t last_position = rows.first_position + (rows.num_rows - 1) / rows.group;
  for (int64_t b = first.begin / kBlockPositions; b * kBlockPositions < last.end; ++b) {
    const int64_t page = segment.segment * kSegmentBlocks + b;
    const int64_t next_page = page + 1 <= last_position / kBlockPositions ? page + 1 : page;
    const uint8_t* data = segment.pages[page] + segment.head * kv_head_bytes(layout);
    const HeadBlock<Element> block{reinterpret_cast<const Element*>(data),
                                   reinterpret_cast<const Element*>(data + keys_bytes(layout)), layout.head_dim, padded,
                                   segment.pages[next_page] - segment.pages[page]};
    attend_block(rows, block, page * kBlockPositions, m, states);
  }
}

inline void attend(const AttentionRows& rows, const AttentionSegment& segment, float* states, uint8_t* scratch) {
  float* scores = reinterpret_cast<float*>(scratch);
  const AttendScratch m{scores, scores + rows.num_rows * kBlockPositions};
  if (segment.layout.dtype == DType::kFloat32) {
    attend_segment<float>(rows, segment, states, m);
  } else {
    attend_segment<uint16_t>(rows, segment, states, m);
  }
}

inline void begin_totals(const AttentionRows& rows, const KVLayout& layout, float* totals) {
  const int64_t stride = state_floats(layout);
  for (int64_t row = 0; row < rows.num_rows; ++row) {
    float* total = totals + row * stride;
    std::memset(total, 0, static_cast<size_t>(stride) * 4);
    total[kStateMax] = rows.sinks == nullptr ? kMinusInfinity : rows.sinks[row % rows.group];
    total[kStateWeights] = total[kStateMax] == kMinusInfinity ? 0.0f : 1.0f;  // e^(sink - sink)
  }
}

inline void merge_states(const AttentionRows& rows, const AttentionSegment& segment, const float* states,
                         float* totals) {
  const int64_t stride = state_floats(segment.layout);
  for (int64_t row = 0; row < rows.num_rows; ++row) {
    if (seen_by(rows, row, segment.segment * kSegmentPositions, kSegmentPositions).empty()) continue;
    const float* state = states + row * stride;
    float* total = totals + row * stride;
    const float before = total[kStateMax], here = state[kStateMax];
    const float now = here > before || here != here ? here : before;
    const F32 total_factor = broadcast(exp_of(before - finite_max(now)));
    const F32 state_factor = broadcast(exp_of(here - finite_max(now)));
    total[kStateMax] = now;
    for (int64_t i = kStateWeights; i < stride; i += kAttentionLanes) {
      store(total + i, mul_add(load(state + i), state_factor, mul(load(total + i), total_factor)));
    }
  }
}

// Sums the lanes of weights in a fixed tree.
inline float sum_weights(const float* lanes) {
  float sums[kAttentionLanes];
  std::memcpy(sums, lanes, sizeof(sums));
  for (int half = kAttentionLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

inline void finish_rows(const AttentionRows& rows, const KVLayout& layout, const float* totals, DType dtype,
                        uint8_t* out) {
  const int64_t stride = state_floats(layout), dim = layout.head_dim;
  float result[kAttentionLanes];
  for (int64_t row = 0; row < rows.num_rows; ++row) {
    const float* total = totals + row * stride;
    const F32 weights = broadcast(sum_weights(total + kStateWeights));
    for (int64_t d = 0; d < dim; d += kAttentionLanes) {
      const F32 quotient = div(load(total + kStateValues + d), weights);
      if (dtype == DType::kFloat32 && dim - d >= kAttentionLanes) {
        store(reinterpret_cast<float*>(out) + row * dim + d, quotient);
        continue;
      }
      store(result, quotient);
      const int64_t count = dim - d < kAttentionLanes ? dim - d : kAttentionLanes;
      for (int64_t i = 0, at = row * dim + d; i < count; ++i, ++at) {
        if (dtype == DType::kFloat32) {
          reinterpret_cast<float*>(out)[at] = result[i];
        } else {
          const uint16_t rounded = dtype == DType::kBFloat16 ? f32_to_bf16(result[i]) : f32_to_f16(result[i]);
          reinterpret_cast<uint16_t*>(out)[at] = rounded;
        }
      }
    }
  }
}

constexpr AttentionKernels make_attention_kernels() {
  AttentionKernels kernels{};
  kernels.attend = attend;
  kernels.begin = begin_totals;
  kernels.merge = merge_states;
  kernels.finish = finish_rows;
  return kernels;
}
