// How a long call ends early: after Ctrl-C, say.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

#include "platform/exported.h"
#include "platform/system.h"

namespace mxfp4moe {

// This is a call of the library that may end early, in the frame of the thread that makes it. The application is asked
// now and then, on that thread alone, whether the call is to end; once it is, threads that work for the call leave
// the rest of their work undone. What the application does meanwhile may include calls of its own.
class InterruptibleCall {
 public:
  InterruptibleCall() : outer_(work_for(this)) {}
  ~InterruptibleCall() { work_for(outer_); }
  InterruptibleCall(const InterruptibleCall&) = delete;
  InterruptibleCall& operator=(const InterruptibleCall&) = delete;

  bool interrupted() const { return interrupted_.load(std::memory_order_relaxed); }

  // The question to the application; if it answers true the call ends. Null means that it is not asked.
  using Check = bool (*)();
  static void set_check(Check check) MXFP4MOE_EXPORTED(set_interrupt_check);

  // The call that the current thread works for, or null.
  static InterruptibleCall* current() { return current_; }
  // Makes `call` the one that this thread works for, and returns the former one. It is not inline, because the state of
  // a thread must exist only once, in the shared library.
  static InterruptibleCall* work_for(InterruptibleCall* call) MXFP4MOE_EXPORTED(work_for_call);

  static constexpr int64_t kPeriodMs = 50;  // from one question to the next

 private:
  friend bool keep_going();

  void ask() {
    const int64_t now = platform::clock_ms();
    if (now < next_ms_) return;
    const Check check = check_.load(std::memory_order_relaxed);
    // The first look only starts the period.
    if (next_ms_ != 0 && check != nullptr && check()) interrupted_.store(true, std::memory_order_relaxed);
    next_ms_ = now + kPeriodMs;
  }

  static inline thread_local InterruptibleCall* current_ = nullptr;
  static inline std::atomic<Check> check_{nullptr};

  InterruptibleCall* const outer_;
  const std::thread::id caller_ = std::this_thread::get_id();
  int64_t next_ms_ = 0;
  std::atomic<bool> interrupted_{false};
};

// Tells whether the call that the current thread works for is to go on. Threads ask between pieces of work, none of
// which may take longer than about 0.1 s.
inline bool keep_going() {
  InterruptibleCall* call = InterruptibleCall::current();
  if (call == nullptr) return true;
  if (!call->interrupted() && call->caller_ == std::this_thread::get_id()) call->ask();
  return !call->interrupted();
}

}  // namespace mxfp4moe
