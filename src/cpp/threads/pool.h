// The pool of threads. No other place knows how threads are made.
#pragma once

#include <atomic>
#include <cstdint>

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

// Threads of the host of this library: runs task(task_context, index) once for each index in [0, count), and returns
// when all have returned.
struct HostPool {
  void (*parallel_for)(void* context, int32_t count, void (*task)(void* task_context, int32_t index),
                       void* task_context);
  void* context;
};

// While it lives, the calls of this thread are computed by the threads of `host`, or by the pool if that is null. They
// need not run at the same time: a call is computed by those that come within a moment.
class UseHostPool {
 public:
  explicit UseHostPool(const HostPool* host);
  ~UseHostPool();
  UseHostPool(const UseHostPool&) = delete;
  UseHostPool& operator=(const UseHostPool&) = delete;

 private:
  const HostPool* outer_;
};

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
