# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
# cython: freethreading_compatible=True
"""The binding to the C++ library: typed memoryviews in, plain numbers out. Private; callers check the arguments."""

from cpython.buffer cimport PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_FillInfo
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_SetName
from libc.stdint cimport INTPTR_MAX, UINTPTR_MAX, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset
from libcpp cimport bool as cbool
from libcpp.vector cimport vector

from mxfp4moe cimport _cpp as cpp

cdef extern from "Python.h":
    ctypedef struct PyInterpreterState
    PyInterpreterState* PyInterpreterState_Get()
    int64_t PyInterpreterState_GetID(PyInterpreterState*)

# The library has one state for a process, which would call into an interpreter that has ended.
if PyInterpreterState_GetID(PyInterpreterState_Get()) != 0:
    raise ImportError("mxfp4moe cannot be used in a subinterpreter")

include "_core_signals.pxi"
include "_core_quantize.pxi"
include "_core_experts.pxi"
include "_core_routing.pxi"
include "_core_attention.pxi"
include "_core_decoder.pxi"
include "_core_files.pxi"
include "_core_dlpack.pxi"

# --- the numbers of the C++ enumerations, by the names that common/types.h and routing/routing.h give them -----

DTYPES = {cpp.kDTypeNames[i].decode(): i for i in range(cpp.count_of(cpp.kDTypeNames))}
WEIGHT_FORMATS = {cpp.kWeightFormatNames[i].decode(): i for i in range(cpp.count_of(cpp.kWeightFormatNames))}
MX_ELEMENTS = {cpp.kMxElementNames[i].decode(): i for i in range(cpp.count_of(cpp.kMxElementNames))}
SCALE_RULES = {cpp.kScaleRuleNames[i].decode(): i for i in range(cpp.count_of(cpp.kScaleRuleNames))}
ACTIVATION_FORMATS = {
    cpp.kActivationFormatNames[i].decode(): i for i in range(cpp.count_of(cpp.kActivationFormatNames))
}
ACTIVATIONS = {cpp.kActivations[i].name.decode(): i for i in range(cpp.kNumActivations)}
# Whether its experts have a gate, its alpha and limit where none is given, and whether alpha must be above 0.
ACTIVATION_RULES = {
    cpp.kActivations[i].name.decode(): (
        cpp.kActivations[i].gated,
        None if cpp.kActivations[i].takes == cpp.Alpha.kNone else cpp.kActivations[i].alpha,
        cpp.kActivations[i].limit,
        cpp.kActivations[i].takes == cpp.Alpha.kPositive,
    )
    for i in range(cpp.kNumActivations)
}
SCORINGS = {cpp.kScoringNames[i].decode(): i for i in range(cpp.count_of(cpp.kScoringNames))}
GROUP_SCORES = {cpp.kGroupScoreNames[i].decode(): i for i in range(cpp.count_of(cpp.kGroupScoreNames))}
PANEL_ROWS = cpp.kPanelRows
PAGE_POSITIONS = cpp.kBlockPositions
MAX_ANGLE = cpp.kMaxAngle
MAX_PAIRS = cpp.kMaxPairs


# --- runtime: instruction sets and threads ------------------------------------------------------------------

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


def compiler():
    """Return the name and version of the compiler of this extension."""
    return MXFP4MOE_COMPILER.decode()


def kernel_tables():
    """Return (name, isa, automatic, supported) of each kernel table of this build, the preferred ones last."""
    return [
        (
            cpp.kernel_table(i).name.decode(),
            cpp.kernel_table(i).isa.decode(),
            bool(cpp.kernel_table(i).automatic),
            bool(cpp.kernel_table_supported(i)),
        )
        for i in range(cpp.num_kernel_tables())
    ]


def in_default_float_environment(function):
    """Call a function on a thread that may round otherwise, or take subnormal numbers for zero; return its result."""
    cdef cpp.DefaultFloatEnvironment _environment
    return function()


def cpu_features():
    """Tell which of the features that kernels need this CPU and its operating system offer."""
    cdef unsigned int features = cpp.cpu_features()
    return {
        "avx2": bool(features & cpp.kCpuAvx2),
        "avx512": bool(features & cpp.kCpuAvx512),
        "avx512_bf16": bool(features & cpp.kCpuAvx512Bf16),
        "avx512_vbmi": bool(features & cpp.kCpuAvx512Vbmi),
        "avx512_vnni": bool(features & cpp.kCpuAvx512Vnni),
        "avx_vnni": bool(features & cpp.kCpuAvxVnni),
        "amx_bf16": bool(features & cpp.kCpuAmxBf16),
        "fast_bf16_dot": bool(features & cpp.kCpuFastBf16Dot),
    }


def amx_status():
    """Say why AMX cannot be used; the string is empty if it can."""
    return cpp.amx_status().decode()


def available_cpus():
    """Count the processors that the affinity mask and the cgroup quota allow, at least 1."""
    return cpp.available_cpus()


def num_nodes():
    """Count the NUMA nodes with processors, at least 1."""
    return cpp.num_nodes()


def simulate_nodes(int count):
    """For tests: compute as if there were so many NUMA nodes; 0 ends it."""
    cpp.simulate_nodes(count)


def num_workers():
    """Count the threads of the pool in this process, waiting or running."""
    return cpp.num_workers()


def release_workers():
    """End the threads of the pool that wait for work."""
    with nogil:
        cpp.release_workers()


# --- roofline -----------------------------------------------------------------------------------------------

def read_memory(const uint8_t[::1] memory, int kernels, int num_threads):
    """Read every byte of `memory` once, as fast as the kernels of table `kernels` can; return a checksum."""
    cdef cpp.InterruptibleCall call
    cdef uint64_t checksum = 0
    if memory.shape[0] > 0:
        with nogil:
            checksum = cpp.read_memory(cpp.kernel_table(kernels), &memory[0], memory.shape[0], num_threads)
        raise_interrupt(call)
    return checksum


def peak_flops(int64_t iterations, int kernels, int num_threads, int activation_format=0):
    """Run the peak arithmetic loop of table `kernels` on every thread; return the FLOPs that all did."""
    cdef double flops
    cdef cpp.KernelTable table = cpp.kernel_table_for(kernels, <cpp.ActivationFormat>activation_format)
    with nogil:
        flops = cpp.peak_flops(table, iterations, num_threads)
    return flops
