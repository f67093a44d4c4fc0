// The amx kernels on the model of the tile instructions, with AVX-512 for everything else, for tests.
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
#include "kernels/amx/tile_model.h"
#include "kernels/amx/tile_table.h"
}  // namespace

extern const KernelTable kKernels_amx_model_avx512 =
    make_table("amx_model_avx512", "amx", kCpuAvx2 | kCpuAvx512 | kCpuAvx512Vbmi, false);

}  // namespace mxfp4moe
