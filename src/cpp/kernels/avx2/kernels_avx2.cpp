// The avx2 kernel table. It needs AVX2, FMA and F16C.
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
#include "kernels/avx2/simd.h"
#include "kernels/avx2/dot.h"
#include "kernels/avx2/elements.h"
#include "kernels/generic/dot_table.h"
#include "kernels/generic/integer_sums.h"
}  // namespace

extern const KernelTable kKernels_avx2 = make_table("avx2", "avx2", kCpuAvx2, true);

}  // namespace mxfp4moe
