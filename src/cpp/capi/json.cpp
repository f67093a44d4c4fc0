#include "capi/json.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "capi/error.h"
#include "platform/system.h"

namespace mxfp4moe::capi {
namespace {

constexpr int64_t kMaxItems = 2000000;
constexpr int kMaxNesting = 64;
constexpr size_t kMaxShown = 80;

// Returns the length of the UTF-8 character at the beginning of `text`, 0 if there is none.
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<uint8_t>(text[i]) : 0u; };
  const uint32_t first = byte(0);
  const size_t length = first < 0x80   ? 1
                        : first < 0xc2 ? 0
                        : first < 0xe0 ? 2
                        : first < 0xf0 ? 3
                        : first < 0xf5 ? 4
                                       : 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  const uint32_t second = byte(1);
  const bool is_too_long = (first == 0xe0 && second < 0xa0) || (first == 0xf0 && second < 0x90);
  const bool is_no_character = (first == 0xed && second >= 0xa0) || (first == 0xf4 && second >= 0x90);
  return is_too_long || is_no_character ? 0 : length;
}

void append_utf8(uint32_t code, std::string* text) {
  const auto tail = [&](int shift) { text->push_back(static_cast<char>(0x80 | ((code >> shift) & 0x3f))); };
  if (code < 0x80) {
    text->push_back(static_cast<char>(code));
  } else if (code < 0x800) {
    text->push_back(static_cast<char>(0xc0 | (code >> 6)));
    tail(0);
  } else if (code < 0x10000) {
    text->push_back(static_cast<char>(0xe0 | (code >> 12)));
    tail(6);
    tail(0);
  } else {
    text->push_back(static_cast<char>(0xf0 | (code >> 18)));
    tail(12);
    tail(6);
    tail(0);
  }
}

class Parser {
 public:
  Parser(std::string_view text, const std::string& name) : text_(text), name_(name) {}

  Json parse() {
    skip_spaces();
    if (peek() != '{') fail_here("an object");
    Json result = value(0);
    skip_spaces();
    if (at_ != text_.size()) fail_here("the end");
    return result;
  }

