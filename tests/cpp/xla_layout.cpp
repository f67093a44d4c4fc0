// Holds src/cpp/jax/xla.h to the header of XLA that jaxlib ships; to be compiled, not run.
#include <xla/ffi/api/c_api.h>

#include "jax/xla.h"

namespace xla = mxfp4moe::jax::xla;

// A newer structure may have more at its end.
#define SAME_FIELD(ours, our_field, theirs, their_field)                          \
  static_assert(offsetof(xla::ours, our_field) == offsetof(theirs, their_field)); \
  static_assert(sizeof(static_cast<xla::ours*>(nullptr)->our_field) ==            \
                sizeof(static_cast<theirs*>(nullptr)->their_field))
#define SAME_NUMBER(ours, theirs) static_assert(static_cast<int>(xla::ours) == static_cast<int>(theirs))

static_assert(xla::kMajorVersion == XLA_FFI_API_MAJOR && xla::kMinorVersion <= XLA_FFI_API_MINOR);

SAME_NUMBER(kInvalidArgument, XLA_FFI_Error_Code_INVALID_ARGUMENT);
SAME_NUMBER(kResourceExhausted, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED);
SAME_NUMBER(kFailedPrecondition, XLA_FFI_Error_Code_FAILED_PRECONDITION);
SAME_NUMBER(kInternal, XLA_FFI_Error_Code_INTERNAL);
SAME_NUMBER(kS32, XLA_FFI_DataType_S32);
SAME_NUMBER(kS64, XLA_FFI_DataType_S64);
SAME_NUMBER(kF16, XLA_FFI_DataType_F16);
SAME_NUMBER(kF32, XLA_FFI_DataType_F32);
SAME_NUMBER(kBF16, XLA_FFI_DataType_BF16);
SAME_NUMBER(kBuffer, XLA_FFI_ArgType_BUFFER);
SAME_NUMBER(kBuffer, XLA_FFI_RetType_BUFFER);
SAME_NUMBER(kArray, XLA_FFI_AttrType_ARRAY);
SAME_NUMBER(kScalar, XLA_FFI_AttrType_SCALAR);
SAME_NUMBER(kExecute, XLA_FFI_ExecutionStage_EXECUTE);
SAME_NUMBER(kMetadata, XLA_FFI_Extension_Metadata);

SAME_FIELD(Extension, struct_size, XLA_FFI_Extension_Base, struct_size);
SAME_FIELD(Extension, type, XLA_FFI_Extension_Base, type);
SAME_FIELD(Extension, next, XLA_FFI_Extension_Base, next);

SAME_FIELD(Version, struct_size, XLA_FFI_Api_Version, struct_size);
SAME_FIELD(Version, extensions, XLA_FFI_Api_Version, extension_start);
SAME_FIELD(Version, major, XLA_FFI_Api_Version, major_version);
SAME_FIELD(Version, minor, XLA_FFI_Api_Version, minor_version);
static_assert(sizeof(xla::Version) == sizeof(XLA_FFI_Api_Version));

SAME_FIELD(ErrorArgs, struct_size, XLA_FFI_Error_Create_Args, struct_size);
SAME_FIELD(ErrorArgs, extensions, XLA_FFI_Error_Create_Args, extension_start);
SAME_FIELD(ErrorArgs, message, XLA_FFI_Error_Create_Args, message);
SAME_FIELD(ErrorArgs, code, XLA_FFI_Error_Create_Args, errc);
static_assert(sizeof(xla::ErrorArgs) == sizeof(XLA_FFI_Error_Create_Args));

SAME_FIELD(Api, struct_size, XLA_FFI_Api, struct_size);
SAME_FIELD(Api, extensions, XLA_FFI_Api, extension_start);
SAME_FIELD(Api, version, XLA_FFI_Api, api_version);
SAME_FIELD(Api, internal, XLA_FFI_Api, internal_api);
SAME_FIELD(Api, create_error, XLA_FFI_Api, XLA_FFI_Error_Create);

SAME_FIELD(Buffer, struct_size, XLA_FFI_Buffer, struct_size);
SAME_FIELD(Buffer, extensions, XLA_FFI_Buffer, extension_start);
SAME_FIELD(Buffer, dtype, XLA_FFI_Buffer, dtype);
SAME_FIELD(Buffer, data, XLA_FFI_Buffer, data);
SAME_FIELD(Buffer, rank, XLA_FFI_Buffer, rank);
SAME_FIELD(Buffer, dims, XLA_FFI_Buffer, dims);

SAME_FIELD(Text, data, XLA_FFI_ByteSpan, ptr);
SAME_FIELD(Text, size, XLA_FFI_ByteSpan, len);
SAME_FIELD(Scalar, dtype, XLA_FFI_Scalar, dtype);
SAME_FIELD(Scalar, value, XLA_FFI_Scalar, value);
SAME_FIELD(Array, dtype, XLA_FFI_Array, dtype);
SAME_FIELD(Array, size, XLA_FFI_Array, size);
SAME_FIELD(Array, data, XLA_FFI_Array, data);

SAME_FIELD(Buffers, struct_size, XLA_FFI_Args, struct_size);
SAME_FIELD(Buffers, extensions, XLA_FFI_Args, extension_start);
SAME_FIELD(Buffers, size, XLA_FFI_Args, size);
SAME_FIELD(Buffers, types, XLA_FFI_Args, types);
SAME_FIELD(Buffers, values, XLA_FFI_Args, args);
static_assert(sizeof(xla::Buffers) == sizeof(XLA_FFI_Args));
SAME_FIELD(Buffers, size, XLA_FFI_Rets, size);
SAME_FIELD(Buffers, types, XLA_FFI_Rets, types);
SAME_FIELD(Buffers, values, XLA_FFI_Rets, rets);
static_assert(sizeof(xla::Buffers) == sizeof(XLA_FFI_Rets));

SAME_FIELD(Attributes, struct_size, XLA_FFI_Attrs, struct_size);
SAME_FIELD(Attributes, extensions, XLA_FFI_Attrs, extension_start);
SAME_FIELD(Attributes, size, XLA_FFI_Attrs, size);
SAME_FIELD(Attributes, types, XLA_FFI_Attrs, types);
SAME_FIELD(Attributes, names, XLA_FFI_Attrs, names);
SAME_FIELD(Attributes, values, XLA_FFI_Attrs, attrs);
static_assert(sizeof(xla::Attributes) == sizeof(XLA_FFI_Attrs));

SAME_FIELD(Frame, struct_size, XLA_FFI_CallFrame, struct_size);
SAME_FIELD(Frame, extensions, XLA_FFI_CallFrame, extension_start);
SAME_FIELD(Frame, api, XLA_FFI_CallFrame, api);
SAME_FIELD(Frame, context, XLA_FFI_CallFrame, ctx);
SAME_FIELD(Frame, stage, XLA_FFI_CallFrame, stage);
SAME_FIELD(Frame, arguments, XLA_FFI_CallFrame, args);
SAME_FIELD(Frame, results, XLA_FFI_CallFrame, rets);
SAME_FIELD(Frame, attributes, XLA_FFI_CallFrame, attrs);

SAME_FIELD(Metadata, struct_size, XLA_FFI_Metadata, struct_size);
SAME_FIELD(Metadata, version, XLA_FFI_Metadata, api_version);
SAME_FIELD(Metadata, traits, XLA_FFI_Metadata, traits);
SAME_FIELD(MetadataExtension, base, XLA_FFI_Metadata_Extension, extension_base);
SAME_FIELD(MetadataExtension, metadata, XLA_FFI_Metadata_Extension, metadata);
