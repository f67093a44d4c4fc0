// Activations on the lanes of avx2. They need AVX2, FMA and F16C.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "formats/bf16.h"
#include "kernels/activation_kernel.h"

namespace mxfp4moe {
namespace {
#include "kernels/generic/unroll.h"
#include "kernels/avx2/simd.h"
#include "kernels/generic/math.h"
#include "kernels/generic/activation.h"
#include "kernels/generic/activate_values.h"
}  // namespace

extern ActivationKernel* const kActivation_avx2 = activate_values;

}  // namespace mxfp4moe
