#include "jax/call_frame.h"

#include <cstring>
#include <string_view>

namespace mxfp4moe::jax {

void unexpected(const std::string& what) {
  throw Failure{XLA_FFI_Error_Code_INVALID_ARGUMENT, "expected a call as mxfp4moe.jax makes it, got " + what};
}

void CallFrame::check_counts(int64_t num_arguments, int64_t num_results) const {
  if (frame_.stage != XLA_FFI_ExecutionStage_EXECUTE) unexpected("another stage");
  if (frame_.args.size != num_arguments || frame_.rets.size != num_results) unexpected("other arrays");
}

const XLA_FFI_Buffer& CallFrame::argument(int64_t index) const {
  if (frame_.args.types[index] != XLA_FFI_ArgType_BUFFER) unexpected("an argument that is no array");
  return *static_cast<const XLA_FFI_Buffer*>(frame_.args.args[index]);
}

const XLA_FFI_Buffer& CallFrame::result(int64_t index) const {
  if (frame_.rets.types[index] != XLA_FFI_RetType_BUFFER) unexpected("a result that is no array");
  return *static_cast<const XLA_FFI_Buffer*>(frame_.rets.rets[index]);
}

const void* CallFrame::find(const char* name, XLA_FFI_AttrType type) const {
  for (int64_t i = 0; i < frame_.attrs.size; ++i) {
    const XLA_FFI_ByteSpan& found = *frame_.attrs.names[i];
    if (std::string_view(found.ptr, found.len) == name && frame_.attrs.types[i] == type) return frame_.attrs.attrs[i];
  }
  return nullptr;
}

const void* CallFrame::scalar(const char* name, XLA_FFI_DataType dtype) const {
  const auto* const found = static_cast<const XLA_FFI_Scalar*>(find(name, XLA_FFI_AttrType_SCALAR));
  if (found == nullptr || found->dtype != dtype) unexpected(std::string("no number ") + name);
  return found->value;
}

XLA_FFI_Array CallFrame::integers(const char* name) const {
  const auto* const found = static_cast<const XLA_FFI_Array*>(find(name, XLA_FFI_AttrType_ARRAY));
  if (found == nullptr) return {XLA_FFI_DataType_S64, 0, nullptr};
  if (found->dtype != XLA_FFI_DataType_S64) unexpected(std::string("other numbers ") + name);
  return *found;
}

int64_t num_columns(const XLA_FFI_Buffer& buffer) {
  if (buffer.rank == 0) unexpected("an array without axes");
  return buffer.dims[buffer.rank - 1];
}

int64_t num_rows(const XLA_FFI_Buffer& buffer) {
  int64_t count = 1;
  for (int64_t axis = 0; axis + 1 < buffer.rank; ++axis) count *= buffer.dims[axis];
  return count;
}

Rows rows_of(const XLA_FFI_Buffer& buffer) {
  const DType dtype = buffer.dtype == XLA_FFI_DataType_F32   ? DType::kFloat32
                      : buffer.dtype == XLA_FFI_DataType_F16 ? DType::kFloat16
                                                             : DType::kBFloat16;
  if (dtype == DType::kBFloat16 && buffer.dtype != XLA_FFI_DataType_BF16) unexpected("an array of another dtype");
  return {static_cast<uint8_t*>(buffer.data), num_columns(buffer) * value_bytes(dtype), dtype};
}

std::string position(const XLA_FFI_Buffer& buffer, int64_t flat) {
  std::string text = buffer.rank == 1 ? ",)" : ")";
  for (int64_t axis = buffer.rank - 1; axis >= 0; --axis) {
    text = std::to_string(flat % buffer.dims[axis]) + text;
    if (axis > 0) text = ", " + text;
    flat /= buffer.dims[axis];
  }
  return "(" + text;
}

bool answers_metadata(XLA_FFI_CallFrame* frame) {
  XLA_FFI_Extension_Base* const extension = frame->extension_start;
  if (extension == nullptr || extension->type != XLA_FFI_Extension_Metadata) return false;
  XLA_FFI_Metadata& metadata = *reinterpret_cast<XLA_FFI_Metadata_Extension*>(extension)->metadata;
  metadata.api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};
  metadata.traits = 0;
  return true;
}

XLA_FFI_Error* make_error(const XLA_FFI_CallFrame& frame, XLA_FFI_Error_Code code, const char* text) {
  XLA_FFI_Error_Create_Args args{XLA_FFI_Error_Create_Args_STRUCT_SIZE, nullptr, text, code};
  return frame.api->XLA_FFI_Error_Create(&args);
}

}  // namespace mxfp4moe::jax
