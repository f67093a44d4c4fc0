#include "threads/pool.h"

#include <pthread.h>
#include <signal.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <mutex>
#include <new>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "threads/cpus.h"
#include "threads/interrupt.h"

namespace mxfp4moe {
namespace {

struct Job {
  ThreadTask task;
  void* context;
  int num_threads;
  InterruptibleCall* call;  // that of the thread that has the job done
};

// What a worker's word says. The worker sleeps on kAsleep, the caller that gave it work on kAwaited; the two
// never sleep at the same time. A worker object outlives every look at its word, unlike the caller's frame.
enum : uint32_t {
  kIdle,     // waits for work
  kAsleep,   // as kIdle, but must be woken
  kBusy,     // has work
  kAwaited,  // as kBusy, and the caller must be woken at its end
  kQuit,     // is to end
};

struct Worker {
  WaitWord word;
  pthread_t handle;
  AffinityMask affinity;  // that of the last caller, or of the thread that made it
  Job job;
  int thread;
  std::atomic<int> cpu{-1};  // where it fell asleep, or -1; it may have woken by itself before its caller reads this
  Worker* next;              // in the list of idle workers or in that of a caller
};

struct Pool {
  std::mutex lock;
  Worker* idle = nullptr;
  int num_callers = 0;
  int num_workers = 0;
};

// Never destroyed: workers and daemon threads may use it until the last moment of the process.
alignas(Pool) unsigned char g_pool_storage[sizeof(Pool)];
Pool& pool() { return *std::launder(reinterpret_cast<Pool*>(g_pool_storage)); }

// A child of fork has no workers, and the lock may be held by a thread that the child does not have. So it
// starts with a new pool; the objects of its parent's workers are left alone.
void reset_pool() { ::new (g_pool_storage) Pool; }
[[maybe_unused]] const int g_registered = (reset_pool(), pthread_atfork(nullptr, nullptr, reset_pool));

// The default floating-point environment while it lives, so that no result depends on a caller's rounding mode
// or flushing of subnormals, and no caller sees the flags of our arithmetic.
class DefaultFloatEnvironment {
 public:
#if defined(__x86_64__)
  DefaultFloatEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~DefaultFloatEnvironment() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  DefaultFloatEnvironment() {
    asm volatile("mrs %0, fpcr\n\tmrs %1, fpsr" : "=r"(control_), "=r"(status_) : : "memory");
    set(0, 0);
  }
  ~DefaultFloatEnvironment() { set(control_, status_); }

 private:
  static void set(uint64_t control, uint64_t status) {
    asm volatile("msr fpcr, %0\n\tmsr fpsr, %1" : : "r"(control), "r"(status) : "memory");
  }

