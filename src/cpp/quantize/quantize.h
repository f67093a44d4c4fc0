// Quantization: what the instruction sets supply and the threaded drivers over it.
#pragma once

#include "common/types.h"

namespace mxfp4moe {

enum class MxElement : int32_t { kE2m1, kE4m3, kE5m2 };

// `num_blocks` blocks of 32 consecutive values.
struct MxArgs {
  const uint8_t* values;
  DType dtype;
  MxElement element;
  ScaleRule scale_rule;
  int64_t num_blocks;
  uint8_t* codes;   // e2m1: 16 bytes a block, low nibble = even k; else 32
  uint8_t* scales;  // one e8m0 byte a block; 255 (and codes 0) where a value of the block is not finite
};

struct MxValuesArgs {
  const uint8_t* codes;
  const uint8_t* scales;
  MxElement element;
  DType dtype;
  int64_t num_blocks;
  uint8_t* values;
};

// A rectangle of a matrix of values with `stride` values a row. Codes have the same place in a matrix of their own.
struct TileArgs {
  const uint8_t* values;
  DType dtype;
  int64_t rows, columns, stride;
};

struct TileValuesArgs {
  const uint8_t* codes;
  float scale;
  int64_t rows, columns, stride;
  DType dtype;
  uint8_t* values;
};

// `num_blocks` blocks of 16 consecutive values.
struct Nvfp4Args {
  const uint8_t* values;
  DType dtype;
  float tensor_scale;
  int64_t num_blocks;
  uint8_t* blocks;  // 8 bytes a block, low nibble = even k
  uint8_t* scales;  // one e4m3 byte a block; NaN (and codes 0) where a value of the block is not finite
};

struct Nvfp4ValuesArgs {
  const uint8_t* blocks;
  const uint8_t* scales;
  float tensor_scale;
  DType dtype;
  int64_t num_blocks;
  uint8_t* values;
};

struct QuantizeKernels {
  void (*quantize_mx)(const MxArgs&);
  void (*dequantize_mx)(const MxValuesArgs&);
  double (*tile_amax)(const TileArgs&, bool finite_only);
  void (*quantize_tile)(const TileArgs&, float scale, uint8_t* codes);  // to e4m3
  void (*dequantize_tile)(const TileValuesArgs&);
  void (*quantize_nvfp4)(const Nvfp4Args&);
  void (*dequantize_nvfp4)(const Nvfp4ValuesArgs&);
};

struct KernelTable;

void quantize_mx(const KernelTable& kernels, const MxArgs& args, int num_threads);
void dequantize_mx(const KernelTable& kernels, const MxValuesArgs& args, int num_threads);

// Matrices that are cut into tiles of block_rows x block_columns; the last ones of each axis may be smaller.
struct TileGrid {
  int64_t num_matrices;
  int64_t rows, columns;
  int64_t block_rows, block_columns;
};

// `scales`: one for each tile, NaN (and codes 0) where a value of the tile is not finite.
void quantize_fp8_block(const KernelTable& kernels, const TileGrid& grid, const TileArgs& values, uint8_t* codes,
                        float* scales, int num_threads);
void dequantize_fp8_block(const KernelTable& kernels, const TileGrid& grid, const TileValuesArgs& args,
                          const float* scales, int num_threads);

// `num_tensors` tensors of args.num_blocks blocks each; `tensor_scales` has one for each.
void quantize_nvfp4(const KernelTable& kernels, const Nvfp4Args& args, int64_t num_tensors, float* tensor_scales,
                    int num_threads);
void dequantize_nvfp4(const KernelTable& kernels, const Nvfp4ValuesArgs& args, int64_t num_tensors,
                      const float* tensor_scales, int num_threads);

// One code a byte (the low nibble counts) to two a byte, and back. `num_bytes`: of `blocks`.
void pack_e2m1(const uint8_t* codes, uint8_t* blocks, int64_t num_bytes, int num_threads);
void unpack_e2m1(const uint8_t* blocks, uint8_t* codes, int64_t num_bytes, int num_threads);

}  // namespace mxfp4moe
