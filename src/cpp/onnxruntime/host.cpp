#include "onnxruntime/host.h"

#include <algorithm>
#include <memory>

namespace mxfp4moe::onnx {
namespace {

using Info = std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(OrtApi::ReleaseTensorTypeAndShapeInfo)>;

Info owned(const OrtApi& api, OrtTensorTypeAndShapeInfo* info) { return {info, api.ReleaseTensorTypeAndShapeInfo}; }

ONNXTensorElementDataType type_of(const OrtApi& api, const OrtTensorTypeAndShapeInfo* info) {
  auto type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  check_host(api, api.GetTensorElementType(info, &type));
  return type;
}

Shape shape_of(const OrtApi& api, const OrtTensorTypeAndShapeInfo* info) {
  size_t rank = 0;
  check_host(api, api.GetDimensionsCount(info, &rank));
  Shape shape(rank);
  check_host(api, api.GetDimensions(info, shape.data(), rank));
  return shape;
}

}  // namespace

void invalid(const std::string& name, const std::string& expected, const std::string& got) {
  throw Failure{ORT_INVALID_ARGUMENT, name + ": expected " + expected + ", got " + got};
}

void check_host(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return;
  const std::unique_ptr<OrtStatus, decltype(OrtApi::ReleaseStatus)> holder(status, api.ReleaseStatus);
  throw Failure{api.GetErrorCode(status), api.GetErrorMessage(status)};
}

OrtErrorCode code_of(mxfp4moe_status status) {
  switch (status) {
    case MXFP4MOE_INVALID_ARGUMENT: return ORT_INVALID_ARGUMENT;
    case MXFP4MOE_FILE_NOT_FOUND: return ORT_NO_SUCHFILE;
    case MXFP4MOE_UNSUPPORTED: return ORT_NOT_IMPLEMENTED;
    default: return ORT_FAIL;
  }
}

std::string text_of(const Shape& shape) {
  std::string result = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    result += (i == 0 ? "" : ", ") + (shape[i] < 0 ? std::string("any") : std::to_string(shape[i]));
  }
  return result + "]";
}

int64_t Tensor::num_elements() const {
  int64_t result = 1;
  for (const int64_t size : shape) result *= size;
  return result;
}

void Tensor::check_rank(size_t rank) const {
  if (shape.size() != rank) invalid(name, std::to_string(rank) + " axes", "shape " + text_of(shape));
}

void Tensor::check_shape(const Shape& expected) const {
  bool fits = shape.size() == expected.size();
  for (size_t i = 0; fits && i < shape.size(); ++i) fits = expected[i] == -1 || shape[i] == expected[i];
  if (!fits) invalid(name, "shape " + text_of(expected), text_of(shape));
}

mxfp4moe_array Tensor::array() const {
  if (!is_given()) return {};
  const int32_t dtype = dtype_of(type);
  constexpr int64_t kBytes[] = {4, 2, 2, 8, 1, 1, 1, 1, 1};  // of the dtypes of the header, in its order
  if (dtype < 0) invalid(name, "a tensor of floats or of 8-bit integers", "type " + std::to_string(type));
  return {data, static_cast<uint64_t>(num_elements() * kBytes[dtype]), dtype};
}

int32_t dtype_of(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return MXFP4MOE_DTYPE_FLOAT32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: return MXFP4MOE_DTYPE_FLOAT16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16: return MXFP4MOE_DTYPE_BFLOAT16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE: return MXFP4MOE_DTYPE_FLOAT64;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8: return MXFP4MOE_DTYPE_UINT8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8: return MXFP4MOE_DTYPE_INT8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN: return MXFP4MOE_DTYPE_FLOAT8_E4M3;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2: return MXFP4MOE_DTYPE_FLOAT8_E5M2;
    default: return -1;
  }
}

Tensor tensor_of(const OrtApi& api, const char* name, const OrtValue* value) {
  Tensor result;
  result.name = name;
  if (value == nullptr) return result;
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  check_host(api, api.GetTensorTypeAndShape(value, &raw));
  const Info info = owned(api, raw);
  result.type = type_of(api, raw);
  result.shape = shape_of(api, raw);
  void* data = nullptr;
  check_host(api, api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));  // it is only read
  result.data = data;
  return result;
}

bool Node::succeeds(OrtStatus* status) const {
  if (status == nullptr) return true;
  api_.ReleaseStatus(status);
  return false;
}

void Node::check_absent(const char* name, const char* expected) const {
  int64_t integer;
  float number;
  size_t size = 0;
  if (succeeds(api_.KernelInfoGetAttribute_int64(info_, name, &integer)) ||
      succeeds(api_.KernelInfoGetAttribute_float(info_, name, &number)) ||
      succeeds(api_.KernelInfoGetAttribute_string(info_, name, nullptr, &size)) ||
      (succeeds(api_.KernelInfoGetAttributeArray_int64(info_, name, nullptr, &size)) && size > 0) ||
      (succeeds(api_.KernelInfoGetAttributeArray_float(info_, name, nullptr, &size)) && size > 0)) {
    invalid(name, expected, "an attribute of another type");
  }
}

int64_t Node::integer(const char* name, int64_t fallback, int64_t least, int64_t limit) const {
  int64_t value = fallback;
  if (!succeeds(api_.KernelInfoGetAttribute_int64(info_, name, &value))) {
    check_absent(name, "an integer");
    return fallback;
  }
  if (value < least || value > limit) {
    invalid(name, "an integer in [" + std::to_string(least) + ", " + std::to_string(limit) + "]",
            std::to_string(value));
  }
  return value;
}

