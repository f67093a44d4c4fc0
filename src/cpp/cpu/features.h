// What this CPU and its operating system let a process use.
#pragma once

#include <cstdint>

#include "platform/exported.h"

namespace mxfp4moe {

enum CpuFeature : uint32_t {
  kCpuAvx2 = 1u << 0,    // AVX2, FMA and F16C, with the ymm state enabled
  kCpuAvx512 = 1u << 1,  // F, BW, DQ and VL, with the zmm state enabled
  kCpuAvx512Bf16 = 1u << 2,
  kCpuAmxBf16 = 1u << 3,      // tiles with bfloat16, which the operating system permits to use
  kCpuFastBf16Dot = 1u << 4,  // vdpbf16ps does twice the work of a float32 FMA in the same time (AMD Zen 4 and later)
  kCpuAvx512Vbmi = 1u << 5,
  kCpuAvxVnni = 1u << 6,
  kCpuAvx512Vnni = 1u << 7,
};

// The features are detected once, at the first call.
uint32_t cpu_features() MXFP4MOE_EXPORTED(cpu_features);

// Says why AMX is not used although the CPU may have it; "" if it is used (for show_config).
const char* amx_status() MXFP4MOE_EXPORTED(amx_status);

}  // namespace mxfp4moe
