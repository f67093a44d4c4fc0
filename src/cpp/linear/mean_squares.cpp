#include "linear/mean_squares.h"

#include "formats/bf16.h"
#include "threads/split.h"

namespace mxfp4moe {
namespace {

constexpr int kLanes = 8;

double load(const float* row, int64_t i) { return row[i]; }
double load(const uint16_t* row, int64_t i) { return bf16_to_f32(row[i]); }

template <class T>
double mean_square(const T* row, int64_t k) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const double x = load(row, i + lane);
      lanes[lane] += x * x;
    }
  }
  for (int lane = 0; i + lane < k; ++lane) {
    const double x = load(row, i + lane);
    lanes[lane] += x * x;
  }
  const double low = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
  const double high = (lanes[4] + lanes[5]) + (lanes[6] + lanes[7]);
  return (low + high) / static_cast<double>(k);
}

}  // namespace

void mean_squares(const Rows& rows, int64_t num_rows, int64_t k, double* means, int num_threads) {
  split_units(num_rows, k, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const uint8_t* data = rows.data + row * rows.stride;
      means[row] = rows.dtype == DType::kFloat32 ? mean_square(reinterpret_cast<const float*>(data), k)
                                                 : mean_square(reinterpret_cast<const uint16_t*>(data), k);
    }
  });
}

}  // namespace mxfp4moe
