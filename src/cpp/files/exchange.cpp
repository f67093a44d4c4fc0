#include "files/exchange.h"

#if defined(__linux__)
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mxfp4moe {

bool exchange_names([[maybe_unused]] const char* a, [[maybe_unused]] const char* b) {
#if defined(SYS_renameat2)
  constexpr unsigned int kRenameExchange = 2;  // of linux/fs.h; C libraries have renameat2 since 2018 or not at all
  return syscall(SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, kRenameExchange) == 0;
#else
  return false;
#endif
}

}  // namespace mxfp4moe
