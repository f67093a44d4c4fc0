// Work that is handed out to whichever thread is free.
#pragma once

#include <atomic>

#include "common/types.h"
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

// A queue of items for each NUMA node. A thread takes the items of its node in their order, then those that other nodes
// have left. So a node reads nearly the same weights in every call, and those that it has packed itself.
class WorkQueue {
 public:
  // Calls f(item) until no item is left; `items_of(node)` is an ItemRange, the same for every thread.
  template <class ItemsOf, class F>
  void run(int num_nodes, ItemsOf&& items_of, F&& f) {
    const int home = num_nodes == 1 ? 0 : current_node() % num_nodes;
    for (int i = 0; i < num_nodes; ++i) {
      const int node = home + i < num_nodes ? home + i : home + i - num_nodes;
      const ItemRange items = items_of(node);
      const int64_t count = items.end - items.begin;
      for (int64_t k; (k = taken_[node].count.fetch_add(1, std::memory_order_relaxed)) < count;) f(items.begin + k);
    }
  }

 private:
  struct alignas(64) Taken {
    std::atomic<int64_t> count{0};
  };
  Taken taken_[kMaxNodes];
};

}  // namespace mxfp4moe
