// The fused experts: route, GEMM 1 with activation, GEMM 2 with combine. Written once for all kernel tables.
#pragma once

#include "kernels/kernel_table.h"
#include "moe/problem.h"

namespace mxfp4moe {

// Sizes, ids and overlaps have been checked by the caller. Never throws.
Status fused_experts(const KernelTable& kernels, const MoeProblem& problem, int num_threads);

}  // namespace mxfp4moe
