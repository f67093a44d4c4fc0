// What the library asks of the operating system: no other folder knows one. platform/linux/ answers on Linux, and
// platform/portable/ elsewhere, as far as standard C++ has an answer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <thread>

#include "platform/exported.h"

namespace mxfp4moe::platform {

// --- processors; a set of them has bit i % 64 of word i / 64 for number i ---

// Writes the processors that the calling thread may run on. Returns the number of words, 0 if the system does not tell.
size_t cpus_of_caller(uint64_t* words, size_t most_words);

// Returns how many processors the time that the process may use is worth, rounded up; INT_MAX if it has no limit.
int cpu_quota();

// Returns the number of the calling thread's processor, or -1.
int current_cpu();

// Writes the numbers of the NUMA nodes that have processors. Returns how many there are, at most `limit`.
int node_ids(int* ids, int limit);

// Returns the number of the node of the calling thread's processor, or -1.
int current_node_id();

// Asks for the permission to use AMX tiles.
bool request_amx_permission();

// --- threads ---

// Starts a thread that handles no signals but those of its own faults; it is not joinable if the system refuses it.
std::thread start_thread(void (*main)(void* argument), void* argument);

// Lets a thread run on these processors alone; false if that cannot be done.
bool bind_thread(std::thread& thread, const uint64_t* words, size_t num_words);

void name_this_thread(const char* name);

// Lets `function` be called in each child of fork.
void call_in_forked_children(void (*function)());

// Returns the milliseconds of a clock that never goes back, and that is cheap to read.
int64_t clock_ms();

// --- memory and files ---

// Returns zeroed memory of an alignment that is a power of two and divides `bytes`, on huge pages if it is large
// enough; null if there is no memory left.
uint8_t* map_pages(int64_t bytes, int64_t alignment);
void unmap_pages(uint8_t* data, int64_t bytes, int64_t alignment);

// Maps bytes [begin, begin + bytes) of an open file for reading, `begin` a multiple of the page size and `bytes` above
// 0. Unlike Python's own mapping this one keeps no descriptor, so that thousands of files can be mapped at a time. 0,
// or the errno.
int map_file(int descriptor, int64_t begin, int64_t bytes, uint8_t** data) MXFP4MOE_EXPORTED(map_file);
void unmap_file(uint8_t* data, int64_t bytes) MXFP4MOE_EXPORTED(unmap_file);

// The pages of a mapped file. `data` is a multiple of the page size, and so is `begin`, which is where it lies in the
// file. All of it is advice: what a page holds never changes. False if the system cannot take it.
// Asks that reads of these pages bring no others with them.
bool expect_random_reads(uint8_t* data, int64_t bytes) MXFP4MOE_EXPORTED(expect_random_reads);
// Begins to read these pages, and does not wait.
bool request_pages(uint8_t* data, int64_t bytes) MXFP4MOE_EXPORTED(request_pages);
// Gives back the memory of these pages, also that of the file's cache, unless another process has them mapped.
bool drop_pages(int descriptor, int64_t begin, uint8_t* data, int64_t bytes) MXFP4MOE_EXPORTED(drop_pages);

// The bytes of a regular file, mapped, or read where they cannot be mapped.
struct FileContent {
  uint8_t* data = nullptr;  // null if there are none
  int64_t bytes = 0;
  bool is_mapped = false;
};

// Returns 0, or the errno: EINVAL or EISDIR if it is no regular file.
int open_file(const char* path, FileContent* content);
void close_file(const FileContent& content);

// The number that `text` begins with, whatever the locale; its form is the caller's to check.
double parse_number(const char* text);

// Lets two names of the file system change places. At no moment does either lead to nothing. False, and nothing is
// changed, if the system cannot do that.
bool exchange_names(const char* a, const char* b) MXFP4MOE_EXPORTED(exchange_names);

}  // namespace mxfp4moe::platform
