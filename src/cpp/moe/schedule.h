// The fused experts: tokens are grouped by expert, GEMM 1 with the activation, GEMM 2 with the combination of experts.
// The schedule is written once for all kernel tables.
#pragma once

#include "kernels/kernel_table.h"
#include "moe/problem.h"
#include "platform/exported.h"

namespace mxfp4moe {

// The caller has checked sizes, ids and overlaps. Never throws.
Status fused_experts(const KernelTable& kernels, const MoeProblem& problem, int num_threads)
    MXFP4MOE_EXPORTED(fused_experts);

}  // namespace mxfp4moe
