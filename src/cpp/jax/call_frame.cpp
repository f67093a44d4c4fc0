#include "jax/call_frame.h"

#include <cstring>
#include <string_view>

namespace mxfp4moe::jax {

void unexpected(const std::string& what) {
  throw Failure{xla::kInvalidArgument, "expected a call as mxfp4moe.jax makes it, got " + what};
}

void CallFrame::check_counts(int64_t num_arguments, int64_t num_results) const {
  if (frame_.stage != xla::kExecute) unexpected("another stage");
  if (frame_.arguments.size != num_arguments || frame_.results.size != num_results) unexpected("other arrays");
}

const xla::Buffer& CallFrame::argument(int64_t index) const {
  if (frame_.arguments.types[index] != xla::kBuffer) unexpected("an argument that is no array");
  return *static_cast<const xla::Buffer*>(frame_.arguments.values[index]);
}

const xla::Buffer& CallFrame::result(int64_t index) const {
  if (frame_.results.types[index] != xla::kBuffer) unexpected("a result that is no array");
  return *static_cast<const xla::Buffer*>(frame_.results.values[index]);
}

const void* CallFrame::find(const char* name, xla::AttributeType type) const {
  for (int64_t i = 0; i < frame_.attributes.size; ++i) {
    const xla::Text& found = *frame_.attributes.names[i];
    if (std::string_view(found.data, found.size) == name && frame_.attributes.types[i] == type)
      return frame_.attributes.values[i];
  }
  return nullptr;
}

const void* CallFrame::scalar(const char* name, xla::DataType dtype) const {
  const auto* const found = static_cast<const xla::Scalar*>(find(name, xla::kScalar));
  if (found == nullptr || found->dtype != dtype) unexpected(std::string("no number ") + name);
  return found->value;
}

xla::Array CallFrame::integers(const char* name) const {
  const auto* const found = static_cast<const xla::Array*>(find(name, xla::kArray));
  if (found == nullptr) return {xla::kS64, 0, nullptr};
  if (found->dtype != xla::kS64) unexpected(std::string("other numbers ") + name);
  return *found;
}

int64_t num_columns(const xla::Buffer& buffer) {
  if (buffer.rank == 0) unexpected("an array without axes");
  return buffer.dims[buffer.rank - 1];
}

int64_t num_rows(const xla::Buffer& buffer) {
  int64_t count = 1;
  for (int64_t axis = 0; axis + 1 < buffer.rank; ++axis) count *= buffer.dims[axis];
  return count;
}

Rows rows_of(const xla::Buffer& buffer) {
  const DType dtype = buffer.dtype == xla::kF32   ? DType::kFloat32
                      : buffer.dtype == xla::kF16 ? DType::kFloat16
                                                  : DType::kBFloat16;
  if (dtype == DType::kBFloat16 && buffer.dtype != xla::kBF16) unexpected("an array of another dtype");
  return {static_cast<uint8_t*>(buffer.data), num_columns(buffer) * value_bytes(dtype), dtype};
}

std::string position(const xla::Buffer& buffer, int64_t flat) {
  std::string text = buffer.rank == 1 ? ",)" : ")";
  for (int64_t axis = buffer.rank - 1; axis >= 0; --axis) {
    text = std::to_string(flat % buffer.dims[axis]) + text;
    if (axis > 0) text = ", " + text;
    flat /= buffer.dims[axis];
  }
  return "(" + text;
}

bool answers_metadata(xla::Frame* frame) {
  xla::Extension* const extension = frame->extensions;
  if (extension == nullptr || extension->type != xla::kMetadata) return false;
  xla::Metadata& metadata = *reinterpret_cast<xla::MetadataExtension*>(extension)->metadata;
  metadata.version = {sizeof(xla::Version), nullptr, xla::kMajorVersion, xla::kMinorVersion};
  metadata.traits = 0;
  return true;
}

xla::Error* make_error(const xla::Frame& frame, xla::ErrorCode code, const char* text) {
  xla::ErrorArgs args{offsetof(xla::ErrorArgs, code) + sizeof(code), nullptr, text, code};
  return frame.api->create_error(&args);
}

}  // namespace mxfp4moe::jax
