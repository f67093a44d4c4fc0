// Work that is handed out to whichever thread is free.
#pragma once

#include <atomic>

#include "common/types.h"
#include "threads/nodes.h"

namespace mxfp4moe {

// Less work than this is not worth another thread (about 10 us of reading).
constexpr int64_t kMinThreadBytes = 128 << 10;

struct ItemRange {
  int64_t begin, end;
};

// One of `parts` parts of nearly equal size.
inline ItemRange part_of(ItemRange whole, int64_t part, int64_t parts) {
  const int64_t size = whole.end - whole.begin;
  return {whole.begin + size * part / parts, whole.begin + size * (part + 1) / parts};
}

// A queue for each NUMA node. A thread takes the items of its own node in their order, then those that other nodes have
// left: which weights a node reads is thus nearly the same in every call, and the same as when it packed them.
class WorkQueue {
 public:
  // Calls f(item) until no item is left; `items_of(node)` is an ItemRange, the same for every thread.
  template <class ItemsOf, class F>
  void run(int num_nodes, ItemsOf&& items_of, F&& f) {
    const int own = num_nodes == 1 ? 0 : current_node() % num_nodes;
    for (int i = 0; i < num_nodes; ++i) {
      const int node = own + i < num_nodes ? own + i : own + i - num_nodes;
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
