// Everything above one set of tile functions, and the table that it makes.
// Included inside a kernel table's own namespace.

#include "kernels/generic/math.h"
#include "kernels/generic/activation.h"
#include "kernels/generic/rows.h"
#include "kernels/generic/weight_formats.h"
#include "kernels/generic/segments.h"
#include "kernels/amx/tile_gemm.h"
#include "kernels/amx/tile_kernels.h"
#include "kernels/generic/read_memory.h"
#include "kernels/generic/quantize.h"

constexpr KernelTable make_tile_table(const char* name, uint32_t required, bool automatic) {
  return {name,          "amx",
          required,      automatic,
          group_tokens,  padded_tokens,
          operand_bytes, scratch_bytes,
          pack_tokens,   MXFP4MOE_ALL_FORMATS(gate_up, accumulate),
          store_output,  kQuantizeKernels,
          read_memory,   peak_flops};
}
