#include "capi/arguments.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "threads/cpus.h"

namespace mxfp4moe::capi {
namespace {

constexpr int32_t kMaxThreads = 1024;
constexpr const char* kIsaNames[] = {"", "portable", "avx2", "avx512", "amx"};

thread_local char last_error[1024] = "";

}  // namespace

void set_last_error(const char* text) { std::snprintf(last_error, sizeof(last_error), "%s", text); }

std::string text_of(double value) {
  char text[40];
  std::snprintf(text, sizeof(text), "%.9g", value);
  return text;
}

int64_t product(std::initializer_list<int64_t> sizes) {
  int64_t result = 1;
  bool overflow = false;
  for (int64_t size : sizes) {
    if (size == 0) return 0;
    overflow |= __builtin_mul_overflow(result, size, &result);
  }
  return overflow ? std::numeric_limits<int64_t>::max() : result;
}

void check_range(const char* name, int64_t value, int64_t least, int64_t limit) {
  if (value < least || value > limit) {
    invalid(name, "an integer in [" + text_of(least) + ", " + text_of(limit) + "]", text_of(value));
  }
}

void check_flag(const char* name, int32_t value) {
  if (value != 0 && value != 1) invalid(name, "0 or 1", text_of(int64_t{value}));
}

void check_float32(const char* name, double value, double least) {
  if (!(value >= least && value <= std::numeric_limits<float>::max())) {
    invalid(name, "a finite float32 number of at least " + text_of(least), text_of(value));
  }
}

// The number of the kernel table of an instruction set, or -1.
int find_kernels(int32_t isa) {
  int found = -1;
  for (int i = 0; i < num_kernel_tables(); ++i) {
    const KernelTable& table = kernel_table(i);
    const bool is_meant = isa == MXFP4MOE_ISA_BEST || std::strcmp(table.isa, kIsaNames[isa]) == 0;
    if (table.automatic && is_meant && kernel_table_supported(i)) found = i;
  }
  return found;
}

Call::Call(const mxfp4moe_options* options) {
  mxfp4moe_options given{};
  if (options != nullptr) given = read_struct("options", options);
  check_range("options.num_threads", given.num_threads, 0, kMaxThreads);
  check_range("options.isa", given.isa, 0, MXFP4MOE_ISA_AMX);
  kernels_ = find_kernels(given.isa);
  if (kernels_ < 0) {
    fail(MXFP4MOE_UNSUPPORTED, "options.isa", "an instruction set of this machine and build", kIsaNames[given.isa]);
  }
  num_threads_ = given.num_threads > 0 ? given.num_threads : std::min(available_cpus(), int{kMaxThreads});
  host_ = {given.parallel_for, given.parallel_context};
  use_host_.emplace(host_.parallel_for == nullptr ? nullptr : &host_);
}

void throw_status(Status status, const char* what) {
  if (status != Status::kOk) throw Error{MXFP4MOE_OUT_OF_MEMORY, std::string("no memory for the workspace of ") + what};
}

int64_t dtype_bytes(int32_t dtype) {
  if (dtype <= MXFP4MOE_DTYPE_FLOAT64) return value_bytes(static_cast<DType>(dtype));
  return dtype == MXFP4MOE_DTYPE_INT32 ? 4 : 1;
}

const char* dtype_name(int32_t dtype) {
  constexpr const char* kNames[] = {"uint8", "int8", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "int32"};
  if (dtype < 0 || dtype > MXFP4MOE_DTYPE_INT32) return "no dtype";
  return dtype <= MXFP4MOE_DTYPE_FLOAT64 ? kDTypeNames[dtype] : kNames[dtype - MXFP4MOE_DTYPE_UINT8];
}

DType float_dtype(const char* name, int32_t dtype, bool with_float64) {
  const int32_t limit = with_float64 ? MXFP4MOE_DTYPE_FLOAT64 : MXFP4MOE_DTYPE_BFLOAT16;
  if (dtype < 0 || dtype > limit) {
    const char* const expected =
        with_float64 ? "float32, float16, bfloat16 or float64" : "float32, float16 or bfloat16";
    invalid(name, expected, dtype_name(dtype));
  }
  return static_cast<DType>(dtype);
}

Extent check_memory(const char* name, const void* data, int64_t bytes, int64_t alignment) {
  if (bytes == 0) return {name, data, 0};
  const uintptr_t address = reinterpret_cast<uintptr_t>(data);
  if (data == nullptr) invalid(name, text_of(bytes) + " bytes", "NULL");
  if (address % static_cast<uintptr_t>(alignment) != 0) {
    invalid(name, "memory aligned to " + text_of(alignment) + " bytes", "an unaligned pointer");
  }
  if (static_cast<uint64_t>(bytes) > std::numeric_limits<uintptr_t>::max() - address) {
    invalid(name, "memory that can exist", text_of(bytes) + " bytes");
  }
  return {name, data, bytes};
}

void check_apart(const Extent& out, std::initializer_list<Extent> inputs) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(out.data), end = begin + static_cast<uintptr_t>(out.bytes);
  for (const Extent& input : inputs) {
    const uintptr_t first = reinterpret_cast<uintptr_t>(input.data);
    if (out.bytes > 0 && input.bytes > 0 && first < end && begin < first + static_cast<uintptr_t>(input.bytes)) {
      invalid(out.name, std::string("memory apart from ") + input.name, "an overlap");
    }
  }
}

