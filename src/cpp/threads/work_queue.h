// Work that is handed out to whichever thread is free.
#pragma once

#include <algorithm>
#include <atomic>

#include "common/types.h"
#include "threads/interrupt.h"
#include "threads/nodes.h"

namespace mxfp4moe {

// Less work than this, about 10 us of reading, is not worth another thread.
constexpr int64_t kMinThreadBytes = 128 << 10;

struct ItemRange {
  int64_t begin, end;
};

// Returns one of `parts` parts of nearly equal size.
inline ItemRange part_of(ItemRange whole, int64_t part, int64_t parts) {
  const int64_t size = whole.end - whole.begin;
  return {whole.begin + size * part / parts, whole.begin + size * (part + 1) / parts};
}

// Calls f(part) for parts of `whole` that take some milliseconds at most, but for a single item that takes longer, one
// after the other, until none is left or, from the second on, the call is to end. `work` of an item: products, or what
// takes as long.
template <class F>
void run_parts(ItemRange whole, int64_t work, F&& f) {
  constexpr int64_t kPartWork = 1 << 24;
  const int64_t size = whole.end - whole.begin;
  const int64_t limit = size * work <= kPartWork ? size : std::max<int64_t>(1, kPartWork / work);
  for (int64_t begin = whole.begin; begin < whole.end; begin += limit) {
    if (begin > whole.begin && !keep_going()) return;
    f(ItemRange{begin, std::min(begin + limit, whole.end)});
  }
}

// A queue of items for each NUMA node. A thread takes the items of its node in their order, then those that other nodes
// have left. So a node reads nearly the same weights in every call, and those that it has packed itself.
class WorkQueue {
 public:
  // Calls f(item) until no item is left or the call is to end; `items_of(node)` is an ItemRange, the same for every
  // thread.
  template <class ItemsOf, class F>
  void run(int num_nodes, ItemsOf&& items_of, F&& f) {
    const int home = num_nodes == 1 ? 0 : current_node() % num_nodes;
    for (int i = 0; i < num_nodes; ++i) {
      const int node = home + i < num_nodes ? home + i : home + i - num_nodes;
      const ItemRange items = items_of(node);
      const int64_t count = items.end - items.begin;
      while (keep_going()) {
        const int64_t k = taken_[node].count.fetch_add(1, std::memory_order_relaxed);
        if (k >= count) break;
        f(items.begin + k);
      }
    }
  }

 private:
  struct alignas(64) Taken {
    std::atomic<int64_t> count{0};
  };
  Taken taken_[kMaxNodes];
};

}  // namespace mxfp4moe
