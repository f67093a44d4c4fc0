#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "platform/system.h"

namespace mxfp4moe::platform {
namespace {

constexpr int kNoLimit = INT_MAX;

// Reads the first two words of a small file; returns false if it cannot be read.
bool read_words(const char* path, char (&first)[32], char (&second)[32]) {
  first[0] = second[0] = '\0';
  std::FILE* file = std::fopen(path, "re");
  if (file == nullptr) return false;
  const int count = std::fscanf(file, "%31s %31s", first, second);
  std::fclose(file);
  return count >= 1;
}

int quota_cpus(const char* quota, const char* period) {
  const long long q = std::strtoll(quota, nullptr, 10);  // "max" and "-1" mean no limit
  const long long p = std::strtoll(period, nullptr, 10);
  if (q <= 0 || p <= 0) return kNoLimit;
  const long long cpus = q / p + (q % p != 0);
  return cpus < kNoLimit ? static_cast<int>(cpus) : kNoLimit;
}

// Returns the limit that is set in one folder, by the files of either version of control groups.
int folder_cpus(const char* folder) {
  char path[4200], quota[32], period[32], rest[32];
  std::snprintf(path, sizeof(path), "%s/cpu.max", folder);
  if (read_words(path, quota, period)) return quota_cpus(quota, period);
  std::snprintf(path, sizeof(path), "%s/cpu.cfs_quota_us", folder);
  if (!read_words(path, quota, rest)) return kNoLimit;
  std::snprintf(path, sizeof(path), "%s/cpu.cfs_period_us", folder);
  if (!read_words(path, period, rest)) return kNoLimit;
  return quota_cpus(quota, period);
}

// Returns the smallest limit of a group and all its ancestors. A container may see the path of its group as the host
// has it, of which nothing exists below the container's own mount; the walk then ends at the mount, which is the group.
int hierarchy_cpus(const char* mount, const char* group) {
  char folder[4096];
  if (std::strstr(group, "..") != nullptr) group = "";
  const int length = std::snprintf(folder, sizeof(folder), "%s%s", mount, group);
  if (length < 0 || length >= static_cast<int>(sizeof(folder))) return folder_cpus(mount);
  int cpus = kNoLimit;
  for (;;) {
    cpus = std::min(cpus, folder_cpus(folder));
    if (std::strlen(folder) <= std::strlen(mount)) return cpus;
    *std::strrchr(folder, '/') = '\0';
  }
}

// Tells whether a comma-separated list holds `word`.
bool lists(const char* list, const char* word) {
  const size_t length = std::strlen(word);
  for (const char* item = list; item != nullptr; item = std::strchr(item, ',')) {
    if (*item == ',') ++item;
    if (std::strncmp(item, word, length) == 0 && (item[length] == ',' || item[length] == '\0')) return true;
  }
  return false;
}

int control_group_cpus() {
  std::FILE* file = std::fopen("/proc/self/cgroup", "re");
  if (file == nullptr) return kNoLimit;
  int cpus = kNoLimit;
  char line[4096];
  while (std::fgets(line, sizeof(line), file) != nullptr) {  // id:controllers:group
    line[std::strcspn(line, "\n")] = '\0';
    char* controllers = std::strchr(line, ':');
    char* group = controllers != nullptr ? std::strchr(controllers + 1, ':') : nullptr;
    if (group == nullptr) continue;
    *controllers++ = *group++ = '\0';
    if (*controllers == '\0') {
      cpus = std::min(cpus, hierarchy_cpus("/sys/fs/cgroup", group));
    } else if (lists(controllers, "cpu")) {
      cpus = std::min(cpus, hierarchy_cpus("/sys/fs/cgroup/cpu", group));
      cpus = std::min(cpus, hierarchy_cpus("/sys/fs/cgroup/cpu,cpuacct", group));
    }
  }
  std::fclose(file);
  return cpus;
}

}  // namespace

size_t cpus_of_caller(uint64_t* words, size_t most_words) {
  // The system call itself: unlike the C library's function it tells how much of the mask the kernel has.
  const long bytes = syscall(SYS_sched_getaffinity, 0, most_words * sizeof(*words), words);
  return bytes > 0 ? static_cast<size_t>(bytes) / sizeof(*words) : 0;
}

int cpu_quota() { return control_group_cpus(); }

int current_cpu() { return sched_getcpu(); }

}  // namespace mxfp4moe::platform
