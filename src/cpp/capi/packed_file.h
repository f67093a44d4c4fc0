// Packed files: docs/packed-files.md has every byte.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "capi/json.h"
#include "packing/storage.h"
#include "platform/system.h"

namespace mxfp4moe::capi {

// Bytes that live for as long as something refers to them: those of a file, or packed ones.
class Bytes {
 public:
  static std::shared_ptr<const Bytes> of_file(const std::string& path);
  // New memory, zeroed.
  static std::shared_ptr<Bytes> of_size(int64_t size, const char* what);
  ~Bytes();
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;

  uint8_t* data() { return content_.data; }
  const uint8_t* data() const { return content_.data; }
  int64_t size() const { return content_.bytes; }

 private:
  Bytes() = default;
  platform::FileContent content_;
  bool is_file_ = false;
};

// An array in a file, from byte `begin` to `end`.
struct PartInfo {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  std::vector<uint32_t> checksums;
  int64_t begin, end;
};

// Experts that are packed already, in memory that outlives what is made of them.
struct GivenExperts {
  std::string prefix;  // under which a file would have them
  bool gated;
  PackedLayer layer;
};

class PackedFile {
 public:
  // Checks header and table of contents, and that the file is of that kind; with num_threads above 0 all checksums too.
  PackedFile(const char* path, const std::string& kind, int verify_threads);
  // A file in memory, which is copied, without the parts of experts that are given.
  PackedFile(const uint8_t* data, int64_t size, const std::string& kind, std::vector<GivenExperts> given);

  const std::string& path() const { return path_; }
  const Json& meta() const { return *table_.find("meta"); }
  const std::shared_ptr<const Bytes>& bytes() const { return bytes_; }
  const std::vector<PartInfo>& parts() const { return parts_; }
  const PartInfo* find(const std::string& name) const;
  const GivenExperts* find_given(const std::string& prefix) const;
  [[noreturn]] void fail(const std::string& expected, const std::string& got) const;

 private:
  void read(const std::string& kind);
  int64_t read_header();
  void read_parts(int64_t begin);
  PartInfo read_part(const Json& entry, int64_t begin) const;
  void check_kind(const std::string& kind) const;
  void verify(int num_threads) const;
  void check_zeros(int64_t begin) const;

  const std::string path_;
  std::shared_ptr<const Bytes> bytes_;
  Json table_;
  int64_t table_bytes_ = 0;
  std::vector<PartInfo> parts_;
  std::vector<GivenExperts> given_;
};

}  // namespace mxfp4moe::capi
