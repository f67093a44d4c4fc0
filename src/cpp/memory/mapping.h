// Zeroed memory straight from the system. Large blocks are aligned to 2 MiB and advised to use huge pages, because
// reads of packed weights from 2 MiB pages have been measured to be 10 to 40 % faster.
#pragma once

#include <cstdint>

#include "platform/exported.h"

namespace mxfp4moe {

// Returns null if the system has no memory left. A size of 0 counts as 1.
uint8_t* map_memory(int64_t bytes) MXFP4MOE_EXPORTED(map_memory);
void unmap_memory(uint8_t* data, int64_t bytes) MXFP4MOE_EXPORTED(unmap_memory);

}  // namespace mxfp4moe
