#include "memory/mapping.h"

#include "common/types.h"
#include "platform/system.h"

namespace mxfp4moe {
namespace {
constexpr int64_t kHugePage = 2 << 20;
constexpr int64_t kPage = 4096;

int64_t alignment_of(int64_t bytes) { return bytes >= kHugePage ? kHugePage : kPage; }

int64_t mapped_bytes(int64_t bytes) { return round_up(bytes < 1 ? 1 : bytes, alignment_of(bytes)); }
}  // namespace

uint8_t* map_memory(int64_t bytes) {
  if (bytes > INT64_MAX / 2) return nullptr;
  return platform::map_pages(mapped_bytes(bytes), alignment_of(bytes));
}

void unmap_memory(uint8_t* data, int64_t bytes) {
  if (data != nullptr) platform::unmap_pages(data, mapped_bytes(bytes), alignment_of(bytes));
}

}  // namespace mxfp4moe