CheckedRows check_rows(const RowsArgument& r) {
  const std::string name = r.name;
  const DType dtype = float_dtype((name + "_dtype").c_str(), r.dtype);
  const int64_t bytes = value_bytes(dtype), row_bytes = product({r.columns, bytes});
  const int64_t stride = r.stride == 0 ? row_bytes : r.stride;
  if (stride < row_bytes || stride % bytes != 0) {
    invalid(name + "_stride", "a multiple of " + text_of(bytes) + " of at least " + text_of(row_bytes),
            text_of(stride));
  }
  const int64_t before = product({std::max<int64_t>(r.num_rows - 1, 0), stride});
  if (before > std::numeric_limits<int64_t>::max() - row_bytes) {
    invalid(name, "memory that can exist", text_of(r.num_rows) + " rows of " + text_of(stride) + " bytes");
  }
  const int64_t extent = r.num_rows == 0 ? 0 : before + row_bytes;
  uint8_t* data = static_cast<uint8_t*>(const_cast<void*>(r.data));
  return {{data, stride, dtype}, check_memory(r.name, r.data, extent, bytes)};
}

void check_in_place(const CheckedRows& out, const CheckedRows& in) {
  const bool same =
      out.rows.data == in.rows.data && out.rows.stride == in.rows.stride && out.rows.dtype == in.rows.dtype;
  if (!same) check_apart(out.extent, {in.extent});
}

}  // namespace mxfp4moe::capi

using namespace mxfp4moe;
using namespace mxfp4moe::capi;

const char* mxfp4moe_last_error(void) { return last_error; }
const char* mxfp4moe_version(void) { return MXFP4MOE_VERSION; }
int32_t mxfp4moe_abi_version(void) { return MXFP4MOE_ABI_VERSION; }
int32_t mxfp4moe_layout_version(void) { return kLayoutVersion; }

int32_t mxfp4moe_isa_supported(int32_t isa) {
  return isa > MXFP4MOE_ISA_BEST && isa <= MXFP4MOE_ISA_AMX && find_kernels(isa) >= 0;
}

int32_t mxfp4moe_best_isa(void) {
  const char* const name = kernel_table(find_kernels(MXFP4MOE_ISA_BEST)).isa;
  int32_t isa = MXFP4MOE_ISA_PORTABLE;
  while (isa < MXFP4MOE_ISA_AMX && std::strcmp(kIsaNames[isa], name) != 0) ++isa;
  return isa;
}

int32_t mxfp4moe_available_threads(void) { return available_cpus(); }
int32_t mxfp4moe_num_pool_threads(void) { return num_workers(); }
void mxfp4moe_release_pool_threads(void) { release_workers(); }
