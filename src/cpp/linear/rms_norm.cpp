#include "linear/rms_norm.h"

#include <cmath>

#include "formats/bf16.h"
#include "threads/split.h"

namespace mxfp4moe {
namespace {

constexpr int kLanes = 8;

// Rows of each dtype: how a number is read, and how a float32 number is rounded and written.
struct Float32 {
  using Bits = float;
  static float load(float x) { return x; }
  static float round(float x) { return x; }
};
struct BFloat16 {
  using Bits = uint16_t;
  static float load(uint16_t x) { return bf16_to_f32(x); }
  static uint16_t round(float x) { return f32_to_bf16(x); }
};
struct Float16 {
  using Bits = uint16_t;
  static float load(uint16_t x) { return f16_to_f32(x); }
  static uint16_t round(float x) { return f32_to_f16(x); }
};

// Calls f with the Float32, BFloat16 or Float16 of `dtype`.
template <class F>
void with_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kBFloat16: f(BFloat16{}); return;
    case DType::kFloat16: f(Float16{}); return;
    default: f(Float32{}); return;
  }
}

template <class From>
double mean_square(const typename From::Bits* row, int64_t k) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const double x = From::load(row[i + lane]);
      lanes[lane] += x * x;
    }
  }
  for (int lane = 0; i + lane < k; ++lane) {
    const double x = From::load(row[i + lane]);
    lanes[lane] += x * x;
  }
  const double low = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
  const double high = (lanes[4] + lanes[5]) + (lanes[6] + lanes[7]);
  return (low + high) / static_cast<double>(k);
}

template <class From, class To>
void norm_row(const RmsNorm& norm, int64_t index) {
  const auto* row = reinterpret_cast<const typename From::Bits*>(norm.rows.data + index * norm.rows.stride);
  auto* out = reinterpret_cast<typename To::Bits*>(norm.out.data + index * norm.out.stride);
  const float factor = static_cast<float>(1.0 / std::sqrt(mean_square<From>(row, norm.k) + norm.epsilon));
  if (norm.weight == nullptr) {
    for (int64_t i = 0; i < norm.k; ++i) out[i] = To::round(From::load(row[i]) * factor);
  } else {
    for (int64_t i = 0; i < norm.k; ++i) out[i] = To::round(From::load(row[i]) * factor * norm.weight[i]);
  }
}

}  // namespace

void mean_squares(const Rows& rows, int64_t num_rows, int64_t k, double* means, int num_threads) {
  with_dtype(rows.dtype, [&](auto from) {
    using From = decltype(from);
    split_units(num_rows, k, num_threads, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const auto* data = reinterpret_cast<const typename From::Bits*>(rows.data + row * rows.stride);
        means[row] = mean_square<From>(data, k);
      }
    });
  });
}

void rms_norm(const RmsNorm& norm, int num_threads) {
  with_dtype(norm.rows.dtype, [&](auto from) {
    with_dtype(norm.out.dtype, [&](auto to) {
      split_units(norm.num_rows, norm.k, num_threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) norm_row<decltype(from), decltype(to)>(norm, row);
      });
    });
  });
}

}  // namespace mxfp4moe
