#include "onnxruntime/threads.h"

#include <algorithm>

namespace mxfp4moe::onnx {
namespace {

struct Tasks {
  mxfp4moe_task task;
  void* context;
  std::atomic<int32_t> num_begun{0};
  std::atomic<int32_t> num_together{0};  // those that had begun when the first one ended

  static void run(void* data, size_t index) {
    Tasks& all = *static_cast<Tasks*>(data);
    ++all.num_begun;
    all.task(all.context, static_cast<int32_t>(index));
    int32_t none = 0;
    all.num_together.compare_exchange_strong(none, all.num_begun);
  }
};

}  // namespace

int32_t Width::next() {
  const uint32_t position = num_calls_.fetch_add(1, std::memory_order_relaxed) % kPeriod;
  return position < kTrials ? num_available_ : seen_.load();
}

void Width::record(int32_t num_tasks, int32_t num_together) {
  const int32_t width = num_together == num_tasks ? num_available_ : num_together;
  int32_t seen = seen_;
  while (num_tasks > 1 && seen < width && !seen_.compare_exchange_weak(seen, width)) {
  }
}

Threads::Threads(const Node& node)
    : num_threads_(static_cast<int32_t>(node.integer("num_threads", 0, 0, 1024))),
      isa_(node.choice("isa", "best",
                       {{"best", MXFP4MOE_ISA_BEST},
                        {"portable", MXFP4MOE_ISA_PORTABLE},
                        {"avx2", MXFP4MOE_ISA_AVX2},
                        {"avx512", MXFP4MOE_ISA_AVX512},
                        {"amx", MXFP4MOE_ISA_AMX}})) {}

CallOptions::CallOptions(const Threads& threads, const Call& call)
    : call_(call),
      width_(threads.width_),
      options_(options(threads.num_threads_ != 0 ? threads.num_threads_ : width_.next(), threads.isa_)) {
  options_.parallel_for = parallel_for;
  options_.parallel_context = this;
}

// Each task is a batch of its own, for they are to run at the same time. Where the session fails to run some, those
// that came compute all.
void CallOptions::parallel_for(void* context, int32_t count, mxfp4moe_task task, void* task_context) {
  const CallOptions& self = *static_cast<const CallOptions*>(context);
  const OrtApi& api = self.call_.api();
  Tasks tasks{task, task_context};
  const auto size = static_cast<size_t>(count);
  OrtStatus* const status = api.KernelContext_ParallelFor(self.call_.context(), Tasks::run, size, size, &tasks);
  if (status != nullptr) api.ReleaseStatus(status);
  self.width_.record(count, std::max(1, tasks.num_together.load()));
}

}  // namespace mxfp4moe::onnx
