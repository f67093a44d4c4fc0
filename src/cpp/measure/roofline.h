// What a roofline is measured with: the fastest reads and the peak arithmetic of a kernel table, on several threads.
#pragma once

#include "kernels/kernel_table.h"
#include "platform/exported.h"

namespace mxfp4moe {

// Reads every byte once, in pieces of the size of the schedule's items; returns a checksum.
uint64_t read_memory(const KernelTable& kernels, const uint8_t* data, int64_t bytes, int num_threads)
    MXFP4MOE_EXPORTED(read_memory);

// Runs the peak loop on every thread; returns the FLOPs that all of them did.
double peak_flops(const KernelTable& kernels, int64_t iterations, int num_threads) MXFP4MOE_EXPORTED(peak_flops);

}  // namespace mxfp4moe
