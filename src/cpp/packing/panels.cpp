#include "packing/panels.h"

#include <cstring>

#include "threads/pool.h"

namespace mxfp4moe {

int64_t source_row(RowOrder order, int64_t row, int64_t num_rows) {
  if (order == RowOrder::kPlain) return row;
  const int64_t panel = row / kPanelRows;
  const int64_t intermediate = panel / 2 * kPanelRows + row % kPanelRows;
  const int64_t up = panel % 2;
  return order == RowOrder::kConcatenated ? up * (num_rows / 2) + intermediate : 2 * intermediate + up;
}

namespace {

// Rows of a (gate, up) pair number on from the first array to the second.
template <class Byte>
Byte* row_of(Byte* first, Byte* second, int64_t row, int64_t num_rows, int64_t row_bytes) {
  const int64_t half = num_rows / 2;
  return second != nullptr && row >= half ? second + (row - half) * row_bytes : first + row * row_bytes;
}

// One K-block of four rows, 16 bytes each with two k a byte, into a quad: word j gathers the four codes of k = j.
// A byte holds k = 2 b (low) and 2 b + 1 (high) of one row.
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

struct PackTask {
  const SourceMatrix& matrix;
  uint8_t* weights;
  uint8_t* scales;
};

void pack_panel(const PackTask& task, int64_t panel) {
  const SourceMatrix& m = task.matrix;
  const uint8_t* codes[kPanelRows];
  const uint8_t* row_scales[kPanelRows];
  for (int r = 0; r < kPanelRows; ++r) {
    const int64_t row = source_row(m.order, panel * kPanelRows + r, m.num_rows);
    codes[r] = row_of(m.codes, m.up_codes, row, m.num_rows, m.k_blocks * 16);
    row_scales[r] = row_of(m.scales, m.up_scales, row, m.num_rows, m.k_blocks);
  }
  for (int64_t kb = 0; kb < m.k_blocks; ++kb) {
    uint8_t* weights = task.weights + (panel * m.k_blocks + kb) * kMxfp4BlockBytes;
    uint8_t* scales = task.scales + (panel * m.k_blocks + kb) * kScaleBlockBytes;
    for (int q = 0; q < 4; ++q) {
      const uint8_t* rows[4];
      for (int i = 0; i < 4; ++i) rows[i] = codes[4 * q + i] + kb * 16;
      pack_quad(rows, weights + 64 * q);
    }
    for (int r = 0; r < kPanelRows; ++r) scales[r] = row_scales[r][kb];
  }
}

struct UnpackTask {
  const SourceMatrix& matrix;
  const uint8_t* weights;
  const uint8_t* scales;
  uint8_t* codes;
  uint8_t* source_scales;
};

void unpack_panel(const UnpackTask& task, int64_t panel) {
  const SourceMatrix& m = task.matrix;
  for (int64_t kb = 0; kb < m.k_blocks; ++kb) {
    const uint8_t* weights = task.weights + (panel * m.k_blocks + kb) * kMxfp4BlockBytes;
    const uint8_t* scales = task.scales + (panel * m.k_blocks + kb) * kScaleBlockBytes;
    for (int q = 0; q < 4; ++q) {
      uint8_t* rows[4];
      for (int i = 0; i < 4; ++i) {
        const int64_t row = source_row(m.order, panel * kPanelRows + 4 * q + i, m.num_rows);
        rows[i] = task.codes + (row * m.k_blocks + kb) * 16;
        task.source_scales[row * m.k_blocks + kb] = scales[4 * q + i];
      }
      unpack_quad(weights + 64 * q, rows);
    }
  }
}

template <class Task, void (*kPanel)(const Task&, int64_t)>
void run_panels(void* context, int thread, int num_threads) {
  const Task& task = *static_cast<const Task*>(context);
  const int64_t panels = task.matrix.num_rows / kPanelRows;
  for (int64_t p = panels * thread / num_threads; p < panels * (thread + 1) / num_threads; ++p) kPanel(task, p);
}

}  // namespace

void pack_mxfp4(const SourceMatrix& source, uint8_t* weights, uint8_t* scales, int num_threads) {
  PackTask task{source, weights, scales};
  parallel_run(num_threads, run_panels<PackTask, pack_panel>, &task);
}

void unpack_mxfp4(const SourceMatrix& shape, const uint8_t* weights, const uint8_t* scales, uint8_t* codes,
                  uint8_t* source_scales, int num_threads) {
  UnpackTask task{shape, weights, scales, codes, source_scales};
  parallel_run(num_threads, run_panels<UnpackTask, unpack_panel>, &task);
}

}  // namespace mxfp4moe
