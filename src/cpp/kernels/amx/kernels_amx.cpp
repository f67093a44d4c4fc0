// The amx kernel table: tiles of bfloat16, with AVX-512 for everything else.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "cpu/features.h"
#include "formats/formats.h"
#include "kernels/kernel_table.h"
#include "packing/panels.h"

namespace mxfp4moe {
namespace {
#include "kernels/generic/unroll.h"
#include "kernels/avx512/simd.h"
#include "kernels/avx512/tile_lanes.h"
#include "kernels/avx512/elements_bf16.h"
#include "kernels/amx/tile_config.h"
#include "kernels/amx/tile.h"
#include "kernels/amx/tile_table.h"
}  // namespace

extern const KernelTable kKernels_amx =
    make_table("amx", "amx", kCpuAvx2 | kCpuAvx512 | kCpuAvx512Vbmi | kCpuAmxBf16, true);

}  // namespace mxfp4moe
