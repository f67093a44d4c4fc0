// What the cases of capi_fuzz.cpp share: random numbers, memory, arrays and options, each of them wrong now and then.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "mxfp4moe.h"

constexpr int64_t kGroup = 32;

[[noreturn]] inline void fail(uint64_t seed, uint64_t number, const std::string& what) {
  std::fprintf(stderr, "seed %llu, case %llu: %s\n", static_cast<unsigned long long>(seed),
               static_cast<unsigned long long>(number), what.c_str());
  std::abort();
}

inline int64_t dtype_size(int32_t dtype) {
  if (dtype == MXFP4MOE_DTYPE_FLOAT32 || dtype == MXFP4MOE_DTYPE_INT32) return 4;
  if (dtype == MXFP4MOE_DTYPE_FLOAT64) return 8;
  return dtype == MXFP4MOE_DTYPE_FLOAT16 || dtype == MXFP4MOE_DTYPE_BFLOAT16 ? 2 : 1;
}

inline void serial(void*, int32_t count, mxfp4moe_task task, void* task_context) {
  for (int32_t i = count - 1; i >= 0; --i) task(task_context, i);
}

inline void with_threads(void*, int32_t count, mxfp4moe_task task, void* task_context) {
  std::vector<std::thread> threads;
  for (int32_t i = 0; i < count; ++i) threads.emplace_back(task, task_context, i);
  for (std::thread& thread : threads) thread.join();
}

// One case: its random numbers and the memory of its arrays.
class RandomCase {
 public:
  RandomCase(uint64_t seed, uint64_t number)
      : seed_(seed), number_(number), random_(seed * 0x9e3779b97f4a7c15u + number) {}

  uint64_t num_ok = 0, num_refused = 0;

