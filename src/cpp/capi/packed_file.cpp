#include "capi/packed_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "capi/arguments.h"
#include "capi/error.h"
#include "files/crc32.h"
#include "memory/mapping.h"
#include "packing/panels.h"

namespace mxfp4moe::capi {
namespace {

constexpr uint8_t kMagic[] = {0x8a, 'M', 'O', 'E', '\r', '\n', 0x1a, '\n'};
constexpr uint32_t kVersion = 1;
constexpr int64_t kPage = 4096, kHeaderBytes = 64, kChecked = 60;
constexpr int64_t kMaxTableBytes = 100000000;
constexpr size_t kMaxDims = 64;

// The dtypes of parts, of which every byte is valid.
constexpr std::pair<const char*, int> kItemBytes[] = {
    {"U8", 1},  {"I8", 1},  {"U16", 2}, {"I16", 2}, {"U32", 4},  {"I32", 4},     {"U64", 8},     {"I64", 8},
    {"F16", 2}, {"F32", 4}, {"F64", 8}, {"C64", 8}, {"BF16", 2}, {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E8M0", 1}};

template <class T>
T number_at(const uint8_t* data) {
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}

bool are_integers(const Json* value, int64_t most) {
  return value->is(Json::Kind::kArray) && std::all_of(value->items.begin(), value->items.end(), [&](const Json& item) {
           return item.is(Json::Kind::kInteger) && item.integer >= 0 && item.integer <= most;
         });
}

int item_bytes(const std::string& dtype) {
  for (const auto& [name, bytes] : kItemBytes) {
    if (dtype == name) return bytes;
  }
  return 0;
}

}  // namespace

std::shared_ptr<const Bytes> Bytes::of_file(const std::string& path) {
  std::shared_ptr<Bytes> bytes(new Bytes);
  bytes->is_file_ = true;
  const int error = platform::open_file(path.c_str(), &bytes->content_);
  if (error == 0) return bytes;
  if (error == ENOENT || error == ENOTDIR) capi::fail(MXFP4MOE_FILE_NOT_FOUND, path, "a file", "nothing at that path");
  if (error == ENOMEM) throw std::bad_alloc();
  const char* const got = error == EISDIR ? "a directory" : error == EINVAL ? "a special file" : std::strerror(error);
  capi::fail(error == EISDIR || error == EINVAL ? MXFP4MOE_INVALID_FILE : MXFP4MOE_IO_ERROR, path, "a file", got);
}

std::shared_ptr<Bytes> Bytes::of_size(int64_t size, const char* what) {
  std::shared_ptr<Bytes> bytes(new Bytes);
  bytes->content_.data = size >= 0 ? map_memory(size) : nullptr;
  if (bytes->content_.data == nullptr) throw Error{MXFP4MOE_OUT_OF_MEMORY, std::string("no memory for ") + what};
  bytes->content_.bytes = size;
  return bytes;
}

Bytes::~Bytes() {
  if (is_file_) {
    platform::close_file(content_);
  } else if (content_.data != nullptr) {
    unmap_memory(content_.data, content_.bytes);
  }
}

void PackedFile::fail(const std::string& expected, const std::string& got) const {
  capi::fail(MXFP4MOE_INVALID_FILE, path_, expected, got);
}

PackedFile::PackedFile(const char* path, const std::string& kind, int verify_threads)
    : path_(path == nullptr ? "" : path) {
  if (path == nullptr) invalid("path", "a path", "NULL");
  const uint16_t one = 1;
  if (*reinterpret_cast<const uint8_t*>(&one) != 1) fail("a little-endian machine", "a big-endian one");
  bytes_ = Bytes::of_file(path_);
  read(kind);
  if (verify_threads > 0) verify(verify_threads);
}

PackedFile::PackedFile(const uint8_t* data, int64_t size, const std::string& kind, std::vector<GivenExperts> given)
    : path_("a layer in memory"), given_(std::move(given)) {
  const std::shared_ptr<Bytes> bytes = Bytes::of_size(size, "a description of a layer");
  std::memcpy(bytes->data(), data, static_cast<size_t>(size));
  bytes_ = bytes;
  read(kind);
}

void PackedFile::read(const std::string& kind) {
  const int64_t table_end = kHeaderBytes + read_header();
  const std::string_view text(reinterpret_cast<const char*>(bytes_->data()) + kHeaderBytes,
                              static_cast<size_t>(table_bytes_));
  table_ = parse_object(text, path_ + ": table of contents");
  const Json* meta = table_.find("meta");
  const Json* parts = table_.find("parts");
  if (table_.keys.size() != 2 || meta == nullptr || parts == nullptr || !meta->is(Json::Kind::kObject)) {
    fail("a table of contents with an object meta and parts", table_.shown());
  }
  read_parts(round_up(table_end, kPage));
  check_kind(kind);
}

const PartInfo* PackedFile::find(const std::string& name) const {
  const auto at = std::find_if(parts_.begin(), parts_.end(), [&](const PartInfo& part) { return part.name == name; });
  return at == parts_.end() ? nullptr : &*at;
}

const GivenExperts* PackedFile::find_given(const std::string& prefix) const {
  const auto has_prefix = [&](const GivenExperts& experts) { return experts.prefix == prefix; };
  const auto at = std::find_if(given_.begin(), given_.end(), has_prefix);
  return at == given_.end() ? nullptr : &*at;
}

int64_t PackedFile::read_header() {
  const int64_t size = bytes_->size();
  const uint8_t* data = bytes_->data();
  if (size == 0) fail("a packed file", "an empty file");
  if (size < int64_t{sizeof(kMagic)} || std::memcmp(data, kMagic, sizeof(kMagic)) != 0) {
    fail("a packed file, by its first bytes", "others");
  }
  if (size < kHeaderBytes) fail("a header of 64 bytes", "a file of " + text_of(size) + " bytes");
  if (number_at<uint32_t>(data + kChecked) != crc32(0, data, kChecked, 1)) {
    fail("an intact header", "one that its checksum does not fit");
  }
  const uint32_t version = number_at<uint32_t>(data + 8);
  if (version != kVersion) {
    fail("a packed file of version " + text_of(int64_t{kVersion}), "version " + text_of(int64_t{version}));
  }
  const uint64_t table_bytes = number_at<uint64_t>(data + 16), file_bytes = number_at<uint64_t>(data + 24);
  if (file_bytes != static_cast<uint64_t>(size)) {
    fail("a file of " + std::to_string(file_bytes) + " bytes", text_of(size) + ": it is not complete");
  }
  const int64_t most = std::min(size - kHeaderBytes, kMaxTableBytes);
  if (table_bytes < 2 || table_bytes > static_cast<uint64_t>(most)) {
    fail("a table of contents of 2 to " + text_of(most) + " bytes", std::to_string(table_bytes));
  }
  table_bytes_ = static_cast<int64_t>(table_bytes);
  if (number_at<uint32_t>(data + 12) != crc32(0, data + kHeaderBytes, table_bytes_, 1)) {
    fail("an intact table of contents", "one that its checksum does not fit");
  }
  return table_bytes_;
}

void PackedFile::read_parts(int64_t begin) {
  const Json& entries = *table_.find("parts");
  if (!entries.is(Json::Kind::kArray)) fail("a list of parts", entries.shown());
  for (const Json& entry : entries.items) {
    parts_.push_back(read_part(entry, begin));
    begin = round_up(parts_.back().end, kPage);
  }
  std::vector<std::string_view> names;
  for (const PartInfo& part : parts_) names.push_back(part.name);
  std::sort(names.begin(), names.end());
  if (std::adjacent_find(names.begin(), names.end()) != names.end()) fail("parts of different names", "one twice");
  if (begin != bytes_->size()) {
    fail("a file of " + text_of(begin) + " bytes, as its parts need", text_of(bytes_->size()));
  }
}

PartInfo PackedFile::read_part(const Json& entry, int64_t begin) const {
  const Json* const name = entry.find("name");
  const Json* const dtype = entry.find("dtype");
  const Json* const shape = entry.find("shape");
  const Json* const checksums = entry.find("crc32");
  if (!entry.is(Json::Kind::kObject) || entry.keys.size() != 4 || !name || !dtype || !shape || !checksums) {
    fail("a part with name, dtype, shape and crc32", entry.shown());
  }
  if (!name->is(Json::Kind::kString) || !dtype->is(Json::Kind::kString) || item_bytes(dtype->text) == 0) {
    fail("a part with a name and a known dtype", entry.shown());
  }
  const std::string shown = name->shown();
  PartInfo part{name->text, dtype->text, {}, {}, begin, begin};
  bool is_shape = are_integers(shape, std::numeric_limits<int64_t>::max()) && shape->items.size() <= kMaxDims;
  int64_t count = 1;
  bool is_empty = false;
  for (const Json& size : is_shape ? shape->items : std::vector<Json>()) {
    part.shape.push_back(size.integer);
    is_empty |= size.integer == 0;
    count = product({count, std::max<int64_t>(size.integer, 1)});
  }
  if (!is_shape || count >= int64_t{1} << 60) fail("the shape of part " + shown, shape->shown());
  const int64_t num_bytes = is_empty ? 0 : count * item_bytes(part.dtype);
  const size_t rows = part.shape.empty() ? 1 : static_cast<size_t>(part.shape[0]);
  if (!are_integers(checksums, 0xffffffff) || (checksums->items.size() != 1 && checksums->items.size() != rows)) {
    fail("1 checksum of part " + shown + ", or one for each row", checksums->shown());
  }
  for (const Json& checksum : checksums->items) part.checksums.push_back(static_cast<uint32_t>(checksum.integer));
  // Each part begins inside the file, or at its end.
  if (begin > bytes_->size() || num_bytes > bytes_->size() - begin) {
    fail("part " + shown + " inside the file", text_of(num_bytes) + " bytes from byte " + text_of(begin));
  }
  part.end = begin + num_bytes;
  return part;
}

void PackedFile::check_kind(const std::string& kind) const {
  const Json* const found = meta().find("kind");
  if (found == nullptr || !found->is(Json::Kind::kString) || found->text != kind) {
    fail("a packed file of kind \"" + kind + "\"", found == nullptr ? "none" : found->shown());
  }
  const Json* const version = meta().find("layout_version");
  if (version == nullptr || !version->is(Json::Kind::kInteger) || version->integer != kLayoutVersion) {
    fail("weights in packed layout " + text_of(int64_t{kLayoutVersion}),
         "layout " + (version == nullptr ? "none" : version->shown()) +
             ": use the mxfp4moe that wrote the file, or pack the checkpoint again");
  }
}

void PackedFile::verify(int num_threads) const {
  check_zeros(kHeaderBytes + table_bytes_);
  for (const PartInfo& part : parts_) {
    const int64_t rows = static_cast<int64_t>(part.checksums.size());
    const int64_t row_bytes = (part.end - part.begin) / std::max<int64_t>(rows, 1);
    for (int64_t row = 0; row < rows; ++row) {
      const uint8_t* data = bytes_->data() + part.begin + row * row_bytes;
      if (crc32(0, data, row_bytes, num_threads) != part.checksums[static_cast<size_t>(row)]) {
        fail("the checksum of part \"" + part.name + "\", row " + text_of(row), "another: the data is damaged");
      }
    }
    check_zeros(part.end);
  }
}

void PackedFile::check_zeros(int64_t begin) const {
  const uint8_t* const data = bytes_->data();
  if (std::any_of(data + begin, data + round_up(begin, kPage), [](uint8_t byte) { return byte != 0; })) {
    fail("zeros after byte " + text_of(begin) + ", up to the next page", "other bytes");
  }
}

}  // namespace mxfp4moe::capi
