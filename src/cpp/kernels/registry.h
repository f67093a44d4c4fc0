// The kernel tables of this build, and which of them this machine can run.
#pragma once

#include <initializer_list>

#include "kernels/activation_kernel.h"
#include "kernels/attention_kernels.h"
#include "kernels/kernel_table.h"
#include "platform/exported.h"

namespace mxfp4moe {

int num_kernel_tables() MXFP4MOE_EXPORTED(num_kernel_tables);
// Tables stand in the order of CMake's list; the last one that is supported is preferred. 0 <= index <
// num_kernel_tables().
const KernelTable& kernel_table(int index) MXFP4MOE_EXPORTED(kernel_table);
// The attention that is computed with table `index`: on the same lanes, or on some that it requires too.
const AttentionKernels& attention_kernels(int index) MXFP4MOE_EXPORTED(attention_kernels);
// The activation that table `index` computes with activations of that format: those of eight bits have the same bits on
// all lanes. Its values are shared among threads.
void activate(int index, ActivationFormat format, const ActivationArgs& args, int num_threads)
    MXFP4MOE_EXPORTED(activate);
// Returns table `index` with the GEMMs for activations of that format. The GEMMs for int8 use only the instructions
// that the table requires, and dot products of bytes if the CPU has them.
KernelTable kernel_table_for(int index, ActivationFormat format) MXFP4MOE_EXPORTED(kernel_table_for);
bool kernel_table_supported(int index) MXFP4MOE_EXPORTED(kernel_table_supported);
// Returns the table that computes a call with these matrices: `table`, or another one if a matrix has scales for halves
// of K-blocks and `table` cannot compute those. It is supported wherever `table` is.
const KernelTable& table_for(const KernelTable& table, std::initializer_list<PackedMatrix> matrices);

}  // namespace mxfp4moe
