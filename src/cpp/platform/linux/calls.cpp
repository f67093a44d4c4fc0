// What takes but one system call.
#include <fcntl.h>
#include <locale.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "platform/system.h"

namespace mxfp4moe::platform {

bool exchange_names([[maybe_unused]] const char* a, [[maybe_unused]] const char* b) {
#if defined(SYS_renameat2)
  constexpr unsigned int kRenameExchange = 2;  // of linux/fs.h; C libraries have renameat2 since 2018 or not at all
  return syscall(SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, kRenameExchange) == 0;
#else
  return false;
#endif
}

// Linux gives the tile registers only to processes that ask for them.
bool request_amx_permission() {
#if defined(__x86_64__)
  constexpr int kArchReqXcompPerm = 0x1023, kXfeatureXtiledata = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtiledata) == 0;
#else
  return false;
#endif
}

int64_t clock_ms() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);  // it takes a quarter of the time of the exact clock
  return int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1000000;
}

double parse_number(const char* text) {
  static const locale_t c_locale = newlocale(LC_ALL_MASK, "C", nullptr);
  return strtod_l(text, nullptr, c_locale);
}

}  // namespace mxfp4moe::platform
