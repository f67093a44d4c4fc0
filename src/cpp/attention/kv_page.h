// Pages of a key/value cache. kernels/attention_kernels.h says how keys and values stand in a page.
#pragma once

#include <atomic>

#include "kernels/attention_kernels.h"
#include "platform/exported.h"

namespace mxfp4moe {

// One page, which several caches may share. It is filled from its first position to its last. What has been filled
// never changes, so that caches with the same first positions share pages, the last one too, without locks.
class KVPage {
 public:
  // Takes the positions [begin, end) for the caller to fill, if the page is filled up to `begin` exactly. Otherwise
  // another cache has filled more, and the caller needs a copy of the page.
  bool claim(int64_t begin, int64_t end) {
    return filled_.compare_exchange_strong(begin, end, std::memory_order_relaxed);
  }

 private:
  std::atomic<int64_t> filled_{0};
};

// Keys and values [num_tokens][num_kv_heads][head_dim] of the positions from `position` on.
struct NewPositions {
  const float* keys;
  const float* values;
  int64_t position;
  int64_t num_tokens;
};

// Rounds keys and values once to the dtype of the cache and writes them into pages, of which pages[0] has the first
// position that is written.
void fill_pages(const KVLayout& layout, const NewPositions& tokens, uint8_t* const* pages, int num_threads)
    MXFP4MOE_EXPORTED(fill_pages);

}  // namespace mxfp4moe
