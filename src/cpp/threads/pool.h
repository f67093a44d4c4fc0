// The only place that knows how threads are made.
#pragma once

#include <cstdint>

namespace mxfp4moe {

// Runs task(context, thread, num_threads) once for each thread in [0, num_threads); the caller is thread 0.
// Returns when all are done. `num_threads` as passed to the task may be smaller than asked for (the system
// refused a thread, or other callers hold the workers), never larger. Correct from several threads at once
// and in a child after fork. `task` must not throw.
using ThreadTask = void (*)(void* context, int thread, int num_threads);
void parallel_run(int num_threads, ThreadTask task, void* context);

// Lets the `num_threads` threads of one parallel_run meet; reusable. Lives in the caller's frame.
class Barrier {
 public:
  explicit Barrier(int num_threads);
  void wait();

 private:
  int num_threads_;
  // (implementation: spin at most ~50 us, then sleep)
};

}  // namespace mxfp4moe
