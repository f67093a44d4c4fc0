// The mean of the squares of each row, for RMS norms.
#pragma once

#include "common/types.h"

namespace mxfp4moe {

// Writes the mean of the squares of the first `k` numbers of each row, of float32 or bfloat16, in float64. Each square
// is exact. They are added in eight lanes, square i in lane i % 8, and the lanes in pairs: so the bits depend on
// neither the CPU, nor the other rows, nor the number of threads.
void mean_squares(const Rows& rows, int64_t num_rows, int64_t k, double* means, int num_threads);

}  // namespace mxfp4moe