 protected:
  uint64_t draw(uint64_t count) { return random_() % count; }
  int64_t between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(draw(static_cast<uint64_t>(high - low + 1)));
  }
  bool one_in(uint64_t count) { return draw(count) == 0; }

  // Whether the field that is asked about is made wrong: in half of the cases none is.
  bool wrong() { return is_wrong_ && one_in(16); }

  // A number that no field can have, or only by chance.
  int64_t odd_number() {
    const int64_t numbers[] = {-1, INT64_MIN, INT64_MAX, int64_t{1} << 62, -(int64_t{1} << 31), int64_t{1} << 31,
                               3,  0,         -32};
    return numbers[draw(std::size(numbers))];
  }
  template <class T>
  void spoil(T& field) {
    if (wrong()) field = static_cast<T>(odd_number());
  }
  void spoil(double& field) {
    const double numbers[] = {kNan, -kNan, 1e308 * 10, -1e308 * 10, -1, 1e300, 1e-320};
    if (wrong()) field = numbers[draw(std::size(numbers))];
  }
  // As `spoil`, for numbers on which it depends how much of a plain pointer is read: these are refused, or 0.
  void spoil_count(int64_t& field) {
    const int64_t numbers[] = {0, -1, INT64_MIN, INT64_MAX, int64_t{1} << 62, int64_t{1} << 31};
    if (wrong()) field = numbers[draw(std::size(numbers))];
  }
  template <class T>
  T* maybe(T* structure) {
    return wrong() ? nullptr : structure;
  }

  // Memory that lives as long as the case. Random bytes have all kinds of numbers in them, NaN and infinity too.
  uint8_t* memory(int64_t bytes) {
    blocks_.push_back(std::make_unique<uint8_t[]>(static_cast<size_t>(std::max<int64_t>(bytes, 1))));
    uint8_t* const data = blocks_.back().get();
    for (int64_t i = 0; i < bytes; ++i) data[i] = static_cast<uint8_t>(random_());
    return data;
  }
  float* floats(int64_t count) {
    float* const data = reinterpret_cast<float*>(memory(4 * count));
    if (one_in(8)) return data;
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < count; ++i) data[i] = normal(random_);
    return data;
  }

  mxfp4moe_array array(int64_t count, int32_t dtype) {
    mxfp4moe_array result{nullptr, static_cast<uint64_t>(count * dtype_size(dtype)), dtype};
    result.data =
        dtype == MXFP4MOE_DTYPE_FLOAT32 ? reinterpret_cast<uint8_t*>(floats(count)) : memory(count * dtype_size(dtype));
    if (wrong()) result.data = nullptr;
    if (wrong()) result.data = memory(static_cast<int64_t>(result.size) + 1) + 1;
    if (wrong() && result.size > 0) result.size -= 1 + draw(result.size);
    spoil(result.dtype);
    if (wrong()) result = {nullptr, 0, 0};
    return result;
  }
  mxfp4moe_array zero_points(int64_t count, bool of_int4) {
    mxfp4moe_array result = array(count, of_int4 ? MXFP4MOE_DTYPE_UINT8 : MXFP4MOE_DTYPE_INT8);
    uint8_t* const data = const_cast<uint8_t*>(static_cast<const uint8_t*>(result.data));
    if (of_int4 && data != nullptr && !wrong()) {
      for (uint64_t i = 0; i < result.size; ++i) data[i] &= 15;
    }
    return result;
  }

  const mxfp4moe_options* options() {
    if (one_in(3)) return nullptr;
    options_ = {sizeof(options_), static_cast<int32_t>(between(0, 3)), MXFP4MOE_ISA_BEST, nullptr, nullptr};
    if (one_in(2)) options_.isa = MXFP4MOE_ISA_PORTABLE;
    if (one_in(4)) options_.parallel_for = serial;
    if (one_in(8)) options_.parallel_for = with_threads;
    spoil(options_.struct_size);
    spoil(options_.num_threads);
    spoil(options_.isa);
    return &options_;
  }

  // Whether the call succeeded; looks at what it says of an error.
  bool check(mxfp4moe_status status) {
    if (status == MXFP4MOE_OK) return ++num_ok, true;
    if (status < 0 || status > MXFP4MOE_INTERNAL_ERROR) fail(seed_, number_, "status " + std::to_string(status));
    if (status == MXFP4MOE_INTERNAL_ERROR) fail(seed_, number_, std::string("internal: ") + mxfp4moe_last_error());
    if (mxfp4moe_last_error()[0] == 0) fail(seed_, number_, "an error without a message");
    return ++num_refused, false;
  }
  void expect(bool condition, const char* what) {
    if (!condition) fail(seed_, number_, what);
  }

  // Element and scale dtypes of a format, and how many weights share a byte and a scale.
  struct FormatArrays {
    int32_t dtype, scale_dtype;
    int64_t per_byte, per_scale;  // 0: groups or blocks
  };
  FormatArrays arrays_of(int32_t format) {
    switch (format) {
      case MXFP4MOE_FORMAT_MXFP4: return {MXFP4MOE_DTYPE_UINT8, MXFP4MOE_DTYPE_FLOAT8_E8M0, 2, 32};
      case MXFP4MOE_FORMAT_MXFP8: return {MXFP4MOE_DTYPE_FLOAT8_E4M3, MXFP4MOE_DTYPE_FLOAT8_E8M0, 1, 32};
      case MXFP4MOE_FORMAT_NVFP4: return {MXFP4MOE_DTYPE_UINT8, MXFP4MOE_DTYPE_FLOAT8_E4M3, 2, 16};
      case MXFP4MOE_FORMAT_FP8_BLOCK: return {MXFP4MOE_DTYPE_FLOAT8_E4M3, MXFP4MOE_DTYPE_FLOAT32, 1, 0};
      case MXFP4MOE_FORMAT_INT4: return {MXFP4MOE_DTYPE_UINT8, MXFP4MOE_DTYPE_FLOAT32, 2, 0};
      case MXFP4MOE_FORMAT_INT8: return {MXFP4MOE_DTYPE_INT8, MXFP4MOE_DTYPE_FLOAT32, 1, 0};
      case MXFP4MOE_FORMAT_BF16: return {MXFP4MOE_DTYPE_BFLOAT16, 0, 1, 0};
      default: return {MXFP4MOE_DTYPE_FLOAT32, 0, 1, 0};
    }
  }

  struct Matrix {
    mxfp4moe_array weights{}, scales{}, zeros{}, tensor_scale{}, bias{}, offsets{};
  };
  // In formats of integers `group` weights of a row share a scale, or all of them if it is 0.
  struct Sizes {
    int64_t experts, rows, k, group;
  };
  Matrix matrix(int32_t format, const Sizes& sizes) {
    const FormatArrays of = arrays_of(format);
    const auto [experts, rows, k, group] = sizes;
    Matrix m;
    m.weights = array(experts * rows * k / of.per_byte, of.dtype);
    int64_t num_scales = 0;
    if (of.per_scale > 0) num_scales = experts * rows * k / of.per_scale;
    if (has_groups(format)) num_scales = experts * rows * (group == 0 ? 1 : k / group);
    if (format == MXFP4MOE_FORMAT_FP8_BLOCK)
      num_scales = experts * ((rows + kGroup - 1) / kGroup) * ((k + kGroup - 1) / kGroup);
    if (num_scales > 0) m.scales = array(num_scales, of.scale_dtype);
    if (has_groups(format) && one_in(3)) {
      m.offsets = array(num_scales, of.scale_dtype);
    } else if (has_groups(format) && group != kGroup / 2 && one_in(2)) {
      m.zeros = zero_points(num_scales, format == MXFP4MOE_FORMAT_INT4);
    }
    if (format == MXFP4MOE_FORMAT_NVFP4) m.tensor_scale = array(experts, MXFP4MOE_DTYPE_FLOAT32);
    if (one_in(2)) m.bias = array(experts * rows, MXFP4MOE_DTYPE_FLOAT32);
    return m;
  }

  static bool has_groups(int32_t format) { return format == MXFP4MOE_FORMAT_INT4 || format == MXFP4MOE_FORMAT_INT8; }
  static bool is_integral(int32_t format) {
    return has_groups(format) || format == MXFP4MOE_FORMAT_MXFP4 || format == MXFP4MOE_FORMAT_NVFP4;
  }
  int64_t group_size() { return one_in(3) ? 0 : one_in(3) ? kGroup / 2 : kGroup; }

  // A permutation of `k` columns for each expert.
  mxfp4moe_array columns(int64_t experts, int64_t k) {
    const mxfp4moe_array result = array(experts * k, MXFP4MOE_DTYPE_INT32);
    auto* const data = static_cast<uint8_t*>(const_cast<void*>(result.data));
    if (data == nullptr || result.size != static_cast<uint64_t>(4 * experts * k)) return result;
    std::vector<int32_t> order(static_cast<size_t>(k));
    for (int64_t expert = 0; expert < experts; ++expert) {
      std::iota(order.begin(), order.end(), 0);
      std::shuffle(order.begin(), order.end(), random_);
      spoil(order[draw(order.size())]);
      std::memcpy(data + 4 * expert * k, order.data(), 4 * order.size());
    }
    return result;
  }

  // Rows of tokens for a call, and where its result goes.
  struct TokenRows {
    void* data;
    int64_t stride;
    int32_t dtype;
  };
  TokenRows rows(int64_t tokens, int64_t columns) {
    const int32_t dtype = static_cast<int32_t>(between(MXFP4MOE_DTYPE_FLOAT32, MXFP4MOE_DTYPE_BFLOAT16));
    const int64_t bytes = columns * dtype_size(dtype), stride = one_in(2) ? 0 : bytes + 4 * between(0, 8);
    TokenRows result{memory(tokens * std::max(bytes, stride)), stride, dtype};
    if (dtype == MXFP4MOE_DTYPE_FLOAT32 && stride == 0) result.data = floats(tokens * columns);
    if (wrong()) result.data = nullptr;
    const int64_t strides[] = {bytes - 1, -1, 3, INT64_MIN};
    if (wrong()) result.stride = strides[draw(std::size(strides))];
    // Only those that are refused: a wider one would read what is not there.
    if (wrong()) result.dtype = one_in(2) ? -1 : MXFP4MOE_DTYPE_FLOAT64;
    return result;
  }

  // Where the terms of slots go.
  TokenRows terms(int64_t slots, int64_t columns) {
    TokenRows result{floats(slots * columns), 0, MXFP4MOE_DTYPE_FLOAT32};
    if (wrong()) result.dtype = MXFP4MOE_DTYPE_BFLOAT16;
    return result;
  }

  static constexpr double kNan = __builtin_nan("");
  const uint64_t seed_, number_;
  std::mt19937_64 random_;
  bool is_wrong_ = one_in(2) || one_in(2);
  mxfp4moe_options options_{};
  std::vector<std::unique_ptr<uint8_t[]>> blocks_;
};
