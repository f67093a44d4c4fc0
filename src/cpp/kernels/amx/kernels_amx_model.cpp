// The amx kernels on the model of the tile instructions, in plain C++, for tests on any CPU.
#include <cstdint>
#include <cstring>

#include "cpu/features.h"
#include "formats/formats.h"
#include "kernels/kernel_table.h"
#include "packing/panels.h"

namespace mxfp4moe {
namespace {
#include "kernels/generic/unroll.h"
#include "kernels/portable/simd.h"
#include "kernels/portable/tile_lanes.h"
#include "kernels/portable/elements_bf16.h"
#include "kernels/amx/tile_config.h"
#include "kernels/amx/tile_model.h"
#include "kernels/amx/tile_table.h"
}  // namespace

extern const KernelTable kKernels_amx_model = make_table("amx_model", "amx", 0, false);

}  // namespace mxfp4moe
