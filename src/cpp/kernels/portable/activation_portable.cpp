// Activations in plain C++ for any CPU. Its mul_add rounds twice, as on activations of eight bits.
#include <cstdint>
#include <cstring>

#include "formats/bf16.h"
#include "kernels/activation_kernel.h"

namespace mxfp4moe {
namespace {
#include "kernels/generic/unroll.h"
#include "kernels/portable/simd.h"
#include "kernels/generic/math.h"
#include "kernels/generic/activation.h"
#include "kernels/generic/activate_values.h"
}  // namespace

extern ActivationKernel* const kActivation_portable = activate_values;

}  // namespace mxfp4moe
