// The kernel tables of this build, and which of them this machine can run.
#pragma once

#include "kernels/attention_kernels.h"
#include "kernels/kernel_table.h"

namespace mxfp4moe {

int num_kernel_tables();
// Tables stand in the order of CMake's list; the last one that is supported is preferred. 0 <= index <
// num_kernel_tables().
const KernelTable& kernel_table(int index);
// The attention that is computed with table `index`: on the same lanes, or on some that it requires too.
const AttentionKernels& attention_kernels(int index);
bool kernel_table_supported(int index);

}  // namespace mxfp4moe
