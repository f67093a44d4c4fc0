// ONNX Runtime's C interface with the types of C++: what the operators use of it.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "mxfp4moe.hpp"

namespace mxfp4moe::onnx {

// The first version of the interface that has all that is used here, so that older runtimes work too.
constexpr uint32_t kApiVersion = 17;

struct Failure {
  OrtErrorCode code;
  std::string text;
};

[[noreturn]] void invalid(const std::string& name, const std::string& expected, const std::string& got);

// Throws what a function of the interface returned.
void check_host(const OrtApi& api, OrtStatus* status);

// The code for a status of the library.
OrtErrorCode code_of(mxfp4moe_status status);

// Runs what ONNX Runtime calls: it gets a status, whatever is thrown.
template <class Body>
OrtStatus* guarded(const OrtApi& api, const char* name, Body&& body) noexcept {
  try {
    try {
      body();
      return nullptr;
    } catch (const Failure& failure) {
      return api.CreateStatus(failure.code, ("mxfp4moe." + std::string(name) + ": " + failure.text).c_str());
    } catch (const Error& error) {
      return api.CreateStatus(code_of(error.status()), ("mxfp4moe." + std::string(name) + ": " + error.what()).c_str());
    }
  } catch (const std::bad_alloc&) {
    return api.CreateStatus(ORT_FAIL, "mxfp4moe: no memory");
  } catch (...) {
    return api.CreateStatus(ORT_FAIL, "mxfp4moe: an internal error");
  }
}

using Shape = std::vector<int64_t>;

std::string text_of(const Shape& shape);

// A tensor that ONNX Runtime owns; without data if an optional input is not given.
struct Tensor {
  std::string name;
  const void* data = nullptr;
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  Shape shape;

  bool is_given() const { return type != ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED; }
  int64_t num_elements() const;
  void check_rank(size_t rank) const;
  // Sizes of -1 may be any.
  void check_shape(const Shape& expected) const;
  // The same tensor as an argument of the library.
  mxfp4moe_array array() const;
};

// A dtype of the library, or -1.
int32_t dtype_of(ONNXTensorElementDataType type);

Tensor tensor_of(const OrtApi& api, const char* name, const OrtValue* value);

// A node of a graph while its kernel is made: attributes, and inputs that are constant.
class Node {
 public:
  Node(const OrtApi& api, const OrtKernelInfo* info) : api_(api), info_(info) {}

  const OrtApi& api() const { return api_; }
  int64_t integer(const char* name, int64_t fallback, int64_t least, int64_t limit) const;
  bool flag(const char* name, bool fallback = false) const { return integer(name, fallback, 0, 1) != 0; }
  double number(const char* name, double fallback) const;
  std::string text(const char* name, const std::string& fallback) const;
  std::vector<int64_t> integers(const char* name) const;
  // Reads an attribute that must be one of the names in `choices`, and returns its number.
  int32_t choice(const char* name, const char* fallback,
                 const std::vector<std::pair<const char*, int32_t>>& choices) const;

  bool has_input(size_t index) const;
  // An initializer; raises for an input that is computed.
  Tensor constant(size_t index, const char* name) const;

 private:
  // Raises unless there is no attribute of that name at all.
  void check_absent(const char* name, const char* expected) const;
  bool succeeds(OrtStatus* status) const;

  const OrtApi& api_;
  const OrtKernelInfo* info_;
};

// A call of a kernel.
class Call {
 public:
  Call(const OrtApi& api, OrtKernelContext* context) : api_(api), context_(context) {}

  const OrtApi& api() const { return api_; }
  OrtKernelContext* context() const { return context_; }
  Tensor input(size_t index, const char* name) const;
  void* output(size_t index, const Shape& shape) const;

 private:
  const OrtApi& api_;
  OrtKernelContext* context_;
};

// A dimension that is a number, or a name for one that is not known; "" is none.
struct Dimension {
  int64_t size = -1;
  std::string name;
};
using Dimensions = std::vector<Dimension>;

// What is known of a node before it runs.
class ShapeInference {
 public:
  ShapeInference(const OrtApi& api, OrtShapeInferContext* context) : api_(api), context_(context) {}

  size_t num_inputs() const;
  // Empty if nothing is known.
  Dimensions input(size_t index) const;
  ONNXTensorElementDataType input_type(size_t index) const;
  void set_output(size_t index, const Dimensions& dimensions, ONNXTensorElementDataType type) const;
  std::string text(const char* name) const;  // "" if there is no such attribute

 private:
  const OrtApi& api_;
  OrtShapeInferContext* context_;
};

}  // namespace mxfp4moe::onnx
