#include "memory/mapping.h"

#include <sys/mman.h>

#include "common/types.h"

namespace mxfp4moe {
namespace {
constexpr int64_t kHugePage = 2 << 20;
constexpr int64_t kPage = 4096;

int64_t mapped_bytes(int64_t bytes) {
  if (bytes < 1) bytes = 1;
  return round_up(bytes, bytes >= kHugePage ? kHugePage : kPage);
}

uint8_t* map_pages(int64_t bytes) {
  void* p = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return p == MAP_FAILED ? nullptr : static_cast<uint8_t*>(p);
}
}  // namespace

uint8_t* map_memory(int64_t bytes) {
  if (bytes > INT64_MAX / 2) return nullptr;
  const int64_t size = mapped_bytes(bytes);
  if (size < kHugePage) return map_pages(size);
  uint8_t* p = map_pages(size + kHugePage);
  if (p == nullptr) return nullptr;
  // The parts before and after the aligned block are given back.
  const int64_t before = round_up(reinterpret_cast<int64_t>(p), kHugePage) - reinterpret_cast<int64_t>(p);
  if (before > 0) munmap(p, static_cast<size_t>(before));
  if (before < kHugePage) munmap(p + before + size, static_cast<size_t>(kHugePage - before));
#ifdef MADV_HUGEPAGE
  madvise(p + before, static_cast<size_t>(size), MADV_HUGEPAGE);
#endif
  return p + before;
}

void unmap_memory(uint8_t* data, int64_t bytes) {
  if (data != nullptr) munmap(data, static_cast<size_t>(mapped_bytes(bytes)));
}

}  // namespace mxfp4moe
