// The float32 scale that makes the largest magnitude of a rectangle of values a given number.
#pragma once

#include "quantize/quantize.h"

namespace mxfp4moe {

// The largest magnitude of a rectangle of values, found by all threads. QuantizeKernels::scale_block_amax says what
// counts if some values are not finite.
double amax_of(const KernelTable& kernels, const ScaleBlockArgs& block, bool finite_only, int num_threads);

// Returns amax / largest, rounded once from float64 to a normal float32; 1 if amax is 0, NaN if it is not finite. Where
// amax is a float32 number the result equals a division in float32, because float64 has more than twice its bits.
float float_scale(double amax, double largest);

}  // namespace mxfp4moe
