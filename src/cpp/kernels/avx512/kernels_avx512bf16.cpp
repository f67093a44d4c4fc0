// The avx512 kernel table on vdpbf16ps, for CPUs where it does twice the work of a float32 FMA.
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
#include "kernels/avx512/dot_bf16.h"
#include "kernels/avx512/lanes.h"
#include "kernels/avx512/elements_bf16.h"
#include "kernels/generic/dot_table.h"
#include "kernels/avx512/integer_pairs.h"
#include "kernels/avx512/integer_lanes.h"
}  // namespace

extern const KernelTable kKernels_avx512bf16 =
    make_table("avx512bf16", "avx512", kCpuAvx2 | kCpuAvx512 | kCpuAvx512Vbmi | kCpuAvx512Bf16 | kCpuFastBf16Dot, true);

}  // namespace mxfp4moe
