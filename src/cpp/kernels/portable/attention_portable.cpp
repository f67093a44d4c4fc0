// Attention in plain C++ for any CPU.
#include <cstdint>
#include <cstring>

#include "formats/bf16.h"
#include "kernels/attention_kernels.h"

namespace mxfp4moe {
namespace {
#include "kernels/generic/unroll.h"
#include "kernels/portable/simd.h"
#include "kernels/generic/math.h"

constexpr int kRowTile = 2;
#include "kernels/generic/attention.h"
}  // namespace

extern const AttentionKernels kAttention_portable = make_attention_kernels();

}  // namespace mxfp4moe
