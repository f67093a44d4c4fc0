// Quantization to the MX formats: what the instruction sets supply and the threaded driver over it.
#pragma once

#include "common/types.h"

namespace mxfp4moe {

// `num_blocks` blocks of 32 consecutive values.
struct QuantizeArgs {
  const uint8_t* values;
  DType dtype;
  int64_t num_blocks;
  ScaleRule scale_rule;
  uint8_t* blocks;  // mxfp4: 16 bytes a block, low nibble = even k
  uint8_t* scales;  // one e8m0 byte a block; 255 (and codes 0) where a value of the block is not finite
};

struct DequantizeArgs {
  const uint8_t* blocks;
  const uint8_t* scales;
  int64_t num_blocks;
  DType dtype;
  uint8_t* values;
};

struct QuantizeKernels {
  void (*quantize_mxfp4)(const QuantizeArgs&);
  void (*dequantize_mxfp4)(const DequantizeArgs&);
};

struct KernelTable;

void quantize_mxfp4(const KernelTable& kernels, const QuantizeArgs& args, int num_threads);
void dequantize_mxfp4(const KernelTable& kernels, const DequantizeArgs& args, int num_threads);

// One code a byte (the low nibble counts) to two a byte, and back. `num_bytes`: of `blocks`.
void pack_e2m1(const uint8_t* codes, uint8_t* blocks, int64_t num_bytes, int num_threads);
void unpack_e2m1(const uint8_t* blocks, uint8_t* codes, int64_t num_bytes, int num_threads);

}  // namespace mxfp4moe
