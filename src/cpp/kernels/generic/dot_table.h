// Everything above the headers of an instruction set that computes dot products: the stack that kernel_table.h draws.
// Included inside a kernel table's own namespace.

// Whether decoded weights are float32. Such kernels also multiply weights that no bfloat16 holds.
constexpr bool kMultipliesFloat32 = sizeof(Element) == sizeof(float);

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
