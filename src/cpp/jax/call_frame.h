// What XLA hands to a foreign function, in the form of its C interface.
#pragma once

#include <cstdint>
#include <new>
#include <string>

#include "common/types.h"
#include "jax/xla.h"

namespace mxfp4moe::jax {

struct Failure {
  xla::ErrorCode code;
  std::string text;
};

// Throws the error for a call that no version of this package compiles: a fault of the library, or a program from
// elsewhere.
[[noreturn]] void unexpected(const std::string& what);

class CallFrame {
 public:
  explicit CallFrame(const xla::Frame& frame) : frame_(frame) {}

  void check_counts(int64_t num_arguments, int64_t num_results) const;
  // Buffers are contiguous.
  const xla::Buffer& argument(int64_t index) const;
  const xla::Buffer& result(int64_t index) const;

  int64_t integer(const char* name) const { return *static_cast<const int64_t*>(scalar(name, xla::kS64)); }
  float number(const char* name) const { return *static_cast<const float*>(scalar(name, xla::kF32)); }
  // An array of int64; without data if there is none of that name.
  xla::Array integers(const char* name) const;

 private:
  const void* find(const char* name, xla::AttributeType type) const;
  const void* scalar(const char* name, xla::DataType dtype) const;

  const xla::Frame& frame_;
};

// Buffers as rows of values, of which the last axis of the buffer is one.
int64_t num_rows(const xla::Buffer& buffer);
int64_t num_columns(const xla::Buffer& buffer);
Rows rows_of(const xla::Buffer& buffer);
// The place of a value as Python writes it.
std::string position(const xla::Buffer& buffer, int64_t flat);

// Tells XLA for which version a function was compiled, if that is all it asks.
bool answers_metadata(xla::Frame* frame);
xla::Error* make_error(const xla::Frame& frame, xla::ErrorCode code, const char* text);

// Runs the body of a foreign function, which takes a CallFrame.
template <class Body>
xla::Error* guarded(xla::Frame* frame, Body&& body) noexcept {
  if (answers_metadata(frame)) return nullptr;
  try {
    body(CallFrame(*frame));
    return nullptr;
  } catch (const Failure& failure) {
    return make_error(*frame, failure.code, failure.text.c_str());
  } catch (const std::bad_alloc&) {
    return make_error(*frame, xla::kResourceExhausted, "no memory");
  } catch (...) {
    return make_error(*frame, xla::kInternal, "an internal error of mxfp4moe");
  }
}

}  // namespace mxfp4moe::jax
