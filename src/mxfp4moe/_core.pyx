# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""The binding to the C++ library: typed memoryviews in, plain numbers out. Private; arguments are checked by the callers."""

# ---- runtime: instruction sets and threads ----

cdef extern from *:
    """
    #if defined(__clang__)
    #define MXFP4MOE_COMPILER "Clang " __clang_version__
    #elif defined(__GNUC__)
    #define MXFP4MOE_COMPILER "GCC " __VERSION__
    #else
    #define MXFP4MOE_COMPILER "unknown"
    #endif
    """
    const char* MXFP4MOE_COMPILER

cdef extern from "kernels/kernel_table.h" namespace "mxfp4moe" nogil:
    cdef cppclass KernelTable:
        const char* name
        const char* isa
        bint automatic

cdef extern from "cpu/registry.h" namespace "mxfp4moe" nogil:
    int num_kernel_tables()
    const KernelTable& kernel_table(int index)
    bint kernel_table_supported(int index)

cdef extern from "cpu/features.h" namespace "mxfp4moe" nogil:
    const unsigned int kCpuAvx2
    const unsigned int kCpuAvx512
    const unsigned int kCpuAvx512Bf16
    const unsigned int kCpuAmxBf16
    const unsigned int kCpuFastBf16Dot
    unsigned int cpp_cpu_features "mxfp4moe::cpu_features"()
    const char* cpp_amx_status "mxfp4moe::amx_status"()

cdef extern from "threads/cpus.h" namespace "mxfp4moe" nogil:
    int cpp_available_cpus "mxfp4moe::available_cpus"()

cdef extern from "threads/pool.h" namespace "mxfp4moe" nogil:
    int cpp_num_workers "mxfp4moe::num_workers"()
    void cpp_release_workers "mxfp4moe::release_workers"()


def compiler():
    """The compiler of this extension, with its version."""
    return MXFP4MOE_COMPILER.decode()


def kernel_tables():
    """(name, isa, automatic, supported) of each kernel table of this build, the preferred ones last."""
    return [
        (
            kernel_table(i).name.decode(),
            kernel_table(i).isa.decode(),
            bool(kernel_table(i).automatic),
            bool(kernel_table_supported(i)),
        )
        for i in range(num_kernel_tables())
    ]


def cpu_features():
    """Which of the features that kernels ask for this CPU and its operating system offer."""
    cdef unsigned int features = cpp_cpu_features()
    return {
        "avx2": bool(features & kCpuAvx2),
        "avx512": bool(features & kCpuAvx512),
        "avx512_bf16": bool(features & kCpuAvx512Bf16),
        "amx_bf16": bool(features & kCpuAmxBf16),
        "fast_bf16_dot": bool(features & kCpuFastBf16Dot),
    }


def amx_status():
    """Why AMX cannot be used, or an empty string."""
    return cpp_amx_status().decode()


def available_cpus():
    """Processors that the affinity mask and the cgroup quota allow, at least 1."""
    return cpp_available_cpus()


def num_workers():
    """Threads of the pool in this process, waiting or running."""
    return cpp_num_workers()


def release_workers():
    """End the threads of the pool that wait for work."""
    with nogil:
        cpp_release_workers()
