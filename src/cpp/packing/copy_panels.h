// Copies of packed weights.
#pragma once

#include <cstdint>

#include "platform/exported.h"

namespace mxfp4moe {

// Packed bytes of one expert, which its panels share evenly.
struct PanelCopy {
  const uint8_t* source;
  uint8_t* target;
  int64_t bytes;
  int64_t num_panels;
};

// Copies packed bytes to new memory, which is then near the processors that compute with it, as pack_matrix leaves it.
void copy_panels(const PanelCopy& copy, int num_threads) MXFP4MOE_EXPORTED(copy_panels);

}  // namespace mxfp4moe
