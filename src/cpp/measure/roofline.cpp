#include "measure/roofline.h"

#include <algorithm>
#include <atomic>

#include "threads/interrupt.h"
#include "threads/pool.h"

namespace mxfp4moe {
namespace {
constexpr int64_t kPieceBytes = 256 << 10;

struct ReadTask {
  const KernelTable& kernels;
  const uint8_t* data;
  int64_t bytes;
  std::atomic<int64_t> next{0};
  std::atomic<uint64_t> checksum{0};
};

struct PeakTask {
  const KernelTable& kernels;
  int64_t iterations;
  std::atomic<int64_t> flops{0};
};
}  // namespace

uint64_t read_memory(const KernelTable& kernels, const uint8_t* data, int64_t bytes, int num_threads) {
  ReadTask task{kernels, data, bytes};
  parallel_run(
      num_threads,
      [](void* context, int, int) {
        ReadTask& t = *static_cast<ReadTask*>(context);
        uint64_t sum = 0;
        for (int64_t at; keep_going() && (at = t.next.fetch_add(kPieceBytes, std::memory_order_relaxed)) < t.bytes;) {
          sum += t.kernels.read_memory(t.data + at, std::min(kPieceBytes, t.bytes - at));
        }
        t.checksum += sum;
      },
      &task);
  return task.checksum;
}

double peak_flops(const KernelTable& kernels, int64_t iterations, int num_threads) {
  PeakTask task{kernels, iterations};
  parallel_run(
      num_threads,
      [](void* context, int, int) {
        PeakTask& t = *static_cast<PeakTask*>(context);
        t.flops += static_cast<int64_t>(t.kernels.peak_flops(t.iterations));
      },
      &task);
  return static_cast<double>(task.flops);
}

}  // namespace mxfp4moe
