#include "threads/pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <new>
#include <thread>

#include "platform/system.h"
#include "threads/cpus.h"
#include "threads/float_environment.h"
#include "threads/interrupt.h"

namespace mxfp4moe {
namespace {

// What the threads of one call do.
struct Job {
  ThreadTask task;
  void* context;
  int num_threads;
  InterruptibleCall* call;  // the call of the thread that has the job done
};

// The state of a worker, which is its word. A worker waits on it for work, and the caller that gave it work waits on
// the same word for the end of that work; the two never sleep at the same time. A worker object outlives every look at
// its word, unlike the frame of the caller.
//
//                    the caller hands over work         the worker has finished
//          kIdle ------------------------------> kBusy ------------------------> kIdle
//            |                                     |
//            | the worker has spun long enough     | the caller has spun long enough
//            v                                     v
//         kAsleep                               kAwaited ----------------------> kIdle
//      the worker sleeps;                    the caller sleeps;    the worker has finished
//   work takes it to kBusy and wakes it                            and wakes the caller
//
//   release_workers takes kIdle and kAsleep to kQuit, and wakes a worker that sleeps; then its thread ends.
enum : uint32_t {
  kIdle,     // the worker waits for work
  kAsleep,   // the worker waits for work and must be woken
  kBusy,     // the worker has work
  kAwaited,  // the worker has work, and must wake the caller at its end
  kQuit,     // the thread of the worker is to end
};

struct Worker {
  WaitWord word;
  std::thread handle;
  AffinityMask affinity;  // the affinity of the last caller, or of the thread that made the worker
  Job job;
  int thread;
  std::atomic<int> cpu{
      -1};       // the processor where it fell asleep, or -1; it may have woken by itself before its caller reads this
  Worker* next;  // the next one in the list of idle workers or in that of a caller
};

struct Pool {
  std::mutex lock;
  Worker* idle = nullptr;
  int num_callers = 0;
  int num_workers = 0;
};

// The pool is never destroyed, because workers and daemon threads may use it until the last moment of the process.
alignas(Pool) unsigned char g_pool_storage[sizeof(Pool)];
Pool& pool() { return *std::launder(reinterpret_cast<Pool*>(g_pool_storage)); }

// A child of fork has no workers, and the lock may be held by a thread that the child does not have. So the child
// starts with a new pool; the objects of its parent's workers are left alone.
void reset_pool() { ::new (g_pool_storage) Pool; }
[[maybe_unused]] const int g_registered = (reset_pool(), platform::call_in_forked_children(reset_pool), 0);

void run(const Job& job, int thread) {
  const DefaultFloatEnvironment environment;
  job.task(job.context, thread, job.num_threads);
}

// A scheduler may wake a worker on the processor that its caller keeps busy, and run the two one after the other, in
// this call and in the next ones. So a worker that fell asleep there is woken with that processor barred.
void wake_elsewhere(Worker& worker, int busy_cpu) {
  const bool barred = worker.affinity.without(busy_cpu).bind(worker.handle);
  worker.word.wake_all();
  if (barred) worker.affinity.bind(worker.handle);
}

uint32_t wait_for_work(Worker& worker) {
  WaitWord& word = worker.word;
  uint32_t state = word.spin_while(kIdle);
  worker.cpu.store(platform::current_cpu(), std::memory_order_relaxed);
  if (state == kIdle && word.value.compare_exchange_strong(state, kAsleep, std::memory_order_acq_rel)) {
    state = kAsleep;
  }
  while (state == kAsleep) {
    word.sleep_while(kAsleep);
    state = word.value.load(std::memory_order_acquire);
  }
  return state;
}

void worker_main(void* argument) {
  Worker& worker = *static_cast<Worker*>(argument);
  platform::name_this_thread("mxfp4moe");
  while (wait_for_work(worker) != kQuit) {
    InterruptibleCall::work_for(worker.job.call);
    run(worker.job, worker.thread);
    if (worker.word.value.exchange(kIdle, std::memory_order_acq_rel) == kAwaited) worker.word.wake_all();
  }
}

// Spins for as long as is useful among `num_threads` threads that wait for each other.
uint32_t spin_among(const WaitWord& word, uint32_t expected, int num_threads) {
  const uint32_t state = word.spin_while(expected, WaitWord::kBriefSpin);
  if (state != expected || num_threads > available_cpus()) return state;
  return word.spin_while(expected);
}

// Sleeps while others work. As that may take long, it looks for interrupts meanwhile.
void sleep_while_others_work(WaitWord& word, uint32_t expected) {
  word.sleep_while(expected, InterruptibleCall::kPeriodMs);
  keep_going();
}

// Sets the state of a waiting worker, which gives it work or ends it, and wakes it if it sleeps.
void hand_over(Worker& worker, uint32_t state) {
  if (worker.word.value.exchange(state, std::memory_order_acq_rel) != kAsleep) return;
  const int cpu = platform::current_cpu();
  if (cpu >= 0 && cpu == worker.cpu.load(std::memory_order_relaxed)) {
    wake_elsewhere(worker, cpu);
  } else {
    worker.word.wake_all();
  }
}

void wait_until_done(WaitWord& word, int num_threads) {
  uint32_t state = spin_among(word, kBusy, num_threads);
  if (state == kBusy && word.value.compare_exchange_strong(state, kAwaited, std::memory_order_acquire)) {
    state = kAwaited;
  }
  while (state == kAwaited) {
    sleep_while_others_work(word, kAwaited);
    state = word.value.load(std::memory_order_acquire);
  }
}

// Makes a worker with the affinity of the calling thread, which is `affinity`. Returns null if the system refuses.
Worker* make_worker(const AffinityMask& affinity) {
  Worker* worker = new (std::nothrow) Worker{};
  if (worker == nullptr) return nullptr;
  worker->affinity = affinity;
  worker->handle = platform::start_thread(worker_main, worker);
  if (worker->handle.joinable()) return worker;
  delete worker;
  return nullptr;
}

// The workers of one call, in the order of their thread numbers. A caller that is alone gets the same workers in the
// same order at its next call.
struct WorkerList {
  Worker* first = nullptr;
  Worker* last = nullptr;
  int size = 0;

