#include "threads/nodes.h"

#include <algorithm>
#include <atomic>

#include "platform/system.h"

namespace mxfp4moe {
namespace {

// Numbers the nodes of the system from 0 without gaps.
struct Nodes {
  static constexpr int kMaxIds = 1024;
  int count = 1;
  unsigned char index[kMaxIds] = {};
};

Nodes read_nodes() {
  Nodes result;
  int ids[Nodes::kMaxIds];
  const int count = platform::node_ids(ids, Nodes::kMaxIds);
  for (int i = 0; i < count; ++i) result.index[ids[i]] = static_cast<unsigned char>(i % kMaxNodes);
  result.count = std::clamp(count, 1, kMaxNodes);
  return result;
}

// The nodes are read when the library is loaded. A lock, or a static object inside a function, would stay locked in a
// process that is forked while another thread reads.
const Nodes nodes = read_nodes();

std::atomic<int> simulated{0};
std::atomic<int> next_thread{0};

}  // namespace

int num_nodes() {
  const int count = simulated.load(std::memory_order_relaxed);
  return count > 0 ? count : nodes.count;
}

int current_node() {
  const int count = simulated.load(std::memory_order_relaxed);
  if (count > 0) {
    thread_local const int thread = next_thread.fetch_add(1, std::memory_order_relaxed);
    return thread % count;
  }
  if (nodes.count == 1) return 0;
  const int id = platform::current_node_id();
  return id >= 0 && id < Nodes::kMaxIds ? nodes.index[id] : 0;
}

void simulate_nodes(int count) { simulated.store(std::clamp(count, 0, kMaxNodes), std::memory_order_relaxed); }

}  // namespace mxfp4moe
