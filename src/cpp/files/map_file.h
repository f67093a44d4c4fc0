// Files mapped for reading.
#pragma once

#include <cstdint>

namespace mxfp4moe {

// Maps bytes [begin, begin + bytes) of an open file, `begin` a multiple of the page size and `bytes` above 0. Unlike
// Python's own mapping this one keeps no descriptor, so that thousands of files can be mapped at a time. 0, or the
// errno.
int map_file(int descriptor, int64_t begin, int64_t bytes, uint8_t** data);
void unmap_file(uint8_t* data, int64_t bytes);

}  // namespace mxfp4moe
