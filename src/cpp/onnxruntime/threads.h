// The threads of the session that runs a kernel.
#pragma once

#include <atomic>

#include "onnxruntime/host.h"

namespace mxfp4moe::onnx {

// ONNX Runtime does not tell an operator how many threads its session has, and a call that waits in vain for more of
// them loses some 50 microseconds. So of each `kPeriod` calls the first `kTrials` ask for as many as there are
// processors, and the others for as many as ever came together: on a busy machine they do not come each time.
class Width {
 public:
  int32_t next();
  // Records that a call had num_tasks tasks, of which num_together ran at the same time.
  void record(int32_t num_tasks, int32_t num_together);

 private:
  static constexpr uint32_t kPeriod = 64, kTrials = 8;

  const int32_t num_available_ = mxfp4moe_available_threads();
  std::atomic<uint32_t> num_calls_{0};
  std::atomic<int32_t> seen_{1};
};

// How a node is computed: on the threads of its session, and with one instruction set. No thread is made.
class Threads {
 public:
  explicit Threads(const Node& node);

  // For packing and opening, which no threads are given to.
  mxfp4moe_options without_threads() const { return options(1, isa_); }

 private:
  friend class CallOptions;

  int32_t num_threads_;  // 0: as many as the session has
  int32_t isa_;
  mutable Width width_;
};

// The options of one call.
class CallOptions {
 public:
  CallOptions(const Threads& threads, const Call& call);
  CallOptions(const CallOptions&) = delete;

  const mxfp4moe_options* get() const { return &options_; }

 private:
  static void parallel_for(void* context, int32_t count, mxfp4moe_task task, void* task_context);

  const Call& call_;
  Width& width_;
  mxfp4moe_options options_;
};

}  // namespace mxfp4moe::onnx