double Node::number(const char* name, double fallback) const {
  float value = 0;
  if (succeeds(api_.KernelInfoGetAttribute_float(info_, name, &value))) return value;
  check_absent(name, "a float");
  return fallback;
}

std::string Node::text(const char* name, const std::string& fallback) const {
  size_t size = 0;
  if (!succeeds(api_.KernelInfoGetAttribute_string(info_, name, nullptr, &size))) {
    check_absent(name, "a string");
    return fallback;
  }
  std::string value(size, '\0');
  check_host(api_, api_.KernelInfoGetAttribute_string(info_, name, value.data(), &size));
  value.resize(size - 1);  // without the final zero
  return value;
}

std::vector<int64_t> Node::integers(const char* name) const {
  size_t size = 0;
  if (!succeeds(api_.KernelInfoGetAttributeArray_int64(info_, name, nullptr, &size)) || size == 0) {
    check_absent(name, "a list of integers");
    return {};
  }
  std::vector<int64_t> values(size);
  check_host(api_, api_.KernelInfoGetAttributeArray_int64(info_, name, values.data(), &size));
  return values;
}

int32_t Node::choice(const char* name, const char* fallback,
                     const std::vector<std::pair<const char*, int32_t>>& choices) const {
  const std::string value = text(name, fallback);
  std::string names;
  for (const auto& [each, number] : choices) {
    if (value == each) return number;
    names += (names.empty() ? "" : ", ") + std::string(each);
  }
  invalid(name, "one of " + names, value);
}

bool Node::has_input(size_t index) const {
  size_t count = 0;
  check_host(api_, api_.KernelInfo_GetInputCount(info_, &count));
  if (index >= count) return false;
  size_t size = 0;
  check_host(api_, api_.KernelInfo_GetInputName(info_, index, nullptr, &size));
  return size > 1;  // The name of one that is left out is empty.
}

Tensor Node::constant(size_t index, const char* name) const {
  Tensor none;
  none.name = name;
  if (!has_input(index)) return none;
  int is_constant = 0;
  const OrtValue* value = nullptr;
  check_host(api_, api_.KernelInfoGetConstantInput_tensor(info_, index, &is_constant, &value));
  if (is_constant == 0 || value == nullptr) invalid(name, "an initializer", "an input that is not constant");
  return tensor_of(api_, name, value);
}

Tensor Call::input(size_t index, const char* name) const {
  size_t count = 0;
  check_host(api_, api_.KernelContext_GetInputCount(context_, &count));
  const OrtValue* value = nullptr;
  if (index < count) check_host(api_, api_.KernelContext_GetInput(context_, index, &value));
  return tensor_of(api_, name, value);
}

void* Call::output(size_t index, const Shape& shape) const {
  OrtValue* value = nullptr;
  check_host(api_, api_.KernelContext_GetOutput(context_, index, shape.data(), shape.size(), &value));
  void* data = nullptr;
  check_host(api_, api_.GetTensorMutableData(value, &data));
  return data;
}

size_t ShapeInference::num_inputs() const {
  size_t count = 0;
  check_host(api_, api_.ShapeInferContext_GetInputCount(context_, &count));
  return count;
}

Dimensions ShapeInference::input(size_t index) const {
  if (index >= num_inputs()) return {};
  OrtTensorTypeAndShapeInfo* info = nullptr;  // The context keeps it.
  check_host(api_, api_.ShapeInferContext_GetInputTypeShape(context_, index, &info));
  const Shape shape = shape_of(api_, info);
  std::vector<const char*> names(shape.size());
  check_host(api_, api_.GetSymbolicDimensions(info, names.data(), names.size()));
  Dimensions result;
  for (size_t i = 0; i < shape.size(); ++i) {
    result.push_back({shape[i], names[i] == nullptr ? std::string() : std::string(names[i])});
  }
  return result;
}

ONNXTensorElementDataType ShapeInference::input_type(size_t index) const {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check_host(api_, api_.ShapeInferContext_GetInputTypeShape(context_, index, &info));
  return type_of(api_, info);
}

void ShapeInference::set_output(size_t index, const Dimensions& dimensions, ONNXTensorElementDataType type) const {
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  check_host(api_, api_.CreateTensorTypeAndShapeInfo(&raw));
  const Info info = owned(api_, raw);
  Shape shape;
  std::vector<const char*> names;
  for (const Dimension& each : dimensions) {
    shape.push_back(each.size);
    names.push_back(each.name.c_str());
  }
  check_host(api_, api_.SetTensorElementType(raw, type));
  check_host(api_, api_.SetDimensions(raw, shape.data(), shape.size()));
  check_host(api_, api_.SetSymbolicDimensions(raw, names.data(), names.size()));
  check_host(api_, api_.ShapeInferContext_SetOutputTypeShape(context_, index, raw));
}

std::string ShapeInference::text(const char* name) const {
  const OrtOpAttr* attribute = nullptr;
  OrtStatus* const status = api_.ShapeInferContext_GetAttribute(context_, name, &attribute);
  if (status != nullptr || attribute == nullptr) {
    if (status != nullptr) api_.ReleaseStatus(status);
    return "";
  }
  size_t size = 0;  // The first call fails, and says how much there is.
  OrtStatus* const first = api_.ReadOpAttr(attribute, ORT_OP_ATTR_STRING, nullptr, 0, &size);
  if (first != nullptr) api_.ReleaseStatus(first);
  std::string value(size, '\0');
  if (size > 0) check_host(api_, api_.ReadOpAttr(attribute, ORT_OP_ATTR_STRING, value.data(), size, &size));
  while (!value.empty() && value.back() == '\0') value.pop_back();
  return value;
}

}  // namespace mxfp4moe::onnx
