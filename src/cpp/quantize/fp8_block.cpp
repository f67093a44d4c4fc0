#include <algorithm>
#include <cmath>
#include <cstring>

#include "formats/e4m3.h"
#include "quantize/float_scale.h"
#include "quantize/quantize.h"
#include "threads/split.h"

namespace mxfp4moe {

namespace {

// Where a scale block stands in the matrices.
struct ScaleBlock {
  int64_t offset;  // the place of its first value
  int64_t rows, columns;
};

int64_t blocks_across(const ScaleBlockGrid& grid) { return ceil_div(grid.columns, grid.block_columns); }

int64_t num_blocks(const ScaleBlockGrid& grid) {
  return grid.num_matrices * ceil_div(grid.rows, grid.block_rows) * blocks_across(grid);
}

// The values of an average block.
int64_t values_per_block(const ScaleBlockGrid& grid) {
  return grid.num_matrices * grid.rows * grid.columns / std::max<int64_t>(1, num_blocks(grid));
}

ScaleBlock block_at(const ScaleBlockGrid& grid, int64_t index) {
  const int64_t column = index % blocks_across(grid) * grid.block_columns;
  const int64_t block_row = index / blocks_across(grid);
  const int64_t blocks_down = ceil_div(grid.rows, grid.block_rows);
  const int64_t row = block_row % blocks_down * grid.block_rows;
  const int64_t matrix = block_row / blocks_down;
  return {(matrix * grid.rows + row) * grid.columns + column, std::min(grid.block_rows, grid.rows - row),
          std::min(grid.block_columns, grid.columns - column)};
}

void clear_codes(const ScaleBlockArgs& block, uint8_t* codes) {
  for (int64_t row = 0; row < block.rows; ++row) {
    std::memset(codes + row * block.stride, 0, static_cast<size_t>(block.columns));
  }
}

}  // namespace

void quantize_fp8_block(const KernelTable& kernels, const ScaleBlockGrid& grid, const ScaleBlockArgs& values,
                        uint8_t* codes, float* scales, int num_threads) {
  split_parts(num_blocks(grid), values_per_block(grid), num_threads, [&](int64_t index, int threads) {
    const ScaleBlock block = block_at(grid, index);
    ScaleBlockArgs whole = values;
    whole.values += block.offset * value_bytes(values.dtype);
    whole.rows = block.rows;
    whole.columns = block.columns;
    const double amax = amax_of(kernels, whole, false, threads);
    const float scale = scales[index] = float_scale(amax, E4m3Element::kMax);
    const bool has_codes = amax > 0.0 && std::isfinite(amax);
    split_units(block.rows, block.columns, threads, [&](int64_t begin, int64_t end) {
      ScaleBlockArgs part = whole;
      part.values += begin * whole.stride * value_bytes(values.dtype);
      part.rows = end - begin;
      uint8_t* to = codes + block.offset + begin * whole.stride;
      has_codes ? kernels.quantize.quantize_scale_block(part, scale, to) : clear_codes(part, to);
    });
  });
}

void dequantize_fp8_block(const KernelTable& kernels, const ScaleBlockGrid& grid, const ScaleBlockValuesArgs& args,
                          const float* scales, int num_threads) {
  split_parts(num_blocks(grid), values_per_block(grid), num_threads, [&](int64_t index, int threads) {
    const ScaleBlock block = block_at(grid, index);
    split_units(block.rows, block.columns, threads, [&](int64_t begin, int64_t end) {
      const int64_t offset = block.offset + begin * args.stride;
      ScaleBlockValuesArgs part = args;
      part.codes += offset;
      part.values += offset * value_bytes(args.dtype);
      part.scale = scales[index];
      part.rows = end - begin;
      part.columns = block.columns;
      kernels.quantize.dequantize_scale_block(part);
    });
  });
}

}  // namespace mxfp4moe
