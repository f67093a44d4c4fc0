// All quantizers of one kernel table, written once over the SIMD vocabulary. Included inside the namespace of a kernel
// table, after its simd.h.

#include "kernels/generic/quantize_values.h"
#include "kernels/generic/quantize_mx.h"
#include "kernels/generic/quantize_fp8_block.h"
#include "kernels/generic/quantize_nvfp4.h"
