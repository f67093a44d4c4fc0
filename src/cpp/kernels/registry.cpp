#include "kernels/registry.h"

#include <algorithm>

#include "cpu/features.h"
#include "threads/split.h"

namespace mxfp4moe {

#define MXFP4MOE_KERNELS(name, lanes)               \
  extern const KernelTable kKernels_##name;         \
  extern const AttentionKernels kAttention_##lanes; \
  extern ActivationKernel* const kActivation_##lanes;
#include "kernel_list.inc"
#undef MXFP4MOE_KERNELS

#define MXFP4MOE_INT8_KERNELS(name) extern const Int8Kernels kInt8_##name;
#include "int8_list.inc"
#undef MXFP4MOE_INT8_KERNELS

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

ActivationKernel* const* const kActivation[] = {
#define MXFP4MOE_KERNELS(name, lanes) &kActivation_##lanes,
#include "kernel_list.inc"
#undef MXFP4MOE_KERNELS
};

bool has_half_groups(const PackedMatrix& m) { return m.sum_scales != nullptr && m.range_blocks == 0; }

const Int8Kernels* const kInt8[] = {
#define MXFP4MOE_INT8_KERNELS(name) &kInt8_##name,
#include "int8_list.inc"
#undef MXFP4MOE_INT8_KERNELS
};

// Dot products of bytes, which some CPUs have beside the features that a table requires.
constexpr uint32_t kByteDotProducts = kCpuAvxVnni | kCpuAvx512Vnni;

const Int8Kernels& int8_kernels(const KernelTable& table) {
  const uint32_t usable = table.required | (cpu_features() & kByteDotProducts);
  const Int8Kernels* best = kInt8[0];
  for (const Int8Kernels* kernels : kInt8) {
    if ((usable & kernels->required) == kernels->required) best = kernels;
  }
  return *best;
}
}  // namespace

int num_kernel_tables() { return static_cast<int>(sizeof(kTables) / sizeof(kTables[0])); }

const KernelTable& kernel_table(int index) { return *kTables[index]; }

const AttentionKernels& attention_kernels(int index) { return *kAttention[index]; }

void activate(int index, ActivationFormat format, const ActivationArgs& args, int num_threads) {
  // On activations of eight bits mul_add rounds twice, as it does in plain C++.
  ActivationKernel* const kernel = *kActivation[format == ActivationFormat::kInt8 ? 0 : index];
  split_units(ceil_div(args.count, kPanelRows), kPanelRows, num_threads, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kPanelRows, count = std::min(end * kPanelRows, args.count) - first;
    const float* gate = args.gate == nullptr ? nullptr : args.gate + first;
    kernel({gate, args.up + first, count, args.activation, args.out + first});
  });
}

KernelTable kernel_table_for(int index, ActivationFormat format) {
  KernelTable table = *kTables[index];
  if (format == ActivationFormat::kInt8) {
    const Int8Kernels& int8 = int8_kernels(*kTables[index]);
    static_cast<GemmKernels&>(table) = int8.gemm;
    table.peak_flops = int8.peak_flops;
  }
  return table;
}

bool kernel_table_supported(int index) {
  const uint32_t required = kTables[index]->required;
  return (cpu_features() & required) == required;
}

const KernelTable& table_for(const KernelTable& table, std::initializer_list<PackedMatrix> matrices) {
  if (table.scales_halves || std::none_of(matrices.begin(), matrices.end(), has_half_groups)) return table;
  const KernelTable* found = kTables[0];  // portable
  for (const KernelTable* other : kTables) {
    if (other->scales_halves && (other->required & ~table.required) == 0) found = other;
  }
  return *found;
}

}  // namespace mxfp4moe
