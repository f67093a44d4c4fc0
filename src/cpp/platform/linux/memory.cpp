#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "platform/system.h"

namespace mxfp4moe::platform {

uint8_t* map_pages(int64_t bytes, int64_t alignment) {
  // The system's own alignment, a page, is enough for small blocks. Others are cut out of a larger one.
  const int64_t spare = alignment > sysconf(_SC_PAGESIZE) ? alignment : 0;
  const size_t size = static_cast<size_t>(bytes + spare);
  void* p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  uint8_t* data = static_cast<uint8_t*>(p);
  if (spare == 0) return data;
  // The parts before and after the aligned block are given back.
  const int64_t before = (alignment - reinterpret_cast<int64_t>(data) % alignment) % alignment;
  if (before > 0) munmap(data, static_cast<size_t>(before));
  if (before < spare) munmap(data + before + bytes, static_cast<size_t>(spare - before));
#ifdef MADV_HUGEPAGE
  madvise(data + before, static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
  return data + before;
}

void unmap_pages(uint8_t* data, int64_t bytes, int64_t) { munmap(data, static_cast<size_t>(bytes)); }

int map_file(int descriptor, int64_t begin, int64_t bytes, uint8_t** data) {
  // Some file systems, as those of FUSE with direct I/O, refuse shared mappings alone.
  const size_t size = static_cast<size_t>(bytes);
  void* p = mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor, begin);
  if (p == MAP_FAILED) p = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, begin);
  if (p == MAP_FAILED) return errno;
  *data = static_cast<uint8_t*>(p);
  return 0;
}

void unmap_file(uint8_t* data, int64_t bytes) { munmap(data, static_cast<size_t>(bytes)); }

bool expect_random_reads(uint8_t* data, int64_t bytes) {
  return madvise(data, static_cast<size_t>(bytes), MADV_RANDOM) == 0;
}

bool request_pages(uint8_t* data, int64_t bytes) {
  // The system reads no more of a request than a device takes at once, and forgets the rest.
  constexpr int64_t kPiece = 128 << 10;
  for (int64_t done = 0; done < bytes; done += kPiece) {
    const size_t size = static_cast<size_t>(std::min(kPiece, bytes - done));
    if (madvise(data + done, size, MADV_WILLNEED) != 0) return false;
  }
  return true;
}

bool drop_pages(int descriptor, int64_t begin, uint8_t* data, int64_t bytes) {
  // Pages that are mapped stay in the cache, so this process lets go of them first.
  return madvise(data, static_cast<size_t>(bytes), MADV_DONTNEED) == 0 &&
         posix_fadvise(descriptor, begin, bytes, POSIX_FADV_DONTNEED) == 0;
}

namespace {

// Reads a file that cannot be mapped; 0, or the errno.
int read_all(int descriptor, FileContent* content) {
  constexpr int64_t kAlignment = 4096, kPiece = 1 << 30;
  uint8_t* data = map_pages((content->bytes + kAlignment - 1) / kAlignment * kAlignment, kAlignment);
  if (data == nullptr) return ENOMEM;
  content->data = data;
  for (int64_t done = 0; done < content->bytes;) {
    const ssize_t count = read(descriptor, data + done, static_cast<size_t>(std::min(content->bytes - done, kPiece)));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      const int error = count < 0 ? errno : EIO;  // it has become shorter
      close_file(*content);
      return error;
    }
    done += count;
  }
  return 0;
}

}  // namespace

int open_file(const char* path, FileContent* content) {
  const int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe could block for ever
  if (descriptor < 0) return errno;
  struct stat status;
  int error = fstat(descriptor, &status) == 0 ? 0 : errno;
  if (error == 0 && !S_ISREG(status.st_mode)) error = S_ISDIR(status.st_mode) ? EISDIR : EINVAL;
  if (error == 0 && status.st_size > 0) {
    FileContent file{nullptr, status.st_size, true};
    if (map_file(descriptor, 0, file.bytes, &file.data) != 0) {
      file.is_mapped = false;
      error = read_all(descriptor, &file);
    }
    if (error == 0) *content = file;
  }
  close(descriptor);
  return error;
}

void close_file(const FileContent& content) {
  if (content.data != nullptr) munmap(content.data, static_cast<size_t>(content.bytes));
}

}  // namespace mxfp4moe::platform
