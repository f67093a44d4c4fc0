// Everything above the headers of an instruction set that computes dot products, but the sums of integers: the stack
// that kernel_table.h draws.
// Included inside a kernel table's own namespace.

constexpr bool kScalesHalves = true;

#include "kernels/generic/math.h"
#include "kernels/generic/activation.h"
#include "kernels/generic/rows.h"
#include "kernels/generic/weight_formats.h"
#include "kernels/generic/segments.h"
#include "kernels/generic/scaled_integers.h"
#include "kernels/generic/dot_gemm.h"
#include "kernels/generic/dot_kernels.h"
#include "kernels/generic/dot_peak.h"
#include "kernels/generic/read_memory.h"
#include "kernels/generic/quantize.h"
#include "kernels/generic/make_table.h"
