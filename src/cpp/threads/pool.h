// The pool of threads. No other place knows how threads are made.
#pragma once

#include <atomic>

#include "platform/exported.h"
#include "threads/wait_word.h"

namespace mxfp4moe {

// Runs task(context, thread, num_threads) once for each thread in [0, num_threads); the caller is thread 0. Returns
// when all are done. The `num_threads` that the task is given may be smaller than what was asked for (if the system
// refuses a thread, or several callers share the cores), but never larger. Several threads may call this at once, as
// may a child after fork. `task` must not throw; it runs in the default floating-point environment, and for the
// InterruptibleCall of the caller.
using ThreadTask = void (*)(void* context, int thread, int num_threads);
void parallel_run(int num_threads, ThreadTask task, void* context);

// Ends the workers that wait for work and waits until they are gone; a later call makes new ones.
void release_workers() MXFP4MOE_EXPORTED(release_workers);

// Counts the workers that exist in this process, waiting or running.
int num_workers() MXFP4MOE_EXPORTED(num_workers);

// Lets the threads of one parallel_run meet, as often as they like. It lives in the frame of the caller.
class Barrier {
 public:
  // `num_threads` is the number that the task was given, which may be less than was asked for.
  void wait(int num_threads);

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) WaitWord generation_;
  std::atomic<int> sleepers_{0};
};

}  // namespace mxfp4moe
