// Quantizers and their inverses: what the kernel tables supply, shared among threads.
#pragma once

#include "kernels/kernel_table.h"
#include "platform/exported.h"

namespace mxfp4moe {

void quantize_mx(const KernelTable& kernels, const MxArgs& args, int num_threads) MXFP4MOE_EXPORTED(quantize_mx);
void dequantize_mx(const KernelTable& kernels, const MxValuesArgs& args, int num_threads)
    MXFP4MOE_EXPORTED(dequantize_mx);

// Matrices that are cut into scale blocks of block_rows x block_columns values, each of which has a float32 scale. The
// last blocks of each axis may be smaller.
struct ScaleBlockGrid {
  int64_t num_matrices;
  int64_t rows, columns;
  int64_t block_rows, block_columns;
};

// `scales` has one float32 for each scale block. It is NaN (and the codes are 0) where a value of the block is not
// finite.
void quantize_fp8_block(const KernelTable& kernels, const ScaleBlockGrid& grid, const ScaleBlockArgs& values,
                        uint8_t* codes, float* scales, int num_threads) MXFP4MOE_EXPORTED(quantize_fp8_block);
void dequantize_fp8_block(const KernelTable& kernels, const ScaleBlockGrid& grid, const ScaleBlockValuesArgs& args,
                          const float* scales, int num_threads) MXFP4MOE_EXPORTED(dequantize_fp8_block);

// There are `num_tensors` tensors of args.num_blocks blocks each; `tensor_scales` has a scale for each tensor, which
// quantizing finds unless `has_scales`.
void quantize_nvfp4(const KernelTable& kernels, const Nvfp4Args& args, int64_t num_tensors, float* tensor_scales,
                    bool has_scales, int num_threads) MXFP4MOE_EXPORTED(quantize_nvfp4);
void dequantize_nvfp4(const KernelTable& kernels, const Nvfp4ValuesArgs& args, int64_t num_tensors,
                      const float* tensor_scales, int num_threads) MXFP4MOE_EXPORTED(dequantize_nvfp4);

// Values that are quantized to integers of 4 or 8 bits in groups, each of which has a float32 scale; those of a group
// are consecutive. Codes of four bits are 0 to 15, two to a byte; their group_size is even. Codes of eight bits are
// signed. reference/integers.py is the definition.
struct IntegerGroups {
  const uint8_t* values;  // not of dequantize_integers
  DType dtype;
  int bits;
  int64_t num_groups, group_size;
};

struct IntegerArrays {
  uint8_t* codes;
  float* scales;
  uint8_t* zeros;  // a zero point for each group; null where all are 8, or 0 of signed codes
};

// A scale is NaN where a value of the group is not finite.
void quantize_integers(const IntegerGroups& groups, const IntegerArrays& to, int num_threads)
    MXFP4MOE_EXPORTED(quantize_integers);
// groups.dtype is that of `values`.
void dequantize_integers(const IntegerGroups& groups, const IntegerArrays& from, uint8_t* values, int num_threads)
    MXFP4MOE_EXPORTED(dequantize_integers);

// Pack codes that stand one to a byte (in the low nibble) two to a byte, and back. `num_bytes` is the size of `blocks`.
void pack_e2m1(const uint8_t* codes, uint8_t* blocks, int64_t num_bytes, int num_threads) MXFP4MOE_EXPORTED(pack_e2m1);
void unpack_e2m1(const uint8_t* blocks, uint8_t* codes, int64_t num_bytes, int num_threads)
    MXFP4MOE_EXPORTED(unpack_e2m1);

}  // namespace mxfp4moe
