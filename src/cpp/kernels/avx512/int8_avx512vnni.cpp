// Kernels on activations of eight bits on the dot products of AVX-512 VNNI.
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
#define mul_add fused_mul_add
#include "kernels/avx512/simd.h"
#undef mul_add
#include "kernels/avx512/int8_dot.h"
#include "kernels/avx512/int8_decode.h"
#include "kernels/generic/int8_table.h"
}  // namespace

extern const Int8Kernels kInt8_avx512vnni = {"avx512vnni", kCpuAvx2 | kCpuAvx512 | kCpuAvx512Vnni, make_int8_kernels(),
                                             peak_flops};

}  // namespace mxfp4moe
