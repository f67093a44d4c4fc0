#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <exception>
#include <initializer_list>

#include "platform/system.h"

namespace mxfp4moe::platform {
namespace {

// Signals are meant for the threads of the application, so others block them, except that a fault of such a thread
// itself must reach its handlers.
sigset_t all_but_faults() {
  sigset_t mask;
  sigfillset(&mask);
  for (int fault : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT}) sigdelset(&mask, fault);
  return mask;
}

}  // namespace

std::thread start_thread(void (*main)(void* argument), void* argument) {
  const sigset_t mask = all_but_faults();
  sigset_t saved;
  pthread_sigmask(SIG_SETMASK, &mask, &saved);  // a new thread has the mask of the one that makes it
  std::thread thread;
  try {
    thread = std::thread(main, argument);
  } catch (const std::exception&) {  // of the system, or no memory
  }
  pthread_sigmask(SIG_SETMASK, &saved, nullptr);
  return thread;
}

bool bind_thread(std::thread& thread, const uint64_t* words, size_t num_words) {
  const cpu_set_t* cpus = reinterpret_cast<const cpu_set_t*>(words);
  return pthread_setaffinity_np(thread.native_handle(), num_words * sizeof(*words), cpus) == 0;
}

void name_this_thread(const char* name) { pthread_setname_np(pthread_self(), name); }

void call_in_forked_children(void (*function)()) { pthread_atfork(nullptr, nullptr, function); }

}  // namespace mxfp4moe::platform
