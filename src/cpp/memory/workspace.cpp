#include "memory/workspace.h"

#include <atomic>

#include "common/types.h"
#include "memory/mapping.h"

namespace mxfp4moe {
namespace {

// A block remembers its size in its first 64 bytes. The cache is a few atomic slots and no lock, so that a fork
// at any moment leaves it usable in the child.
constexpr int64_t kHeader = 64;
constexpr int kSlots = 8;
std::atomic<uint8_t*> slots[kSlots];
std::atomic<int64_t> retained{0};

int64_t& size_of(uint8_t* block) { return *reinterpret_cast<int64_t*>(block); }

uint8_t* take_cached(int64_t bytes) {
  for (auto& slot : slots) {
    uint8_t* block = slot.exchange(nullptr, std::memory_order_acq_rel);
    if (block == nullptr) continue;
    retained.fetch_sub(size_of(block), std::memory_order_relaxed);
    if (size_of(block) >= bytes) return block;
    unmap_memory(block, size_of(block));  // calls have outgrown it
  }
  return nullptr;
}

bool put_cached(uint8_t* block) {
  const int64_t bytes = size_of(block);
  if (retained.fetch_add(bytes, std::memory_order_relaxed) + bytes <= kMaxRetainedBytes) {
    for (auto& slot : slots) {
      uint8_t* empty = nullptr;
      if (slot.compare_exchange_strong(empty, block, std::memory_order_acq_rel)) return true;
    }
  }
  retained.fetch_sub(bytes, std::memory_order_relaxed);
  return false;
}

}  // namespace

Workspace::Workspace(int64_t bytes) {
  const int64_t needed = bytes + kHeader;
  uint8_t* block = take_cached(needed);
  if (block == nullptr) {
    // The size is rounded up so that calls of slightly different sizes share a block.
    const int64_t rounded = round_up(needed, needed >= (2 << 20) ? 2 << 20 : 64 << 10);
    block = map_memory(rounded);
    if (block != nullptr) size_of(block) = rounded;
  }
  data_ = block == nullptr ? nullptr : block + kHeader;
}

Workspace::~Workspace() {
  if (data_ == nullptr) return;
  uint8_t* block = data_ - kHeader;
  if (!put_cached(block)) unmap_memory(block, size_of(block));
}

}  // namespace mxfp4moe