  uint64_t control_, status_;
#endif
};

void run(const Job& job, int thread) {
  const DefaultFloatEnvironment environment;
  job.task(job.context, thread, job.num_threads);
}

#if defined(__linux__)
int current_cpu() { return sched_getcpu(); }
#else
int current_cpu() { return -1; }
#endif

// A scheduler may wake a worker on the processor that its caller keeps busy and run one after the other, at this
// call and at the next ones. So a worker that fell asleep there is woken with that processor barred.
void wake_elsewhere(Worker& worker, int busy_cpu) {
  const bool barred = worker.affinity.without(busy_cpu).bind(worker.handle);
  worker.word.wake_all();
  if (barred) worker.affinity.bind(worker.handle);
}

uint32_t wait_for_work(Worker& worker) {
  WaitWord& word = worker.word;
  uint32_t state = word.spin_while(kIdle);
  worker.cpu.store(current_cpu(), std::memory_order_relaxed);
  if (state == kIdle && word.value.compare_exchange_strong(state, kAsleep, std::memory_order_acq_rel)) {
    state = kAsleep;
  }
  while (state == kAsleep) {
    word.sleep_while(kAsleep);
    state = word.value.load(std::memory_order_acquire);
  }
  return state;
}

void* worker_main(void* argument) {
  Worker& worker = *static_cast<Worker*>(argument);
#if defined(__linux__)
  pthread_setname_np(pthread_self(), "mxfp4moe");
#endif
  while (wait_for_work(worker) != kQuit) {
    InterruptibleCall::work_for(worker.job.call);
    run(worker.job, worker.thread);
    if (worker.word.value.exchange(kIdle, std::memory_order_acq_rel) == kAwaited) worker.word.wake_all();
  }
  return nullptr;
}

// Spins for as long as is useful among `num_threads` threads that wait for each other.
uint32_t spin_among(const WaitWord& word, uint32_t expected, int num_threads) {
  const uint32_t state = word.spin_while(expected, WaitWord::kBriefSpin);
  if (state != expected || num_threads > available_cpus()) return state;
  return word.spin_while(expected);
}

// Sleeps while others work, which may take long: interrupts are asked for meanwhile.
void sleep_while_others_work(WaitWord& word, uint32_t expected) {
  word.sleep_while(expected, InterruptibleCall::kPeriodMs);
  keep_going();
}

// Gives a waiting worker something to do.
void signal(Worker& worker, uint32_t state) {
  if (worker.word.value.exchange(state, std::memory_order_acq_rel) != kAsleep) return;
  const int cpu = current_cpu();
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

// Signals are for the threads of the application; but a worker's own fault must reach its handlers.
sigset_t worker_signal_mask() {
  sigset_t mask;
  sigfillset(&mask);
  for (int fault : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT}) sigdelset(&mask, fault);
  return mask;
}

// Null if the system refuses. It has the affinity of the calling thread, which is `affinity`.
Worker* make_worker(const AffinityMask& affinity) {
  Worker* worker = new (std::nothrow) Worker{};
  if (worker == nullptr) return nullptr;
  worker->affinity = affinity;
  const sigset_t mask = worker_signal_mask();
  sigset_t saved;
  pthread_sigmask(SIG_SETMASK, &mask, &saved);
  const int error = pthread_create(&worker->handle, nullptr, worker_main, worker);
  pthread_sigmask(SIG_SETMASK, &saved, nullptr);
  if (error == 0) return worker;
  delete worker;
  return nullptr;
}

// The workers of one call, in the order of their thread numbers, which a caller that is alone sees again at
// its next call.
struct Team {
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

// A worker runs where its caller may.
void adopt(Worker& worker, const AffinityMask& affinity) {
  if (!(worker.affinity == affinity) && affinity.bind(worker.handle)) worker.affinity = affinity;
}

// At most `num_threads` - 1 workers, rather those that need not be bound to other processors than before. Several
// callers share the cores: more threads than cores would wait for each other at every barrier.
Team take_team(int num_threads) {
  Team team;
  const AffinityMask affinity = AffinityMask::of_caller();
  const int cpus = available_cpus(affinity);
  int num_new = 0;
  {
    std::lock_guard<std::mutex> hold(pool().lock);
    const int share = std::max(num_threads, cpus) / ++pool().num_callers;
    const int wanted = std::min(num_threads, std::max(share, 1)) - 1;
    const auto take_idle = [&](auto&& fits) {
      for (Worker** at = &pool().idle; team.size < wanted && *at != nullptr;) {
        Worker* worker = *at;
        if (fits(*worker)) {
          *at = worker->next;
          team.add(worker);
        } else {
          at = &worker->next;
        }
      }
    };
    take_idle([&](const Worker& worker) { return worker.affinity == affinity; });
    take_idle([](const Worker&) { return true; });
    num_new = wanted - team.size;
    pool().num_workers += num_new;
  }
  for (; num_new > 0; --num_new) {
    Worker* worker = make_worker(affinity);
    if (worker == nullptr) break;
    team.add(worker);
  }
  if (num_new > 0) {
    std::lock_guard<std::mutex> hold(pool().lock);
    pool().num_workers -= num_new;
  }
  for (Worker* worker = team.first; worker != nullptr; worker = worker->next) adopt(*worker, affinity);
  return team;
}

void return_team(const Team& team) {
  std::lock_guard<std::mutex> hold(pool().lock);
  --pool().num_callers;
  if (team.first == nullptr) return;
  team.last->next = pool().idle;
  pool().idle = team.first;
}

}  // namespace

void parallel_run(int num_threads, ThreadTask task, void* context) {
  InterruptibleCall* call = InterruptibleCall::current();
  if (num_threads <= 1) return run({task, context, 1, call}, 0);
  const Team team = take_team(num_threads);
  const Job job{task, context, team.size + 1, call};
  int thread = 0;
  for (Worker* worker = team.first; worker != nullptr; worker = worker->next) {
    worker->job = job;
    worker->thread = ++thread;
    signal(*worker, kBusy);
  }
  run(job, 0);
  for (Worker* worker = team.first; worker != nullptr; worker = worker->next)
    wait_until_done(worker->word, job.num_threads);
  return_team(team);
}

void release_workers() {
  Worker* worker = nullptr;
  {
    std::lock_guard<std::mutex> hold(pool().lock);
    std::swap(worker, pool().idle);
    for (Worker* w = worker; w != nullptr; w = w->next) --pool().num_workers;
  }
  for (Worker* w = worker; w != nullptr; w = w->next) signal(*w, kQuit);
  while (worker != nullptr) {
    Worker* next = worker->next;
    pthread_join(worker->handle, nullptr);
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
    // Sequentially consistent, as the sleepers' side: of "a new generation" and "somebody sleeps", one is seen.
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
