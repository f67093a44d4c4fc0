// What XLA hands to a foreign function, in the form of its C interface.
#pragma once

#include <xla/ffi/api/c_api.h>

#include <cstdint>
#include <new>
#include <string>

#include "common/types.h"

namespace mxfp4moe::jax {

struct Failure {
  XLA_FFI_Error_Code code;
  std::string text;
};

// A mistake of this library, or of a program that no version of it made.
[[noreturn]] void unexpected(const std::string& what);

class CallFrame {
 public:
  explicit CallFrame(const XLA_FFI_CallFrame& frame) : frame_(frame) {}

  void check_counts(int64_t num_arguments, int64_t num_results) const;
  // Buffers are contiguous.
  const XLA_FFI_Buffer& argument(int64_t index) const;
  const XLA_FFI_Buffer& result(int64_t index) const;

  int64_t integer(const char* name) const { return *static_cast<const int64_t*>(scalar(name, XLA_FFI_DataType_S64)); }
  float number(const char* name) const { return *static_cast<const float*>(scalar(name, XLA_FFI_DataType_F32)); }
  // An array of int64; without data if there is none of that name.
  XLA_FFI_Array integers(const char* name) const;

 private:
  const void* find(const char* name, XLA_FFI_AttrType type) const;
  const void* scalar(const char* name, XLA_FFI_DataType dtype) const;

  const XLA_FFI_CallFrame& frame_;
};

// Buffers as rows of values, of which the last axis of the buffer is one.
int64_t num_rows(const XLA_FFI_Buffer& buffer);
int64_t num_columns(const XLA_FFI_Buffer& buffer);
Rows rows_of(const XLA_FFI_Buffer& buffer);
// The place of a value as Python writes it.
std::string position(const XLA_FFI_Buffer& buffer, int64_t flat);

// Tells XLA for which version a function was compiled, if that is all it asks.
bool answers_metadata(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* make_error(const XLA_FFI_CallFrame& frame, XLA_FFI_Error_Code code, const char* text);

// Runs the body of a foreign function, which takes a CallFrame.
template <class Body>
XLA_FFI_Error* guarded(XLA_FFI_CallFrame* frame, Body&& body) noexcept {
  if (answers_metadata(frame)) return nullptr;
  try {
    body(CallFrame(*frame));
    return nullptr;
  } catch (const Failure& failure) {
    return make_error(*frame, failure.code, failure.text.c_str());
  } catch (const std::bad_alloc&) {
    return make_error(*frame, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "no memory");
  } catch (...) {
    return make_error(*frame, XLA_FFI_Error_Code_INTERNAL, "an internal error of mxfp4moe");
  }
}

}  // namespace mxfp4moe::jax
