#include "kernels/registry.h"

#include "cpu/features.h"

namespace mxfp4moe {

#define MXFP4MOE_KERNELS(name) extern const KernelTable kKernels_##name;
#include "kernel_list.inc"
#undef MXFP4MOE_KERNELS

namespace {
const KernelTable* const kTables[] = {
#define MXFP4MOE_KERNELS(name) &kKernels_##name,
#include "kernel_list.inc"
#undef MXFP4MOE_KERNELS
};
}  // namespace

int num_kernel_tables() { return static_cast<int>(sizeof(kTables) / sizeof(kTables[0])); }

const KernelTable& kernel_table(int index) { return *kTables[index]; }

bool kernel_table_supported(int index) {
  const uint32_t required = kTables[index]->required;
  return (cpu_features() & required) == required;
}

}  // namespace mxfp4moe
