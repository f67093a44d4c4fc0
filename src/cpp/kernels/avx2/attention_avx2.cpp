// Attention on the lanes of avx2. They need AVX2, FMA and F16C.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "formats/bf16.h"
#include "kernels/attention_kernels.h"

namespace mxfp4moe {
namespace {
#include "kernels/generic/unroll.h"
#include "kernels/avx2/simd.h"
#include "kernels/generic/math.h"

constexpr int kRowTile = 4;
#include "kernels/generic/attention.h"
}  // namespace

extern const AttentionKernels kAttention_avx2 = make_attention_kernels();

}  // namespace mxfp4moe
