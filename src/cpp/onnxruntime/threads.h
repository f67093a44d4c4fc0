// The threads of the session that runs a kernel.
#pragma once

#include <atomic>

#include "onnxruntime/host.h"

namespace mxfp4moe::onnx {

// How a node is computed: on the threads of its session, and with one instruction set. No thread is made.
class Threads {
 public:
  explicit Threads(const Node& node);

  // For packing and opening, which no threads are given to.
  mxfp4moe_options without_threads() const;
  // For a call, as long as that lives.
  mxfp4moe_options of(const Call& call) const;

 private:
  int32_t num_threads_;  // 0: as many as the session has
  int32_t isa_;
  mutable std::atomic<int32_t> width_{0};  // of the session's pool; 0: not yet measured
};

}  // namespace mxfp4moe::onnx
