#include <algorithm>
#include <cmath>
#include <cstring>

#include "formats/e4m3.h"
#include "kernels/kernel_table.h"
#include "quantize/quantize.h"
#include "quantize/split.h"
#include "quantize/tile_scale.h"

namespace mxfp4moe {

namespace {

struct Tile {
  int64_t offset;  // of its first value
  int64_t rows, columns;
};

int64_t tiles_across(const TileGrid& grid) { return ceil_div(grid.columns, grid.block_columns); }

int64_t num_tiles(const TileGrid& grid) {
  return grid.num_matrices * ceil_div(grid.rows, grid.block_rows) * tiles_across(grid);
}

// Of an average tile.
int64_t values_per_tile(const TileGrid& grid) {
  return grid.num_matrices * grid.rows * grid.columns / std::max<int64_t>(1, num_tiles(grid));
}

Tile tile_at(const TileGrid& grid, int64_t index) {
  const int64_t column = index % tiles_across(grid) * grid.block_columns;
  const int64_t block_row = index / tiles_across(grid);
  const int64_t tiles_down = ceil_div(grid.rows, grid.block_rows);
  const int64_t row = block_row % tiles_down * grid.block_rows;
  const int64_t matrix = block_row / tiles_down;
  return {(matrix * grid.rows + row) * grid.columns + column, std::min(grid.block_rows, grid.rows - row),
          std::min(grid.block_columns, grid.columns - column)};
}

void clear_codes(const TileArgs& tile, uint8_t* codes) {
  for (int64_t row = 0; row < tile.rows; ++row) {
    std::memset(codes + row * tile.stride, 0, static_cast<size_t>(tile.columns));
  }
}

}  // namespace

void quantize_fp8_block(const KernelTable& kernels, const TileGrid& grid, const TileArgs& values, uint8_t* codes,
                        float* scales, int num_threads) {
  split_parts(num_tiles(grid), values_per_tile(grid), num_threads, [&](int64_t index, int threads) {
    const Tile tile = tile_at(grid, index);
    TileArgs whole = values;
    whole.values += tile.offset * value_bytes(values.dtype);
    whole.rows = tile.rows;
    whole.columns = tile.columns;
    const double amax = amax_of(kernels, whole, false, threads);
    const float scale = scales[index] = float_scale(amax, E4m3Element::kMax);
    const bool has_codes = amax > 0.0 && std::isfinite(amax);
    split_units(tile.rows, tile.columns, threads, [&](int64_t begin, int64_t end) {
      TileArgs part = whole;
      part.values += begin * whole.stride * value_bytes(values.dtype);
      part.rows = end - begin;
      uint8_t* to = codes + tile.offset + begin * whole.stride;
      has_codes ? kernels.quantize.quantize_tile(part, scale, to) : clear_codes(part, to);
    });
  });
}

void dequantize_fp8_block(const KernelTable& kernels, const TileGrid& grid, const TileValuesArgs& args,
                          const float* scales, int num_threads) {
  split_parts(num_tiles(grid), values_per_tile(grid), num_threads, [&](int64_t index, int threads) {
    const Tile tile = tile_at(grid, index);
    split_units(tile.rows, tile.columns, threads, [&](int64_t begin, int64_t end) {
      const int64_t offset = tile.offset + begin * args.stride;
      TileValuesArgs part = args;
      part.codes += offset;
      part.values += offset * value_bytes(args.dtype);
      part.scale = scales[index];
      part.rows = end - begin;
      part.columns = tile.columns;
      kernels.quantize.dequantize_tile(part);
    });
  });
}

}  // namespace mxfp4moe
