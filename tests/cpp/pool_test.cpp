// A stress test of the thread pool. `pool_test measure` prints the idle CPU time and the latency of a start instead;
// `pool_test emulated` leaves out what fails in qemu-user itself.
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "threads/cpus.h"
#include "threads/interrupt.h"
#include "threads/pool.h"

using mxfp4moe::Barrier;
using mxfp4moe::InterruptibleCall;
using mxfp4moe::keep_going;
using mxfp4moe::parallel_run;
using Clock = std::chrono::steady_clock;

#define CHECK(condition)                                                           \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                \
    }                                                                              \
  } while (0)

namespace {

#if defined(__SANITIZE_THREAD__)
constexpr int kRounds = 200;
constexpr bool kThreadSanitizer = true;
#else
constexpr int kRounds = 2000;
constexpr bool kThreadSanitizer = false;
#endif
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kAddressSanitizer = true;
#else
constexpr bool kAddressSanitizer = false;
#endif
constexpr int kMaxThreads = 8;

// This is a call. Each thread counts itself, then all meet at a barrier several times; what one of them wrote before a
// barrier, all must read after it.
struct Call {
  Barrier barrier;
  int asked;
  int given = 0;
  int runs[kMaxThreads] = {};
  int values[kMaxThreads] = {};
};

void count_and_meet(void* context, int thread, int num_threads) {
  Call& call = *static_cast<Call*>(context);
  CHECK(num_threads >= 1 && num_threads <= call.asked);
  CHECK(thread >= 0 && thread < num_threads);
  ++call.runs[thread];
  if (thread == 0) call.given = num_threads;
  for (int round = 1; round <= 4; ++round) {
    call.values[thread] = round;
    call.barrier.wait(num_threads);
    for (int t = 0; t < num_threads; ++t) CHECK(call.values[t] == round);
    call.barrier.wait(num_threads);
  }
}

int run_once(int num_threads) {
  Call call;
  call.asked = num_threads;
  parallel_run(num_threads, count_and_meet, &call);
  for (int t = 0; t < kMaxThreads; ++t) CHECK(call.runs[t] == (t < call.given ? 1 : 0));
  return call.given;
}

void test_lazy_start() {
  CHECK(mxfp4moe::num_workers() == 0);
  CHECK(run_once(1) == 1);
  CHECK(mxfp4moe::num_workers() == 0);
  CHECK(run_once(3) == 3);
  CHECK(run_once(2) == 2);
  CHECK(mxfp4moe::num_workers() == 2);
}

void test_one_caller() {
  for (int round = 0; round < kRounds; ++round) {
    const int num_threads = 1 + round % 4;
    CHECK(run_once(num_threads) == num_threads);
    if (round % 100 == 0) usleep(200);  // long enough for the workers to fall asleep
  }
}

void test_several_callers() {
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([c] {
      for (int round = 0; round < kRounds / 4; ++round) run_once(1 + (round + c) % 4);
    });
  }
  for (std::thread& caller : callers) caller.join();
}

void test_nested() {
  parallel_run(2, [](void*, int, int) { run_once(2); }, nullptr);
}

void test_release() {
  for (int round = 0; round < 20; ++round) {
    CHECK(run_once(4) == 4);
    CHECK(mxfp4moe::num_workers() >= 3);
    mxfp4moe::release_workers();
    CHECK(mxfp4moe::num_workers() == 0);
  }
}

void test_release_while_running() {
  std::atomic<bool> stop{false};
  std::thread caller([&] {
    while (!stop) run_once(2);
  });
  for (int round = 0; round < 50; ++round) mxfp4moe::release_workers();
  stop = true;
  caller.join();
}

void test_signals_blocked() {
  parallel_run(
      2,
      [](void*, int thread, int) {
        sigset_t mask;
        pthread_sigmask(SIG_BLOCK, nullptr, &mask);
        CHECK(sigismember(&mask, SIGINT) == (thread == 0 ? 0 : 1));
        CHECK(sigismember(&mask, SIGSEGV) == 0);
      },
      nullptr);
}

std::atomic<int> questions{0};

// All threads work until the call is to end, but for thread 0, which waits for the others if there are some.
void work_until_interrupted(void* context, int thread, int num_threads) {
  Barrier& barrier = *static_cast<Barrier*>(context);
  if (thread != 0 || num_threads == 1) {
    while (keep_going()) {
    }
  }
  barrier.wait(num_threads);
  CHECK(!keep_going());
}

