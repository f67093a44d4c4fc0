// The portable kernel table: plain C++ for any CPU.
#include <cstdint>
#include <cstring>

#include "cpu/features.h"
#include "formats/formats.h"
#include "kernels/kernel_table.h"
#include "packing/panels.h"

namespace mxfp4moe {
namespace {
#include "kernels/generic/unroll.h"
#include "kernels/portable/simd.h"
#include "kernels/portable/dot.h"
#include "kernels/portable/elements.h"
#include "kernels/generic/dot_table.h"
#include "kernels/generic/integer_sums.h"
}  // namespace

extern const KernelTable kKernels_portable = make_table("portable", "portable", 0, true);

}  // namespace mxfp4moe
