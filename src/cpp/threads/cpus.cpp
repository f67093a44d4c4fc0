#include "threads/cpus.h"

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace mxfp4moe {
namespace {

constexpr int kNoLimit = INT_MAX;

#if defined(__linux__)

int affinity_cpus() {
  // The kernel refuses a mask smaller than its own; 2^18 processors are more than it can be built for.
  for (int bits = 1024; bits <= (1 << 18); bits *= 4) {
    cpu_set_t* set = CPU_ALLOC(bits);
    if (set == nullptr) break;
    const size_t bytes = CPU_ALLOC_SIZE(bits);
    const int count = sched_getaffinity(0, bytes, set) == 0 ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (count > 0) return count;
  }
  return kNoLimit;
}

// The first two words of a small file; false if it cannot be read.
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

// The limit set in one folder, by either version's files.
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

// The limits of a group and of all its ancestors. A container may see the path of its group as the host has it,
// of which nothing exists below the container's own mount: the walk then ends at the mount, which is the group.
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

// Whether a comma-separated list holds `word`.
bool lists(const char* list, const char* word) {
  const size_t length = std::strlen(word);
  for (const char* item = list; item != nullptr; item = std::strchr(item, ',')) {
    if (*item == ',') ++item;
    if (std::strncmp(item, word, length) == 0 && (item[length] == ',' || item[length] == '\0')) return true;
  }
  return false;
}

int cgroup_cpus() {
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

#else

int affinity_cpus() { return kNoLimit; }
int cgroup_cpus() { return kNoLimit; }

#endif

}  // namespace

int available_cpus() {
  static std::atomic<int> quota{0};  // 0: not looked up yet
  int limit = quota.load(std::memory_order_relaxed);
  if (limit == 0) {
    limit = cgroup_cpus();
    quota.store(limit, std::memory_order_relaxed);
  }
  limit = std::min(limit, affinity_cpus());
  if (limit == kNoLimit) limit = static_cast<int>(std::thread::hardware_concurrency());
  return std::max(limit, 1);
}

}  // namespace mxfp4moe
