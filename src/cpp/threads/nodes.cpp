#include "threads/nodes.h"

#include <algorithm>
#include <atomic>
#include <cstdio>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mxfp4moe {
namespace {

// Numbers the nodes of the system from 0 without gaps.
struct Nodes {
  static constexpr int kMaxIds = 1024;
  int count = 1;
  unsigned char index[kMaxIds] = {};
};

#if defined(__linux__)

// The system gives a list such as 0-1,4.
Nodes read_nodes() {
  Nodes result;
  std::FILE* file = std::fopen("/sys/devices/system/node/has_cpu", "re");
  if (file == nullptr) return result;
  int count = 0, first = 0, last = 0;
  while (std::fscanf(file, "%d", &first) == 1) {
    last = first;
    int separator = std::fgetc(file);
    if (separator == '-') {
      if (std::fscanf(file, "%d", &last) != 1) break;
      separator = std::fgetc(file);
    }
    for (int id = std::max(first, 0); id <= last && id < Nodes::kMaxIds; ++id) {
      result.index[id] = static_cast<unsigned char>(count++ % kMaxNodes);
    }
    if (separator != ',') break;
  }
  std::fclose(file);
  result.count = std::clamp(count, 1, kMaxNodes);
  return result;
}

#else

Nodes read_nodes() { return {}; }

#endif

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
#if defined(__linux__) && defined(SYS_getcpu)
  unsigned id = 0;
  if (syscall(SYS_getcpu, nullptr, &id, nullptr) == 0 && id < Nodes::kMaxIds) return nodes.index[id];
#endif
  return 0;
}

void simulate_nodes(int count) { simulated.store(std::clamp(count, 0, kMaxNodes), std::memory_order_relaxed); }

}  // namespace mxfp4moe
