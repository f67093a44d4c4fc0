"""Arrays of other libraries, whose memory the DLPack protocol hands over.

NumPy's own `from_dlpack` does not know the small floats of ml_dtypes, bfloat16 among them.
"""

from __future__ import annotations

from typing import Any, Protocol

import ml_dtypes
import numpy as np

from mxfp4moe import _core

_CPU = 1
_DEVICES = {
    2: "CUDA", 3: "CUDA host memory", 4: "OpenCL", 7: "Vulkan", 8: "Metal", 9: "VPI", 10: "ROCm",
    11: "ROCm host memory", 12: "extension", 13: "CUDA managed memory", 14: "oneAPI", 15: "WebGPU",
    16: "Hexagon", 17: "MAIA", 18: "Trainium",
}  # fmt: skip

# By type code, bits, lanes, and whether an element smaller than a byte takes a whole byte.
_DTYPES: dict[tuple[int, int, int, bool], np.dtype[Any]] = {
    (code, 8 * np.dtype(dtype).itemsize, 1, False): np.dtype(dtype)
    for code, dtypes in {
        0: (np.int8, np.int16, np.int32, np.int64),
        1: (np.uint8, np.uint16, np.uint32, np.uint64),
        2: (np.float16, np.float32, np.float64),
        4: (ml_dtypes.bfloat16,),
        6: (np.bool_,),
        7: (ml_dtypes.float8_e3m4,),
        8: (ml_dtypes.float8_e4m3,),
        9: (ml_dtypes.float8_e4m3b11fnuz,),
        10: (ml_dtypes.float8_e4m3fn,),
        11: (ml_dtypes.float8_e4m3fnuz,),
        12: (ml_dtypes.float8_e5m2,),
        13: (ml_dtypes.float8_e5m2fnuz,),
        14: (ml_dtypes.float8_e8m0fnu,),
    }.items()
    for dtype in dtypes
}
_DTYPES[17, 4, 1, True] = np.dtype(ml_dtypes.float4_e2m1fn)
_DTYPES[17, 4, 2, False] = np.dtype(np.uint8)  # two codes a byte, as the formats of 4 bits have them

# What the methods of an object raise that does not hand its memory out.
EXPORT_ERRORS = (AttributeError, BufferError, RuntimeError, TypeError, ValueError)


class SupportsDLPack(Protocol):
    """What hands its memory over: arrays of NumPy, and of most other libraries."""

    def __dlpack__(self) -> Any:
        """Return the capsule that holds the memory."""

    def __dlpack_device__(self) -> tuple[Any, Any]:
        """Return type and number of the device that the memory is on."""


def is_foreign(value: object) -> bool:
    """Whether `value` is an array of another library, which DLPack may hand over."""
    if isinstance(value, np.ndarray):
        return False
    return hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__")


def from_dlpack(value: SupportsDLPack) -> np.ndarray:
    """The memory of `value`, not copied; read-only unless `value` says that it may be written.

    Raises
    ------
    BufferError
        `value` does not hand its memory out, or in elements that NumPy has no dtype for.
    TypeError, ValueError
        It hands out what is not an array for this CPU. The message says what came.
    """
    try:
        device = value.__dlpack_device__()
    except EXPORT_ERRORS as error:
        raise BufferError(str(error)) from error
    _check_device(device)  # before the memory is asked for, which another device would have to make ready
    memory = _core.DLPackMemory(_capsule(value))
    _check_device(memory.device)
    dtype = _DTYPES.get(memory.type)
    if dtype is None:
        code, bits, lanes, _ = memory.type
        raise BufferError(f"elements of DLPack's type {code} with {bits} bits and {lanes} lanes")
    memory.export(dtype.itemsize)
    return np.asarray(memory).view(dtype)


def _capsule(value: Any) -> object:
    try:
        try:
            return value.__dlpack__(max_version=(1, 1))
        except TypeError:  # Version 0 of the protocol has no such parameter.
            return value.__dlpack__()
    except EXPORT_ERRORS as error:
        raise BufferError(str(error)) from error


def _check_device(device: Any) -> None:
    kind, number = device
    if kind != _CPU:
        raise TypeError(
            f"on {_DEVICES.get(int(kind), f'device type {kind}')} {number}, not in the CPU's memory"
        )
