// The binary interface of XLA's foreign functions, as far as functions on host memory need it: what a runtime hands to
// a handler, and how the handler answers. Written from the interface's description, so that no build needs a header of
// XLA; names are XLA's without their prefix. `tests/cpp/xla_layout.cpp` holds sizes, places and numbers to the header
// that jaxlib ships.
//
// All of it has been the same since version 0.1; XLA takes handlers of versions at least a year old, and structures
// grow at their end.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mxfp4moe::jax::xla {

constexpr int kMajorVersion = 0, kMinorVersion = 1;

enum ErrorCode : int { kInvalidArgument = 3, kResourceExhausted = 8, kFailedPrecondition = 9, kInternal = 13 };
enum DataType : int { kS32 = 4, kS64 = 5, kF16 = 10, kF32 = 11, kBF16 = 16 };
enum BufferType : int { kBuffer = 1 };
enum AttributeType : int { kArray = 1, kScalar = 3 };
enum Stage : int { kExecute = 3 };
enum ExtensionType : int { kMetadata = 1 };

struct Error;  // made and owned by XLA

struct Extension {
  size_t struct_size;
  ExtensionType type;
  Extension* next;
};

struct Version {
  size_t struct_size;
  Extension* extensions;
  int major, minor;
};

struct ErrorArgs {
  size_t struct_size;
  Extension* extensions;
  const char* message;
  ErrorCode code;
};

// The functions of the runtime; those after the first are not used.
struct Api {
  size_t struct_size;
  Extension* extensions;
  Version version;
  const void* internal;
  Error* (*create_error)(ErrorArgs* args);
};

// A contiguous array; `dims` has the size of each of the `rank` axes.
struct Buffer {
  size_t struct_size;
  Extension* extensions;
  DataType dtype;
  void* data;
  int64_t rank;
  int64_t* dims;
};

struct Text {
  const char* data;
  size_t size;
};

struct Scalar {
  DataType dtype;
  void* value;
};

struct Array {
  DataType dtype;
  size_t size;
  void* data;
};

struct Buffers {
  size_t struct_size;
  Extension* extensions;
  int64_t size;
  BufferType* types;
  void** values;
};

struct Attributes {
  size_t struct_size;
  Extension* extensions;
  int64_t size;
  AttributeType* types;
  Text** names;
  void** values;
};

// What a handler is given in one call.
struct Frame {
  size_t struct_size;
  Extension* extensions;
  const Api* api;
  void* context;
  Stage stage;
  Buffers arguments, results;
  Attributes attributes;
};

// What a handler says of itself, when the first extension of a frame is this question.
struct Metadata {
  size_t struct_size;
  Version version;
  uint32_t traits;
};

struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

}  // namespace mxfp4moe::jax::xla