void test_interrupt() {
  CHECK(keep_going());  // outside of a call
  InterruptibleCall::set_check([] { return ++questions % 3 == 0; });
  for (int num_threads : {1, 2, 4}) {
    InterruptibleCall call;
    Barrier barrier;
    parallel_run(num_threads, work_until_interrupted, &barrier);
    CHECK(call.interrupted() && questions == 3);
    parallel_run(num_threads, work_until_interrupted, &barrier);  // what the call still has to do
    CHECK(questions == 3);
    questions = 0;
  }
  // The application makes a call of its own while it is asked.
  InterruptibleCall::set_check([] {
    InterruptibleCall inner;
    CHECK(run_once(2) >= 1 && keep_going());
    return true;
  });
  {
    InterruptibleCall call;
    Barrier barrier;
    parallel_run(2, work_until_interrupted, &barrier);
    CHECK(call.interrupted());
  }
  InterruptibleCall::set_check(nullptr);
  CHECK(InterruptibleCall::current() == nullptr && run_once(3) == 3);
}

#if defined(__linux__)
cpu_set_t affinity_of(pthread_t thread) {
  cpu_set_t mask;
  CHECK(pthread_getaffinity_np(thread, sizeof(mask), &mask) == 0);
  return mask;
}

struct Team {
  pthread_t threads[kMaxThreads];
  cpu_set_t masks[kMaxThreads];  // during the call
  int size;
};

bool same_but_for_one(const cpu_set_t& mask, const cpu_set_t& whole) {
  cpu_set_t common;
  CPU_AND(&common, &mask, &whole);
  return CPU_EQUAL(&common, &mask) && CPU_COUNT(&mask) >= CPU_COUNT(&whole) - 1;
}

// During a call the workers' masks are the caller's, but one may lack the processor that wakes it. After the call they
// are the caller's until another caller takes the workers, so only a caller that is `alone` looks then.
void test_affinity_of_team(bool alone) {
  Team team;
  parallel_run(
      3,
      [](void* context, int thread, int num_threads) {
        Team& team = *static_cast<Team*>(context);
        team.threads[thread] = pthread_self();
        team.masks[thread] = affinity_of(pthread_self());
        if (thread == 0) team.size = num_threads;
      },
      &team);
  const cpu_set_t expected = affinity_of(pthread_self());
  for (int t = 0; t < team.size; ++t) {
    CHECK(same_but_for_one(team.masks[t], expected));
    if (!alone) continue;
    const cpu_set_t mask = affinity_of(team.threads[t]);
    CHECK(CPU_EQUAL(&mask, &expected));
  }
}

// Calls from a thread that is bound to `cpu`.
std::thread bound_caller(int cpu, int rounds, bool alone) {
  return std::thread([=] {
    cpu_set_t mask;
    CPU_ZERO(&mask);
    CPU_SET(cpu, &mask);
    CHECK(pthread_setaffinity_np(pthread_self(), sizeof(mask), &mask) == 0);
    for (int round = 0; round < rounds; ++round) test_affinity_of_team(alone);
  });
}

void test_affinity() {
  const cpu_set_t all = affinity_of(pthread_self());
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &all)) cpus.push_back(cpu);
  }
  mxfp4moe::release_workers();
  for (const int cpu : {cpus.front(), cpus.back()}) {
    bound_caller(cpu, 1, true).join();
    test_affinity_of_team(true);
  }
  std::thread callers[] = {bound_caller(cpus.front(), 50, false), bound_caller(cpus.back(), 50, false)};
  for (int round = 0; round < 50; ++round) test_affinity_of_team(false);
  for (std::thread& caller : callers) caller.join();
}
#endif

#if defined(__x86_64__)
constexpr uint64_t kDefaultFloats = 0x1f80, kFlushAndRoundUp = 0x1f80 | 0x8040 | 0x4000;

uint64_t float_environment() { return _mm_getcsr(); }
void set_float_environment(uint64_t word) { _mm_setcsr(static_cast<unsigned>(word)); }
#elif defined(__aarch64__)
// The upper half is FPCR, the lower half FPSR.
constexpr uint64_t kDefaultFloats = 0, kFlushAndRoundUp = uint64_t{1 << 24 | 1 << 22} << 32;

uint64_t float_environment() {
  uint64_t control, status;
  asm volatile("mrs %0, fpcr\n\tmrs %1, fpsr" : "=r"(control), "=r"(status) : : "memory");
  return control << 32 | status;
}
void set_float_environment(uint64_t word) {
  asm volatile("msr fpcr, %0\n\tmsr fpsr, %1" : : "r"(word >> 32), "r"(word & 0xffffffffu) : "memory");
}
#endif

