#include "onnxruntime/threads.h"

#include <algorithm>
#include <chrono>
#include <thread>

namespace mxfp4moe::onnx {
namespace {

struct Tasks {
  mxfp4moe_task task;
  void* context;
};

// Each task is a batch of its own, for they are to run at the same time. Where the session fails to run some, those
// that came compute all.
void parallel_for(void* context, int32_t count, mxfp4moe_task task, void* task_context) {
  const Call& call = *static_cast<const Call*>(context);
  Tasks tasks{task, task_context};
  const auto run = [](void* data, size_t index) {
    const Tasks& all = *static_cast<const Tasks*>(data);
    all.task(all.context, static_cast<int32_t>(index));
  };
  const auto size = static_cast<size_t>(count);
  OrtStatus* const status = call.api().KernelContext_ParallelFor(call.context(), run, size, size, &tasks);
  if (status != nullptr) call.api().ReleaseStatus(status);
}

// How many tasks come together before the time is over.
struct Meeting {
  using Clock = std::chrono::steady_clock;

  int32_t expected;
  Clock::time_point end;
  std::atomic<int32_t> present{0};
  std::atomic<bool> over{false};

  void attend() {
    if (over) return;
    ++present;
    while (!over && present < expected) {
      if (Clock::now() > end) over = true;
      std::this_thread::yield();
    }
  }
};

// ONNX Runtime does not tell an operator how many threads its session has, and a call that waits for more of them
// loses time each time. So the first call finds out: in microseconds if there are as many as processors.
int32_t measure_width(const Call& call) {
  constexpr auto kPatience = std::chrono::milliseconds(2);
  const int32_t most = mxfp4moe_available_threads();
  if (most == 1) return 1;
  Meeting meeting{most, Meeting::Clock::now() + kPatience};
  parallel_for(
      const_cast<Call*>(&call), most, [](void* data, int32_t) { static_cast<Meeting*>(data)->attend(); }, &meeting);
  return std::clamp(meeting.present.load(), 1, most);
}

}  // namespace

Threads::Threads(const Node& node)
    : num_threads_(static_cast<int32_t>(node.integer("num_threads", 0, 0, 1024))),
      isa_(node.choice("isa", "best",
                       {{"best", MXFP4MOE_ISA_BEST},
                        {"portable", MXFP4MOE_ISA_PORTABLE},
                        {"avx2", MXFP4MOE_ISA_AVX2},
                        {"avx512", MXFP4MOE_ISA_AVX512},
                        {"amx", MXFP4MOE_ISA_AMX}})) {}

mxfp4moe_options Threads::without_threads() const { return options(1, isa_); }

mxfp4moe_options Threads::of(const Call& call) const {
  int32_t count = num_threads_ != 0 ? num_threads_ : width_.load(std::memory_order_relaxed);
  if (count == 0) {
    count = measure_width(call);
    width_.store(count, std::memory_order_relaxed);
  }
  mxfp4moe_options result = options(count, isa_);
  result.parallel_for = parallel_for;
  result.parallel_context = const_cast<Call*>(&call);
  return result;
}

}  // namespace mxfp4moe::onnx
