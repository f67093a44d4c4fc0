// This file is built for the baseline of the platform: it runs before anything is known about the CPU.
#include "cpu/features.h"

#include <atomic>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "platform/system.h"

namespace mxfp4moe {
namespace {

#if defined(__x86_64__)

struct CpuidLeaf {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// Returns all zeros where the CPU has no such leaf.
CpuidLeaf cpuid(uint32_t leaf, uint32_t subleaf = 0) {
  CpuidLeaf r;
  if (__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx) == 0) return {};
  return r;
}

constexpr bool bit(uint32_t word, int index) { return (word >> index & 1u) != 0; }

// Reads which register states the operating system saves (XCR0). This is allowed only if OSXSAVE is set.
uint64_t enabled_states() {
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

bool is_amd() {
  const CpuidLeaf id = cpuid(0);
  char vendor[12];
  std::memcpy(vendor, &id.ebx, 4);
  std::memcpy(vendor + 4, &id.edx, 4);
  std::memcpy(vendor + 8, &id.ecx, 4);
  return std::memcmp(vendor, "AuthenticAMD", 12) == 0;
}

// Returns null if AMX can be used.
const char* why_no_amx(const CpuidLeaf& extended, uint64_t states) {
  if (!bit(extended.edx, 22) || !bit(extended.edx, 24)) return "the CPU has no AMX tiles with bfloat16";
  constexpr uint64_t kTileStates = 3ull << 17;
  if ((states & kTileStates) != kTileStates) return "the operating system does not save the AMX tile registers";
  if (!platform::request_amx_permission()) return "the operating system refused the permission to use AMX tiles";
  return nullptr;
}

uint32_t detect(const char** amx_status) {
  *amx_status = "the CPU has no AMX tiles with bfloat16";
  const CpuidLeaf basic = cpuid(1);
  if (!bit(basic.ecx, 27)) return 0;  // OSXSAVE
  const uint64_t states = enabled_states();
  const CpuidLeaf extended = cpuid(7);
  const bool ymm = (states & 0x6) == 0x6;
  const bool zmm = (states & 0xe6) == 0xe6;
  uint32_t features = 0;
  if (ymm && bit(basic.ecx, 28) && bit(basic.ecx, 12) && bit(basic.ecx, 29) && bit(extended.ebx, 5)) {
    features |= kCpuAvx2;
  }
  if ((features & kCpuAvx2) != 0 && zmm && bit(extended.ebx, 16) && bit(extended.ebx, 17) && bit(extended.ebx, 30) &&
      bit(extended.ebx, 31)) {
    features |= kCpuAvx512;
  }
  if ((features & kCpuAvx512) != 0 && bit(extended.ecx, 1)) features |= kCpuAvx512Vbmi;
  if ((features & kCpuAvx512) != 0 && bit(extended.ecx, 11)) features |= kCpuAvx512Vnni;
  if ((features & kCpuAvx2) != 0 && extended.eax >= 1 && bit(cpuid(7, 1).eax, 4)) features |= kCpuAvxVnni;
  if ((features & kCpuAvx512) != 0 && extended.eax >= 1 && bit(cpuid(7, 1).eax, 5)) {
    features |= kCpuAvx512Bf16;
    if (is_amd()) features |= kCpuFastBf16Dot;
  }
#ifdef MXFP4MOE_SIMDE  // these kernels then consist of instructions of AVX2
  if ((features & kCpuAvx2) != 0) {
    features |= kCpuAvxVnni | kCpuAvx512 | kCpuAvx512Vbmi | kCpuAvx512Vnni | kCpuAvx512Bf16 | kCpuFastBf16Dot;
  }
#endif
  const char* reason = why_no_amx(extended, states);
  if (reason == nullptr) features |= kCpuAmxBf16;
  *amx_status = reason == nullptr ? "" : reason;
  return features;
}

#else

uint32_t detect(const char** amx_status) {
  *amx_status = "the CPU is not an x86-64";
  return 0;
}

#endif

constexpr uint32_t kDetected = 1u << 31;
std::atomic<uint32_t> g_features{0};
std::atomic<const char*> g_amx_status{""};

}  // namespace

// Two threads that call this first at the same time both detect, with the same result. A static variable inside the
// function would have a lock, which stays locked in a child that is forked in that moment.
uint32_t cpu_features() {
  uint32_t features = g_features.load(std::memory_order_acquire);
  if (features == 0) {
    const char* amx_status;
    features = detect(&amx_status) | kDetected;
    g_amx_status.store(amx_status, std::memory_order_relaxed);
    g_features.store(features, std::memory_order_release);
  }
  return features & ~kDetected;
}

const char* amx_status() {
  cpu_features();
  return g_amx_status.load(std::memory_order_relaxed);
}

}  // namespace mxfp4moe
