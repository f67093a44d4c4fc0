#include "packing/panels.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "formats/bf16.h"
#include "packing/copy_panels.h"
#include "threads/pool.h"
#include "threads/split.h"
#include "threads/work_queue.h"

namespace mxfp4moe {

int64_t source_row(RowOrder order, int64_t row, int64_t num_rows) {
  if (order == RowOrder::kPlain) return row < num_rows ? row : -1;
  const int64_t panel = row / kPanelRows;
  const int64_t intermediate = panel / 2 * kPanelRows + row % kPanelRows;
  if (intermediate >= num_rows / 2) return -1;
  const int64_t up = panel % 2;
  return order == RowOrder::kConcatenated ? up * (num_rows / 2) + intermediate : 2 * intermediate + up;
}

namespace {

constexpr int64_t kMaxRowBytes = kBlockK * 2;  // the most bytes that a row of a packed K-block has

// The sizes in bytes that belong to one row of a matrix.
struct RowBytes {
  int64_t block;          // its weights in a packed K-block
  int64_t block_scales;   // its block scales in a K-block
  int64_t source;         // its weights in the source
  int64_t source_scales;  // its block scales in the source
  int64_t k_blocks;
};

RowBytes row_bytes(const SourceMatrix& m) {
  const BlockLayout layout = block_layout(m.format);
  RowBytes b;
  b.block = layout.weight_bytes / kPanelRows;
  b.block_scales = layout.scale_bytes / kPanelRows;
  b.source = m.k * layout.weight_bits() / 8;
  if (m.format == WeightFormat::kBf16 && m.dtype == DType::kFloat32) b.source *= 2;
  b.source_scales = ceil_div(m.k * b.block_scales, kBlockK);
  b.k_blocks = ceil_div(m.k, kBlockK);
  return b;
}

// Packs four rows of 16 bytes into a quad. Byte b of a row holds the codes of k = 2 b (low nibble) and 2 b + 1; word k
// of the quad gathers the four codes of k.
void pack_quad(const uint8_t* const rows[4], uint8_t* quad) {
  for (int b = 0; b < 16; ++b) {
    const uint32_t r0 = rows[0][b], r1 = rows[1][b], r2 = rows[2][b], r3 = rows[3][b];
    const uint32_t even = (r0 & 15) | (r1 & 15) << 4 | (r2 & 15) << 8 | (r3 & 15) << 12;
    const uint32_t odd = r0 >> 4 | (r1 >> 4) << 4 | (r2 >> 4) << 8 | (r3 >> 4) << 12;
    quad[4 * b] = static_cast<uint8_t>(even);
    quad[4 * b + 1] = static_cast<uint8_t>(even >> 8);
    quad[4 * b + 2] = static_cast<uint8_t>(odd);
    quad[4 * b + 3] = static_cast<uint8_t>(odd >> 8);
  }
}

void unpack_quad(const uint8_t* quad, uint8_t* const rows[4]) {
  for (int b = 0; b < 16; ++b) {
    const uint32_t even = quad[4 * b] | static_cast<uint32_t>(quad[4 * b + 1]) << 8;
    const uint32_t odd = quad[4 * b + 2] | static_cast<uint32_t>(quad[4 * b + 3]) << 8;
    for (int i = 0; i < 4; ++i) {
      rows[i][b] = static_cast<uint8_t>(((even >> (4 * i)) & 15) | ((odd >> (4 * i)) & 15) << 4);
    }
  }
}

// Packs the sixteen rows of a K-block, of `bytes` bytes each. unpack_rows does the inverse.
void pack_rows(const uint8_t* const rows[kPanelRows], int64_t bytes, uint8_t* packed) {
  if (bytes == kBlockK / 2) {
    for (int q = 0; q < 4; ++q) pack_quad(rows + 4 * q, packed + 64 * q);
  } else if (bytes == kBlockK) {
    for (int r = 0; r < kPanelRows; ++r) {
      uint8_t* to = packed + r / 2 * 64 + r % 2 * 8;
      for (int l = 0; l < 4; ++l) std::memcpy(to + 16 * l, rows[r] + 8 * l, 8);
    }
  } else {
    for (int r = 0; r < kPanelRows; ++r) std::memcpy(packed + r * kMaxRowBytes, rows[r], kMaxRowBytes);
  }
}

void unpack_rows(const uint8_t* packed, int64_t bytes, uint8_t* const rows[kPanelRows]) {
  if (bytes == kBlockK / 2) {
    for (int q = 0; q < 4; ++q) unpack_quad(packed + 64 * q, rows + 4 * q);
  } else if (bytes == kBlockK) {
    for (int r = 0; r < kPanelRows; ++r) {
      const uint8_t* from = packed + r / 2 * 64 + r % 2 * 8;
      for (int l = 0; l < 4; ++l) std::memcpy(rows[r] + 8 * l, from + 16 * l, 8);
    }
  } else {
    for (int r = 0; r < kPanelRows; ++r) std::memcpy(rows[r], packed + r * kMaxRowBytes, kMaxRowBytes);
  }
}

// Returns where row `row` begins, or null for padding. If gate and up are two arrays, the rows of the second one follow
// those of the first.
const uint8_t* row_of(const uint8_t* first, const uint8_t* second, int64_t row, const SourceMatrix& m, int64_t bytes) {
  const int64_t half = m.num_rows / 2;
  if (row < 0 || first == nullptr) return nullptr;
  return second != nullptr && row >= half ? second + (row - half) * bytes : first + row * bytes;
}

// Returns element k of a row of float32 or float16.
float load_wide(DType dtype, const uint8_t* row, int64_t k) {
  if (dtype == DType::kFloat32) {
    float value;
    std::memcpy(&value, row + k * 4, 4);
    return value;
  }
  uint16_t half;
  std::memcpy(&half, row + k * 2, 2);
  return f16_to_f32(half);
}

// Copies `count` elements of a row from k on, in the form in which the format stores them; of several terms, one.
void copy_weights(const SourceMatrix& m, int64_t term, const uint8_t* row, int64_t k, int64_t count, uint8_t* to) {
  if (m.format == WeightFormat::kBf16 && m.dtype != DType::kBFloat16) {
    for (int64_t i = 0; i < count; ++i) {
      const float value = load_wide(m.dtype, row, k + i);
      const uint16_t number = m.num_terms == 1 ? f32_to_bf16(value) : bf16_term(value, term);
      std::memcpy(to + i * 2, &number, 2);
    }
  } else {
    const int64_t bits = block_layout(m.format).weight_bits();
    std::memcpy(to, row + k * bits / 8, static_cast<size_t>(count * bits / 8));
  }
}

struct Task {
  const SourceMatrix& matrix;
  const PackedBytes& packed;
  uint8_t* weights = nullptr;  // where unpacked weights go
  uint8_t* scales = nullptr;   // where unpacked scales go
};

// Packs one K-block of one term of the rows of a panel, which are null where they are padding.
void pack_weights(const SourceMatrix& m, const RowBytes& bytes, int64_t term, const uint8_t* const weights[kPanelRows],
                  int64_t kb, uint8_t* packed) {
  const bool in_place = m.format != WeightFormat::kBf16 || m.dtype == DType::kBFloat16;
  const int64_t count = std::min<int64_t>(kBlockK, m.k - kb * kBlockK);
  uint8_t staging[kPanelRows][kMaxRowBytes];
  const uint8_t* rows[kPanelRows];
  for (int r = 0; r < kPanelRows; ++r) {
    if (weights[r] != nullptr && count == kBlockK && in_place) {
      rows[r] = weights[r] + kb * bytes.block;
      continue;
    }
    rows[r] = staging[r];
    std::memset(staging[r], 0, kMaxRowBytes);
    if (weights[r] != nullptr) copy_weights(m, term, weights[r], kb * kBlockK, count, staging[r]);
  }
  pack_rows(rows, bytes.block, packed);
}

void pack_panel(const Task& task, int64_t panel) {
  const SourceMatrix& m = task.matrix;
  const RowBytes bytes = row_bytes(m);
  const uint8_t* weights[kPanelRows];
  const uint8_t* scales[kPanelRows];
  for (int r = 0; r < kPanelRows; ++r) {
    const int64_t row = source_row(m.order, (panel - task.packed.first_panel) * kPanelRows + r, m.num_rows);
    weights[r] = row_of(m.weights, m.up_weights, row, m, bytes.source);
    scales[r] = row_of(m.scales, m.up_scales, row, m, bytes.source_scales);
  }
  for (int64_t kb = 0; kb < bytes.k_blocks; ++kb) {
    const int64_t block = panel * bytes.k_blocks + kb;
    for (int64_t term = 0; term < m.num_terms; ++term) {
      const int64_t term_block = (panel * m.num_terms + term) * bytes.k_blocks + kb;
      pack_weights(m, bytes, term, weights, kb, task.packed.weights + term_block * bytes.block * kPanelRows);
    }
    for (int r = 0; r < kPanelRows; ++r) {
      for (int64_t i = 0; i < bytes.block_scales; ++i) {
        const int64_t column = kb * bytes.block_scales + i;
        task.packed.scales[(block * kPanelRows + r) * bytes.block_scales + i] =
            scales[r] != nullptr && column < bytes.source_scales ? scales[r][column] : 0;
      }
    }
  }
}

// Adds up the terms of `count` weights; `terms` are rows of bfloat16 numbers.
void add_bf16_terms(const uint8_t* const terms[kMaxBf16Terms], int64_t num_terms, int64_t count, uint8_t* sums) {
  const auto term = [&](int64_t t, int64_t i) {
    uint16_t number;
    std::memcpy(&number, terms[t] + 2 * i, 2);
    return bf16_to_f32(number);
  };
  for (int64_t i = 0; i < count; ++i) {
    float rest = term(num_terms - 1, i);
    for (int64_t t = num_terms - 2; t > 0; --t) rest += term(t, i);
    const float first = term(0, i), sum = rest == 0 ? first : first + rest;  // -0 + 0 would lose the sign
    std::memcpy(sums + 4 * i, &sum, 4);
  }
}

void unpack_terms(const Task& task, int64_t panel) {
  const SourceMatrix& m = task.matrix;
  const RowBytes bytes = row_bytes(m);
  uint8_t staging[kMaxBf16Terms][kPanelRows][kMaxRowBytes];
  for (int64_t kb = 0; kb < bytes.k_blocks; ++kb) {
    const int64_t count = std::min<int64_t>(kBlockK, m.k - kb * kBlockK);
    for (int64_t term = 0; term < m.num_terms; ++term) {
      const int64_t block = (panel * m.num_terms + term) * bytes.k_blocks + kb;
      uint8_t* rows[kPanelRows];
      for (int r = 0; r < kPanelRows; ++r) rows[r] = staging[term][r];
      unpack_rows(task.packed.weights + block * bytes.block * kPanelRows, bytes.block, rows);
    }
    for (int r = 0; r < kPanelRows; ++r) {
      const int64_t row = source_row(m.order, panel * kPanelRows + r, m.num_rows);
      if (row < 0) continue;
      const uint8_t* const terms[kMaxBf16Terms] = {staging[0][r], staging[1][r], staging[2][r]};
      add_bf16_terms(terms, m.num_terms, count, task.weights + (row * m.k + kb * kBlockK) * 4);
    }
  }
}

void unpack_panel(const Task& task, int64_t panel) {
  const SourceMatrix& m = task.matrix;
  if (m.num_terms > 1) return unpack_terms(task, panel);
  const RowBytes bytes = row_bytes(m);
  const int64_t bits = block_layout(m.format).weight_bits();
  uint8_t staging[kPanelRows][kMaxRowBytes];
  for (int64_t kb = 0; kb < bytes.k_blocks; ++kb) {
    const int64_t block = panel * bytes.k_blocks + kb;
    const int64_t count = std::min<int64_t>(kBlockK, m.k - kb * kBlockK);
    uint8_t* rows[kPanelRows];
    for (int r = 0; r < kPanelRows; ++r) rows[r] = staging[r];
    unpack_rows(task.packed.weights + block * bytes.block * kPanelRows, bytes.block, rows);
    for (int r = 0; r < kPanelRows; ++r) {
      const int64_t row = source_row(m.order, panel * kPanelRows + r, m.num_rows);
      if (row < 0) continue;
      std::memcpy(task.weights + row * bytes.source + kb * bytes.block, staging[r],
                  static_cast<size_t>(count * bits / 8));
      for (int64_t i = 0; i < bytes.block_scales; ++i) {
        const int64_t column = kb * bytes.block_scales + i;
        if (column < bytes.source_scales) {
          task.scales[row * bytes.source_scales + column] =
              task.packed.scales[(block * kPanelRows + r) * bytes.block_scales + i];
        }
      }
    }
  }
}

// Calls f(pair) for the pairs of panels in `whole`, of all `num_pairs` of a matrix. Each pair is written by the node
// that will compute with it, because memory is allocated near the processor that writes it first.
template <class F>
void run_pairs(int64_t num_pairs, ItemRange whole, int num_threads, F&& f) {
  struct Run {
    int64_t num_pairs;
    ItemRange whole;
    F& f;
    int num_nodes;
    WorkQueue queue;
  } run{num_pairs, whole, f, num_nodes(), {}};
  parallel_run(
      num_threads,
      [](void* context, int, int) {
        Run& r = *static_cast<Run*>(context);
        const auto pairs = [&](int node) {
          const ItemRange of_node = part_of({0, r.num_pairs}, node, r.num_nodes);
          return ItemRange{std::max(of_node.begin, r.whole.begin), std::min(of_node.end, r.whole.end)};
        };
        r.queue.run(r.num_nodes, pairs, r.f);
      },
      &run);
}

// Calls kPanel for all panels.
template <void (*kPanel)(const Task&, int64_t)>
void run_panels(const Task& task, int num_threads) {
  const PackedBytes& packed = task.packed;
  const int64_t first = packed.first_panel;
  const int64_t end = packed.source_panels < 0 ? packed.num_panels : first + packed.source_panels;
  const ItemRange whole{first / 2, ceil_div(end, 2)};
  run_pairs(ceil_div(packed.num_panels, 2), whole, num_threads, [&](int64_t pair) {
    for (int64_t p = std::max(first, 2 * pair); p < std::min(end, 2 * pair + 2); ++p) kPanel(task, p);
  });
}

// Calls f(packed scale, where it stands in the source, or -1 for padding) for each packed scale, both as bytes.
template <class F>
void each_sum_scale(const SumScaleBlocks& blocks, const PackedSumScales& packed, F&& f) {
  const int64_t bytes = value_bytes(packed.dtype);
  for (int64_t panel = 0; panel < packed.num_panels; ++panel) {
    for (int64_t r = 0; r < packed.scale_rows; ++r) {
      const int64_t row = source_row(blocks.order, panel * kPanelRows + r, blocks.num_rows);
      for (int64_t range = 0; range < packed.num_ranges; ++range) {
        const int64_t from = row < 0 ? -1 : (blocks.of_row(row) * packed.num_ranges + range) * bytes;
        f(packed.data + ((panel * packed.num_ranges + range) * packed.scale_rows + r) * bytes, from);
      }
    }
  }
}

}  // namespace

void pack_matrix(const SourceMatrix& source, const PackedBytes& packed, int num_threads) {
  run_panels<pack_panel>({source, packed}, num_threads);
}

void copy_panels(const PanelCopy& copy, int num_threads) {
  const int64_t pairs = ceil_div(copy.num_panels, 2);
  run_pairs(pairs, {0, pairs}, num_threads, [&](int64_t pair) {
    const int64_t begin = copy.bytes * pair / pairs, end = copy.bytes * (pair + 1) / pairs;
    std::memcpy(copy.target + begin, copy.source + begin, static_cast<size_t>(end - begin));
  });
}

void unpack_matrix(const SourceMatrix& shape, const PackedBytes& packed, uint8_t* weights, uint8_t* scales,
                   int num_threads) {
  SourceMatrix bfloat16 = shape;
  bfloat16.dtype = DType::kBFloat16;
  run_panels<unpack_panel>({bfloat16, packed, weights, scales}, num_threads);
}

int64_t count_terms(const SourceMatrix& source, int num_threads) {
  if (source.dtype == DType::kBFloat16) return 1;
  const int64_t row_bytes = source.k * (source.dtype == DType::kFloat32 ? 4 : 2);
  std::atomic<int64_t> maximum{1};
  split_units(source.num_rows, source.k, num_threads, [&](int64_t begin, int64_t end) {
    int64_t count = 1;
    for (int64_t row = begin; row < end && count < kMaxBf16Terms; ++row) {
      for (int64_t k = 0; k < source.k; ++k) {
        const float rest = without_bf16(load_wide(source.dtype, source.weights + row * row_bytes, k));
        if (rest != 0) count = without_bf16(rest) != 0 ? kMaxBf16Terms : std::max<int64_t>(count, 2);
      }
    }
    for (int64_t seen = maximum.load(); seen < count && !maximum.compare_exchange_weak(seen, count);) {
    }
  });
  return maximum.load();
}

void pack_sum_scales(const SumScaleBlocks& blocks, const uint8_t* scales, const PackedSumScales& packed) {
  const size_t bytes = static_cast<size_t>(value_bytes(packed.dtype));
  each_sum_scale(blocks, packed, [&](uint8_t* value, int64_t from) {
    // Scales are copied as bytes, here and below, because copying a float may change a NaN.
    if (from < 0) {
      std::memset(value, 0, bytes);
    } else {
      std::memcpy(value, scales + from, bytes);
    }
  });
}

bool unpack_sum_scales(const SumScaleBlocks& blocks, const PackedSumScales& packed, uint8_t* scales) {
  const size_t bytes = static_cast<size_t>(value_bytes(packed.dtype));
  each_sum_scale(blocks, packed, [&](uint8_t* value, int64_t from) {
    if (from >= 0) std::memcpy(scales + from, value, bytes);
  });
  bool agree = true;
  each_sum_scale(blocks, packed, [&](uint8_t* value, int64_t from) {
    agree &= from < 0 || std::memcmp(scales + from, value, bytes) == 0;
  });
  return agree;
}

void pack_bias(RowOrder order, int64_t num_rows, const float* bias, const PackedBias& packed) {
  for (int64_t i = 0; i < packed.num_panels * kPanelRows; ++i) {
    const int64_t row = source_row(order, i, num_rows);
    packed.data[i] = 0.0f;
    if (row >= 0) std::memcpy(packed.data + i, bias + row, sizeof(float));
  }
}

void unpack_bias(RowOrder order, int64_t num_rows, const PackedBias& packed, float* bias) {
  for (int64_t i = 0; i < packed.num_panels * kPanelRows; ++i) {
    const int64_t row = source_row(order, i, num_rows);
    if (row >= 0) std::memcpy(bias + row, packed.data + i, sizeof(float));
  }
}

}  // namespace mxfp4moe
