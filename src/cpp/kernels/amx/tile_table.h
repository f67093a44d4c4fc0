// Everything above the headers of an instruction set with tiles: the stack that kernel_table.h draws.
// Included inside a kernel table's own namespace.

constexpr bool kScalesHalves = false;

#include "kernels/generic/math.h"
#include "kernels/generic/activation.h"
#include "kernels/generic/rows.h"
#include "kernels/generic/weight_formats.h"
#include "kernels/generic/segments.h"
#include "kernels/amx/tile_gemm.h"
#include "kernels/amx/tile_kernels.h"
#include "kernels/generic/read_memory.h"
#include "kernels/generic/quantize.h"
#include "kernels/generic/make_table.h"
