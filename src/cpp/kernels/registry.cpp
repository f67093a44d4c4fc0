#include "kernels/registry.h"

#include "cpu/features.h"

namespace mxfp4moe {

#define MXFP4MOE_KERNELS(name, lanes)       \
  extern const KernelTable kKernels_##name; \
  extern const AttentionKernels kAttention_##lanes;
#include "kernel_list.inc"
#undef MXFP4MOE_KERNELS

namespace {
const KernelTable* const kTables[] = {
#define MXFP4MOE_KERNELS(name, lanes) &kKernels_##name,
#include "kernel_list.inc"
#undef MXFP4MOE_KERNELS
};

const AttentionKernels* const kAttention[] = {
#define MXFP4MOE_KERNELS(name, lanes) &kAttention_##lanes,
#include "kernel_list.inc"
#undef MXFP4MOE_KERNELS
};
}  // namespace

int num_kernel_tables() { return static_cast<int>(sizeof(kTables) / sizeof(kTables[0])); }

const KernelTable& kernel_table(int index) { return *kTables[index]; }

const AttentionKernels& attention_kernels(int index) { return *kAttention[index]; }

bool kernel_table_supported(int index) {
  const uint32_t required = kTables[index]->required;
  return (cpu_features() & required) == required;
}

}  // namespace mxfp4moe
