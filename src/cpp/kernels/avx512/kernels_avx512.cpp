// The avx512 kernel table on float32 FMAs. It needs AVX-512 F, BW, DQ and VL.
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
#include "kernels/avx512/dot_fma.h"
#include "kernels/avx512/lanes.h"
#include "kernels/avx512/elements_f32.h"
#include "kernels/generic/dot_table.h"
#include "kernels/generic/integer_sums.h"
}  // namespace

extern const KernelTable kKernels_avx512 = make_table("avx512", "avx512", kCpuAvx2 | kCpuAvx512, true);

}  // namespace mxfp4moe
