// Arguments of the C interface, checked.
#pragma once

#include <cstddef>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <optional>

#include "capi/error.h"
#include "common/types.h"
#include "kernels/registry.h"
#include "threads/float_environment.h"
#include "threads/pool.h"

namespace mxfp4moe::capi {

// The product of sizes, none of them negative; the largest int64 if it is larger.
int64_t product(std::initializer_list<int64_t> sizes);

void check_range(const char* name, int64_t value, int64_t least, int64_t limit);
void check_flag(const char* name, int32_t value);
// A finite number that float32 can hold.
void check_float32(const char* name, double value, double least = -std::numeric_limits<float>::max());

// The size of a structure in the first version of the interface: a caller knows at least so much of it.
template <class T>
constexpr size_t kFirstSize = sizeof(T);
template <>
inline constexpr size_t kFirstSize<mxfp4moe_experts_arrays> = offsetof(mxfp4moe_experts_arrays, w13_offsets);
template <>
inline constexpr size_t kFirstSize<mxfp4moe_linear_arrays> = offsetof(mxfp4moe_linear_arrays, offsets);
template <>
inline constexpr size_t kFirstSize<mxfp4moe_experts_info> = offsetof(mxfp4moe_experts_info, w2_format);
template <>
inline constexpr size_t kFirstSize<mxfp4moe_layer_info> = offsetof(mxfp4moe_layer_info, num_held_experts);
template <>
inline constexpr size_t kFirstSize<mxfp4moe_fused_experts_args> = offsetof(mxfp4moe_fused_experts_args, expert_map);
template <>
inline constexpr size_t kFirstSize<mxfp4moe_linear_args> = offsetof(mxfp4moe_linear_args, activation_format);

// Copies what a caller knows of a structure; what it does not know is 0.
template <class T>
T read_struct(const char* name, const T* given) {
  constexpr size_t least = kFirstSize<T>;
  if (given == nullptr) invalid(name, "a structure", "NULL");
  size_t size;
  std::memcpy(&size, given, sizeof(size));
  if (size < least || size > sizeof(T)) {
    invalid(std::string(name) + ".struct_size", std::to_string(least) + " to " + std::to_string(sizeof(T)),
            std::to_string(size));
  }
  T result{};
  std::memcpy(&result, given, size);
  return result;
}

// Writes as much of `value` as a caller knows.
template <class T>
void write_struct(const char* name, T value, T* to) {
  value.struct_size = read_struct(name, to).struct_size;
  std::memcpy(to, &value, value.struct_size);
}

template <class T>
void check_handle(const char* name, const T* handle) {
  if (handle == nullptr) invalid(name, "a handle", "NULL");
}

// How a call is computed, for as long as this lives.
class Call {
 public:
  explicit Call(const mxfp4moe_options* options);

  KernelTable kernels(ActivationFormat format = ActivationFormat::kBFloat16) const {
    return kernel_table_for(kernels_, format);
  }
  int num_threads() const { return num_threads_; }

 private:
  HostPool host_{};
  int kernels_;
  int num_threads_;
  std::optional<UseHostPool> use_host_;
  DefaultFloatEnvironment environment_;
};

void throw_status(Status status, const char* what);

int64_t dtype_bytes(int32_t dtype);
const char* dtype_name(int32_t dtype);
DType float_dtype(const char* name, int32_t dtype, bool with_float64 = false);

// Where numbers of a caller lie, for the search for overlaps.
struct Extent {
  const char* name;
  const void* data;
  int64_t bytes;
};

// `bytes` bytes at `data`, in whole elements.
Extent check_memory(const char* name, const void* data, int64_t bytes, int64_t alignment);
void check_apart(const Extent& out, std::initializer_list<Extent> inputs);

struct RowsArgument {
  const char* name;
  const void* data;
  int64_t num_rows, columns;
  int64_t stride;  // 0: contiguous
  int32_t dtype;
};
struct CheckedRows {
  Rows rows;
  Extent extent;
};
CheckedRows check_rows(const RowsArgument& rows);

// Whether `out` is `in` itself; raises if they overlap otherwise.
void check_in_place(const CheckedRows& out, const CheckedRows& in);

}  // namespace mxfp4moe::capi
