// The quantizers that an instruction set supplies: plain functions of one thread. quantize/quantize.h shares their work
// among threads.
#pragma once

#include "common/types.h"

namespace mxfp4moe {

// `num_blocks` blocks of 32 consecutive values, to be quantized to an MX format.
struct MxArgs {
  const uint8_t* values;
  DType dtype;
  MxElement element;
  ScaleRule scale_rule;
  int64_t num_blocks;
  uint8_t* codes;   // 16 bytes a block for e2m1, the even k in the low nibble; 32 bytes for the others
  uint8_t* scales;  // one e8m0 byte a block; it is 255 (and the codes are 0) where a value is not finite
};

struct MxValuesArgs {
  const uint8_t* codes;
  const uint8_t* scales;
  MxElement element;
  DType dtype;
  int64_t num_blocks;
  uint8_t* values;
};

// A rectangle of values that share a float32 scale. It lies in a matrix with `stride` values a row; its codes have the
// same place in a matrix of codes.
struct ScaleBlockArgs {
  const uint8_t* values;
  DType dtype;
  int64_t rows, columns, stride;
};

struct ScaleBlockValuesArgs {
  const uint8_t* codes;
  float scale;
  int64_t rows, columns, stride;
  DType dtype;
  uint8_t* values;
};

// `num_blocks` blocks of 16 consecutive values, to be quantized to NVFP4.
struct Nvfp4Args {
  const uint8_t* values;
  DType dtype;
  float tensor_scale;
  int64_t num_blocks;
  uint8_t* blocks;  // 8 bytes a block, the even k in the low nibble
  uint8_t* scales;  // one e4m3 byte a block; it is NaN (and the codes are 0) where a value is not finite
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
  double (*scale_block_amax)(const ScaleBlockArgs&, bool finite_only);
  void (*quantize_scale_block)(const ScaleBlockArgs&, float scale, uint8_t* codes);  // to e4m3
  void (*dequantize_scale_block)(const ScaleBlockValuesArgs&);
  void (*quantize_nvfp4)(const Nvfp4Args&);
  void (*dequantize_nvfp4)(const Nvfp4ValuesArgs&);
};

}  // namespace mxfp4moe
