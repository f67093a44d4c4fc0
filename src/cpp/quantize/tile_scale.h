// The float32 scale that makes the largest magnitude of a rectangle of values a given number.
#pragma once

#include "quantize/quantize.h"

namespace mxfp4moe {

// The largest magnitude of a tile, found by all threads. See QuantizeKernels::tile_amax.
double amax_of(const KernelTable& kernels, const TileArgs& tile, bool finite_only, int num_threads);

// amax / largest, rounded once from float64 to a normal float32; 1 if amax is 0, NaN if it is not finite. For amax of a
// float32 the same as a float32 division: float64 has more than twice its bits.
float float_scale(double amax, double largest);

}  // namespace mxfp4moe
