// Activations on the lanes of avx512. They need AVX-512 F, BW, DQ and VL.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "formats/bf16.h"
#include "kernels/activation_kernel.h"

namespace mxfp4moe {
namespace {
#include "kernels/generic/unroll.h"
#include "kernels/avx512/simd.h"
#include "kernels/generic/math.h"
#include "kernels/generic/activation.h"
#include "kernels/generic/activate_values.h"
}  // namespace

extern ActivationKernel* const kActivation_avx512 = activate_values;

}  // namespace mxfp4moe
