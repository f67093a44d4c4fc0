// Quantization to the MX formats: what the instruction sets supply and the threaded driver over it.
#pragma once

#include "common/types.h"

namespace mxfp4moe {

enum class ScaleRule : int32_t { kFloor, kCeil, kRceil, kEven };

// `num_blocks` blocks of 32 consecutive values.
struct QuantizeArgs {
  const uint8_t* values;
  DType dtype;
  int64_t num_blocks;
  ScaleRule scale_rule;
  uint8_t* codes;   // mxfp4: 16 bytes a block, low nibble = even k
  uint8_t* scales;  // one e8m0 byte a block; 255 where a value of the block is not finite
};

struct QuantizeKernels {
  void (*mxfp4)(const QuantizeArgs&);
};

}  // namespace mxfp4moe