#if defined(__x86_64__) || defined(__aarch64__)
void test_float_environment() {
  set_float_environment(kFlushAndRoundUp);
  mxfp4moe::release_workers();  // new threads inherit the caller's environment
  for (int num_threads : {1, 3}) {
    parallel_run(
        num_threads,
        [](void*, int, int) {
          CHECK(float_environment() == kDefaultFloats);
          volatile float tiny = 1e-38f;
          tiny = tiny * 0.3f;  // raises flags, which the caller is not to see
          CHECK(float_environment() != kDefaultFloats);
          CHECK(tiny > 0);
        },
        nullptr);
    CHECK(float_environment() == kFlushAndRoundUp);
  }
  set_float_environment(kDefaultFloats);
}
#endif

// Runs `body` in a child, which must end well within ten seconds.
template <class Body>
void in_child(Body body) {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    alarm(10);
    body();
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

void test_fork() {
  run_once(2);
  in_child([] {
    CHECK(mxfp4moe::num_workers() == 0);
    for (int round = 0; round < 10; ++round) CHECK(run_once(3) == 3);
    in_child([] { CHECK(run_once(2) == 2); });
  });
  CHECK(run_once(2) == 2);
}

void test_fork_while_running() {
  std::atomic<bool> stop{false};
  std::vector<std::thread> callers;
  for (int c = 0; c < 2; ++c) {
    callers.emplace_back([&] {
      while (!stop) run_once(2);
    });
  }
  for (int round = 0; round < 50; ++round) in_child([] { CHECK(run_once(2) == 2); });
  stop = true;
  for (std::thread& caller : callers) caller.join();
}

// With no address space left for a stack, the system refuses to make threads. To be called before any thread was
// made, as the stacks of those that ended are used again.
void test_thread_refused() {
  in_child([] {
    rlimit limit{1, 1};
    CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
    CHECK(run_once(4) == 1);
    CHECK(mxfp4moe::num_workers() == 0);
  });
}

double cpu_ms() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}

double us_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

struct Start {
  Clock::time_point called;
  double us;
};

void note_start(void* context, int thread, int) {
  Start& start = *static_cast<Start*>(context);
  if (thread == 1) start.us = us_since(start.called);
}

void meet_often(void* context, int, int num_threads) {
  for (int i = 0; i < 10000; ++i) static_cast<Barrier*>(context)->wait(num_threads);
}

void measure() {
  constexpr int kCalls = 200;
  double start_us = 0, call_ms = 0, idle_ms = 0;
  run_once(2);
  double before = cpu_ms();
  for (int call = 0; call < kCalls; ++call) {
    usleep(20000);
    const double idle = cpu_ms();
    Start start{Clock::now(), 0};
    parallel_run(2, note_start, &start);
    const double after = cpu_ms();
    start_us += start.us;
    idle_ms += idle - before;
    call_ms += after - idle;
    before = after;
  }
  std::printf("after 20 ms of idleness: start %.1f us, CPU in the call %.3f ms, CPU until the next %.3f ms\n",
              start_us / kCalls, call_ms / kCalls, idle_ms / kCalls);
  Clock::time_point start = Clock::now();
  for (int call = 0; call < 10000; ++call) parallel_run(2, [](void*, int, int) {}, nullptr);
  std::printf("back to back: %.2f us per call\n", us_since(start) / 10000);
  Barrier barrier;
  start = Clock::now();
  parallel_run(2, meet_often, &barrier);
  std::printf("barrier: %.2f us\n", us_since(start) / 10000);
  std::printf("available CPUs: %d\n", mxfp4moe::available_cpus());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "measure") == 0) {
    measure();
    return 0;
  }
  const bool emulated = argc > 1 && std::strcmp(argv[1], "emulated") == 0;
  // Sanitizers need address space themselves; qemu-user does not limit it.
  if (!emulated && !kThreadSanitizer && !kAddressSanitizer) test_thread_refused();
  test_lazy_start();
  test_one_caller();
  test_several_callers();
  test_nested();
  test_release();
  test_release_while_running();
  test_signals_blocked();
  test_interrupt();
#if defined(__linux__)
  test_affinity();
#endif
#if defined(__x86_64__) || defined(__aarch64__)
  test_float_environment();
#endif
  // ThreadSanitizer does not follow a child of a process with threads, and qemu-user breaks off in its new threads.
  if (!emulated && !kThreadSanitizer) {
    test_fork();
    // A child made while another thread is in AddressSanitizer's allocator finds it locked for ever.
    if (!kAddressSanitizer) test_fork_while_running();
  }
  CHECK(mxfp4moe::available_cpus() >= 1);
  std::puts("ok");
  return 0;
}
