// Kernels on activations of eight bits in plain C++ for any CPU.
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
#include "kernels/portable/simd.h"
#undef mul_add
#include "kernels/portable/int8_dot.h"
#include "kernels/generic/int8_table.h"
}  // namespace

extern const Int8Kernels kInt8_portable = {"portable", 0, make_int8_kernels(), peak_flops};

}  // namespace mxfp4moe
