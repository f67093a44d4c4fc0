// Attention on the lanes of avx512. They need AVX-512 F, BW, DQ and VL.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "formats/bf16.h"
#include "kernels/attention_kernels.h"

namespace mxfp4moe {
namespace {
#include "kernels/generic/unroll.h"
#include "kernels/avx512/simd.h"
#include "kernels/generic/math.h"

constexpr int kRowTile = 8;
#include "kernels/generic/attention.h"
}  // namespace

extern const AttentionKernels kAttention_avx512 = make_attention_kernels();

}  // namespace mxfp4moe