 private:
  [[noreturn]] void fail_here(const char* expected) const {
    const std::string got = at_ < text_.size() ? "other bytes" : "the end";
    fail(MXFP4MOE_INVALID_FILE, name_, "a JSON object",
         got + " in place of " + expected + " at byte " + std::to_string(at_));
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  bool take(char c) {
    if (peek() != c || at_ >= text_.size()) return false;
    ++at_;
    return true;
  }

  void skip_spaces() {
    while (at_ < text_.size() && (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r')) ++at_;
  }

  bool take_word(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json value(int depth) {
    if (depth > kMaxNesting) {
      fail(MXFP4MOE_INVALID_FILE, name_, "a JSON object", "one nested too deeply");
    }
    skip_spaces();
    Json result;
    const char c = peek();
    if (c == '{') {
      object(depth, &result);
    } else if (c == '[') {
      array(depth, &result);
    } else if (c == '"') {
      result.kind = Json::Kind::kString;
      result.text = string();
    } else if (c == '-' || (c >= '0' && c <= '9')) {
      number(&result);
    } else if (take_word("true") || take_word("false")) {
      result.kind = Json::Kind::kBool;
      result.boolean = c == 't';
    } else if (!take_word("null")) {
      fail_here("a value");
    }
    return result;
  }

  void array(int depth, Json* result) {
    result->kind = Json::Kind::kArray;
    ++at_;
    skip_spaces();
    if (take(']')) return;
    do {
      result->items.push_back(value(depth + 1));
      skip_spaces();
    } while (take(','));
    if (!take(']')) fail_here("']'");
  }

  void object(int depth, Json* result) {
    result->kind = Json::Kind::kObject;
    ++at_;
    skip_spaces();
    if (take('}')) return;
    do {
      skip_spaces();
      if (peek() != '"') fail_here("a key");
      result->keys.push_back(string());
      skip_spaces();
      if (!take(':')) fail_here("':'");
      result->items.push_back(value(depth + 1));
      skip_spaces();
    } while (take(','));
    if (!take('}')) fail_here("'}'");
    std::vector<std::string_view> keys(result->keys.begin(), result->keys.end());
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice != keys.end()) {
      fail(MXFP4MOE_INVALID_FILE, name_, "a JSON object", "a key twice: " + std::string(twice->substr(0, kMaxShown)));
    }
  }

  uint32_t hex4() {
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = peek();
      const bool is_digit = c >= '0' && c <= '9', is_lower = c >= 'a' && c <= 'f', is_upper = c >= 'A' && c <= 'F';
      if (!is_digit && !is_lower && !is_upper) fail_here("four hexadecimal digits");
      code = 16 * code + static_cast<uint32_t>(is_digit ? c - '0' : is_lower ? c - 'a' + 10 : c - 'A' + 10);
    }
    return code;
  }

  void escape(std::string* result) {
    constexpr std::string_view kEscapes = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
    if (take('u')) {
      uint32_t code = hex4();
      if (code >= 0xd800 && code < 0xdc00 && take_word("\\u")) {
        const uint32_t low = hex4();
        code = low >= 0xdc00 && low < 0xe000 ? 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00) : 0xd800;
      }
      if (code >= 0xd800 && code < 0xe000) fail_here("both halves of a surrogate pair");
      return append_utf8(code, result);
    }
    const size_t i = at_ < text_.size() ? kEscapes.find(peek()) : std::string_view::npos;
    if (i == std::string_view::npos) fail_here("an escape");
    ++at_;
    result->push_back(kMeanings[i]);
  }

  std::string string() {
    std::string result;
    for (++at_; !take('"');) {
      if (take('\\')) {
        escape(&result);
        continue;
      }
      const std::string_view rest = text_.substr(at_);
      const size_t length = rest.empty() || static_cast<uint8_t>(rest[0]) < 0x20 ? 0 : utf8_length(rest);
      if (length == 0) fail_here("a character of a string");
      result.append(rest.substr(0, length));
      at_ += length;
    }
    return result;
  }

  void digits() {
    if (!(peek() >= '0' && peek() <= '9')) fail_here("a digit");
    while (peek() >= '0' && peek() <= '9') ++at_;
  }

  void number(Json* result) {
    const size_t begin = at_;
    take('-');
    if (!take('0')) digits();
    bool is_integer = true;
    if (take('.')) {
      is_integer = false;
      digits();
    }
    if (take('e') || take('E')) {
      is_integer = false;
      if (!take('+')) take('-');
      digits();
    }
    const std::string text(text_.substr(begin, at_ - begin));
    result->real = platform::parse_number(text.c_str());
    errno = 0;
    if (is_integer) result->integer = std::strtoll(text.c_str(), nullptr, 10);
    // Larger integers are too large for whatever counts something.
    result->kind = is_integer && errno == 0 ? Json::Kind::kInteger : Json::Kind::kReal;
  }

  const std::string_view text_;
  const std::string& name_;
  size_t at_ = 0;
};

void show(const Json& value, std::string* text) {
  if (text->size() > kMaxShown) return;
  switch (value.kind) {
    case Json::Kind::kNull: *text += "null"; break;
    case Json::Kind::kBool: *text += value.boolean ? "true" : "false"; break;
    case Json::Kind::kInteger: *text += text_of(value.integer); break;
    case Json::Kind::kReal: *text += text_of(value.real); break;
    case Json::Kind::kString: *text += '"' + value.text.substr(0, kMaxShown) + '"'; break;
    case Json::Kind::kArray:
    case Json::Kind::kObject: {
      const bool is_object = value.is(Json::Kind::kObject);
      *text += is_object ? '{' : '[';
      for (size_t i = 0; i < value.items.size() && text->size() <= kMaxShown; ++i) {
        if (i > 0) *text += ", ";
        if (is_object) *text += '"' + value.keys[i].substr(0, kMaxShown) + "\": ";
        show(value.items[i], text);
      }
      *text += is_object ? '}' : ']';
    }
  }
}

}  // namespace

const Json* Json::find(std::string_view key) const {
  const auto at = std::find(keys.begin(), keys.end(), key);
  return at == keys.end() ? nullptr : &items[static_cast<size_t>(at - keys.begin())];
}

std::string Json::shown() const {
  std::string text;
  show(*this, &text);
  return text.size() > kMaxShown ? text.substr(0, kMaxShown - 3) + "..." : text;
}

Json parse_object(std::string_view text, const std::string& name) {
  const auto is_counted = [](char c) { return c == ',' || c == ':' || c == '[' || c == '{'; };
  const int64_t count = std::count_if(text.begin(), text.end(), is_counted);
  if (count > kMaxItems) {
    fail(MXFP4MOE_INVALID_FILE, name, "at most " + text_of(kMaxItems) + " commas, colons and brackets", text_of(count));
  }
  return Parser(text, name).parse();
}

}  // namespace mxfp4moe::capi
