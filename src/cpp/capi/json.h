// JSON, as far as tables of contents have it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mxfp4moe::capi {

struct Json {
  enum class Kind { kNull, kBool, kInteger, kReal, kString, kArray, kObject };

  Kind kind = Kind::kNull;
  bool boolean = false;
  int64_t integer = 0;
  double real = 0;  // of an integer too
  std::string text;
  std::vector<Json> items;        // of an array; of an object its values
  std::vector<std::string> keys;  // of an object, all different

  bool is(Kind k) const { return kind == k; }
  bool is_number() const { return kind == Kind::kInteger || kind == Kind::kReal; }
  // The value of a key, or null.
  const Json* find(std::string_view key) const;
  // The beginning of it as JSON, for errors.
  std::string shown() const;
};

// Parses one object; throws an Error that begins with `name`. Text is valid UTF-8, keys are not repeated, and there are
// no more values and no deeper nesting than Python's reader takes.
Json parse_object(std::string_view text, const std::string& name);

}  // namespace mxfp4moe::capi
