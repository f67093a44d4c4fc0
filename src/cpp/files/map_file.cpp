#include "files/map_file.h"

#include <sys/mman.h>

#include <cerrno>

namespace mxfp4moe {

int map_file(int descriptor, int64_t begin, int64_t bytes, uint8_t** data) {
  // Some file systems, as those of FUSE with direct I/O, refuse shared mappings alone.
  const size_t size = static_cast<size_t>(bytes);
  void* p = mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor, begin);
  if (p == MAP_FAILED) p = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, begin);
  if (p == MAP_FAILED) return errno;
  *data = static_cast<uint8_t*>(p);
  return 0;
}

void unmap_file(uint8_t* data, int64_t bytes) { munmap(data, static_cast<size_t>(bytes)); }

}  // namespace mxfp4moe
