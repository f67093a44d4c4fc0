// RMS norms of rows of float32, bfloat16 or float16 numbers. All bits are the same on every CPU, whatever the other
// rows and the number of threads.
#pragma once

#include "common/types.h"
#include "platform/exported.h"

namespace mxfp4moe {

// Writes the mean of the squares of the first `k` numbers of each row in float64. Each square is exact. They are added
// in eight lanes, square i in lane i % 8, and the lanes in pairs.
void mean_squares(const Rows& rows, int64_t num_rows, int64_t k, double* means, int num_threads)
    MXFP4MOE_EXPORTED(mean_squares);

struct RmsNorm {
  Rows rows;
  Rows out;  // may be `rows`
  int64_t num_rows;
  int64_t k;
  const float* weight;  // [k], or null
  double epsilon;
};

// Writes (x * factor) * weight in float32, rounded once to the type of the result, where the factor is
// 1 / sqrt(mean square + epsilon) in float64, rounded once to float32.
void rms_norm(const RmsNorm& norm, int num_threads) MXFP4MOE_EXPORTED(rms_norm);

}  // namespace mxfp4moe
