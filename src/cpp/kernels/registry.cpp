#include "kernels/registry.h"

#include <algorithm>

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

// Scales of halves of K-blocks multiply weights: sums of dot products are of whole K-blocks.
bool needs_float32(const PackedMatrix& m) { return m.sum_scales != nullptr && m.range_blocks == 0; }
}  // namespace

int num_kernel_tables() { return static_cast<int>(sizeof(kTables) / sizeof(kTables[0])); }

const KernelTable& kernel_table(int index) { return *kTables[index]; }

const AttentionKernels& attention_kernels(int index) { return *kAttention[index]; }

bool kernel_table_supported(int index) {
  const uint32_t required = kTables[index]->required;
  return (cpu_features() & required) == required;
}

const KernelTable& table_for(const KernelTable& table, std::initializer_list<PackedMatrix> matrices) {
  if (table.multiplies_float32 || std::none_of(matrices.begin(), matrices.end(), needs_float32)) return table;
  const KernelTable* found = kTables[0];  // portable
  for (const KernelTable* other : kTables) {
    if (other->multiplies_float32 && (other->required & ~table.required) == 0) found = other;
  }
  return *found;
}

}  // namespace mxfp4moe