  void add(Worker* worker) {
    worker->next = nullptr;
    (last != nullptr ? last->next : first) = worker;
    last = worker;
    ++size;
  }
};

// Lets a worker run on the processors that its caller may use.
void adopt(Worker& worker, const AffinityMask& affinity) {
  if (!(worker.affinity == affinity) && affinity.bind(worker.handle)) worker.affinity = affinity;
}

// Takes at most `num_threads` - 1 workers, preferably those that need not be bound to other processors than before.
// Several callers share the cores, because more threads than cores would wait for each other at every barrier.
WorkerList take_workers(int num_threads) {
  WorkerList workers;
  const AffinityMask affinity = AffinityMask::of_caller();
  const int cpus = available_cpus(affinity);
  int num_new = 0;
  {
    std::lock_guard<std::mutex> hold(pool().lock);
    const int share = std::max(num_threads, cpus) / ++pool().num_callers;
    const int target = std::min(num_threads, std::max(share, 1)) - 1;
    const auto take_idle = [&](auto&& fits) {
      for (Worker** at = &pool().idle; workers.size < target && *at != nullptr;) {
        Worker* worker = *at;
        if (fits(*worker)) {
          *at = worker->next;
          workers.add(worker);
        } else {
          at = &worker->next;
        }
      }
    };
    take_idle([&](const Worker& worker) { return worker.affinity == affinity; });
    take_idle([](const Worker&) { return true; });
    num_new = target - workers.size;
    pool().num_workers += num_new;
  }
  for (; num_new > 0; --num_new) {
    Worker* worker = make_worker(affinity);
    if (worker == nullptr) break;
    workers.add(worker);
  }
  if (num_new > 0) {
    std::lock_guard<std::mutex> hold(pool().lock);
    pool().num_workers -= num_new;
  }
  for (Worker* worker = workers.first; worker != nullptr; worker = worker->next) adopt(*worker, affinity);
  return workers;
}

void return_workers(const WorkerList& workers) {
  std::lock_guard<std::mutex> hold(pool().lock);
  --pool().num_callers;
  if (workers.first == nullptr) return;
  workers.last->next = pool().idle;
  pool().idle = workers.first;
}

thread_local const HostPool* current_host = nullptr;

// The threads of a host that work for one call. Which of them come, and when, is the host's affair: the first one
// waits for a moment, and those that have come by then are the team.
class HostTeam {
 public:
  HostTeam(const Job& job) : job_(job) {}

