// Standard C++, and fork where there is one: compiled for other systems, and not tested there.
#include "platform/system.h"

#include <cerrno>
#include <chrono>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace mxfp4moe::platform {
namespace {

constexpr int64_t kFileAlignment = 4096;

}  // namespace

size_t cpus_of_caller(uint64_t*, size_t) { return 0; }

int cpu_quota() { return INT_MAX; }

int current_cpu() { return -1; }

int node_ids(int*, int) { return 0; }

int current_node_id() { return -1; }

bool request_amx_permission() { return false; }

std::thread start_thread(void (*main)(void* argument), void* argument) {
  try {
    return std::thread(main, argument);
  } catch (const std::exception&) {  // of the system, or no memory
    return {};
  }
}

bool bind_thread(std::thread&, const uint64_t*, size_t) { return false; }

void name_this_thread(const char*) {}

void call_in_forked_children([[maybe_unused]] void (*function)()) {
#if defined(__unix__) || defined(__APPLE__)
  pthread_atfork(nullptr, nullptr, function);
#endif
}

int64_t clock_ms() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
}

uint8_t* map_pages(int64_t bytes, int64_t alignment) {
  const size_t size = static_cast<size_t>(bytes);
  void* p = ::operator new(size, std::align_val_t(static_cast<size_t>(alignment)), std::nothrow);
  return p == nullptr ? nullptr : static_cast<uint8_t*>(std::memset(p, 0, size));
}

void unmap_pages(uint8_t* data, int64_t, int64_t alignment) {
  ::operator delete(data, std::align_val_t(static_cast<size_t>(alignment)));
}

int map_file(int, int64_t, int64_t, uint8_t**) { return ENOSYS; }

void unmap_file(uint8_t*, int64_t) {}

bool expect_random_reads(uint8_t*, int64_t) { return false; }

bool request_pages(uint8_t*, int64_t) { return false; }

bool drop_pages(int, int64_t, uint8_t*, int64_t) { return false; }

int open_file(const char* path, FileContent* content) {
  std::FILE* file = std::fopen(path, "rb");
  if (file == nullptr) return errno;
  FileContent result;
  int error = std::fseek(file, 0, SEEK_END) == 0 ? 0 : EIO;
  result.bytes = error == 0 ? std::ftell(file) : 0;
  std::rewind(file);
  if (result.bytes > 0) {
    result.data = map_pages(result.bytes, kFileAlignment);
    const size_t size = static_cast<size_t>(result.bytes);
    if (result.data == nullptr) {
      error = ENOMEM;
    } else if (std::fread(result.data, 1, size, file) != size) {
      close_file(result);
      error = EIO;
    }
  }
  std::fclose(file);
  if (error == 0) *content = result;
  return error;
}

void close_file(const FileContent& content) {
  if (content.data != nullptr) unmap_pages(content.data, content.bytes, kFileAlignment);
}

double parse_number(const char* text) { return std::strtod(text, nullptr); }

bool exchange_names(const char*, const char*) { return false; }

}  // namespace mxfp4moe::platform
