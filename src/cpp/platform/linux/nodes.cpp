#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "platform/system.h"

namespace mxfp4moe::platform {

// The system gives a list such as 0-1,4.
int node_ids(int* ids, int limit) {
  std::FILE* file = std::fopen("/sys/devices/system/node/has_cpu", "re");
  if (file == nullptr) return 0;
  int count = 0, first = 0, last = 0;
  while (std::fscanf(file, "%d", &first) == 1) {
    last = first;
    int separator = std::fgetc(file);
    if (separator == '-') {
      if (std::fscanf(file, "%d", &last) != 1) break;
      separator = std::fgetc(file);
    }
    for (int id = std::max(first, 0); id <= last && id < limit && count < limit; ++id) ids[count++] = id;
    if (separator != ',') break;
  }
  std::fclose(file);
  return count;
}

int current_node_id() {
#if defined(SYS_getcpu)
  unsigned id = 0;
  if (syscall(SYS_getcpu, nullptr, &id, nullptr) == 0) return static_cast<int>(id);
#endif
  return -1;
}

}  // namespace mxfp4moe::platform