  // What each task of the host does.
  static void join(void* team, int32_t) { static_cast<HostTeam*>(team)->join(); }

  // Ends the call on the thread that made it. If the host has run no task until now, this thread computes everything.
  void finish() {
    join();
    // A host that returned too early must not take the frame of the call from those who work in it.
    for (uint32_t size = 0; size == 0 || num_done_.load(std::memory_order_acquire) != size;) {
      size = size_.value.load(std::memory_order_acquire);
      if (size == 0 || num_done_.load(std::memory_order_acquire) != size) std::this_thread::yield();
    }
  }

 private:
  static constexpr uint32_t kClosed = 1u << 31;

  void join() {
    uint32_t state = members_.value.load(std::memory_order_relaxed);
    do {
      if (state >= static_cast<uint32_t>(job_.num_threads)) return;  // complete, or closed
    } while (!members_.value.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel));
    const uint32_t thread = state;
    if (thread == 0) {
      close();
    } else {
      while (size_.spin_while(0) == 0) size_.sleep_while(0);
    }
    Job job = job_;
    job.num_threads = static_cast<int>(size_.value.load(std::memory_order_acquire));
    InterruptibleCall* outer = InterruptibleCall::work_for(job.call);
    run(job, static_cast<int>(thread));
    InterruptibleCall::work_for(outer);
    num_done_.fetch_add(1, std::memory_order_acq_rel);
  }

  void close() {
    const auto deadline = std::chrono::steady_clock::now() + WaitWord::kSpin;
    const uint32_t target = static_cast<uint32_t>(job_.num_threads);
    while (members_.value.load(std::memory_order_relaxed) < target && std::chrono::steady_clock::now() < deadline) {
    }
    const uint32_t size = members_.value.fetch_or(kClosed, std::memory_order_acq_rel);
    size_.value.store(size, std::memory_order_release);
    size_.wake_all();
  }

  const Job job_;
  WaitWord members_;  // how many have come, and kClosed
  WaitWord size_;     // of the team, once it is closed
  std::atomic<uint32_t> num_done_{0};
};

}  // namespace

UseHostPool::UseHostPool(const HostPool* host) : outer_(current_host) { current_host = host; }
UseHostPool::~UseHostPool() { current_host = outer_; }

void parallel_run(int num_threads, ThreadTask task, void* context) {
  InterruptibleCall* call = InterruptibleCall::current();
  if (num_threads <= 1) return run({task, context, 1, call}, 0);
  if (const HostPool* host = current_host) {
    HostTeam team({task, context, num_threads, call});
    host->parallel_for(host->context, num_threads, HostTeam::join, &team);
    return team.finish();
  }
  const WorkerList workers = take_workers(num_threads);
  const Job job{task, context, workers.size + 1, call};
  int thread = 0;
  for (Worker* worker = workers.first; worker != nullptr; worker = worker->next) {
    worker->job = job;
    worker->thread = ++thread;
    hand_over(*worker, kBusy);
  }
  run(job, 0);
  for (Worker* worker = workers.first; worker != nullptr; worker = worker->next)
    wait_until_done(worker->word, job.num_threads);
  return_workers(workers);
}

void release_workers() {
  Worker* worker = nullptr;
  {
    std::lock_guard<std::mutex> hold(pool().lock);
    std::swap(worker, pool().idle);
    for (Worker* w = worker; w != nullptr; w = w->next) --pool().num_workers;
  }
  for (Worker* w = worker; w != nullptr; w = w->next) hand_over(*w, kQuit);
  while (worker != nullptr) {
    Worker* next = worker->next;
    worker->handle.join();
    delete worker;
    worker = next;
  }
}

int num_workers() {
  std::lock_guard<std::mutex> hold(pool().lock);
  return pool().num_workers;
}

void Barrier::wait(int num_threads) {
  if (num_threads <= 1) return;
  const uint32_t generation = generation_.value.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_threads) {
    arrived_.store(0, std::memory_order_relaxed);
    // This and the sleepers' side are sequentially consistent: either they see the new generation, or this sees a
    // sleeper.
    generation_.value.store(generation + 1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) generation_.wake_all();
    return;
  }
  if (spin_among(generation_, generation, num_threads) != generation) return;
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  while (generation_.value.load(std::memory_order_seq_cst) == generation) {
    sleep_while_others_work(generation_, generation);
  }
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace mxfp4moe
