// The checksum of packed files.
#pragma once

#include <cstdint>

#include "platform/exported.h"

namespace mxfp4moe {

// The CRC-32 of zlib, continued from `crc`, which is 0 at the start.
uint32_t crc32(uint32_t crc, const uint8_t* data, int64_t nbytes, int num_threads) MXFP4MOE_EXPORTED(crc32);

}  // namespace mxfp4moe
