#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>

#include "platform/system.h"

namespace mxfp4moe::platform {

uint8_t* map_pages(int64_t bytes, int64_t alignment) {
  // The system's own alignment, a page, is enough for small blocks. Others are cut out of a larger one.
  const int64_t spare = alignment > sysconf(_SC_PAGESIZE) ? alignment : 0;
  const size_t size = static_cast<size_t>(bytes + spare);
  void* p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  uint8_t* data = static_cast<uint8_t*>(p);
  if (spare == 0) return data;
  // The parts before and after the aligned block are given back.
  const int64_t before = (alignment - reinterpret_cast<int64_t>(data) % alignment) % alignment;
  if (before > 0) munmap(data, static_cast<size_t>(before));
  if (before < spare) munmap(data + before + bytes, static_cast<size_t>(spare - before));
#ifdef MADV_HUGEPAGE
  madvise(data + before, static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
  return data + before;
}

void unmap_pages(uint8_t* data, int64_t bytes, int64_t) { munmap(data, static_cast<size_t>(bytes)); }

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

}  // namespace mxfp4moe::platform
