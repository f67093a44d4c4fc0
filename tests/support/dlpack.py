"""Objects that hand over memory by DLPack, as they should or not, made without another library."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

_NEW_CAPSULE = ctypes.pythonapi.PyCapsule_New
_NEW_CAPSULE.restype = ctypes.py_object
_NEW_CAPSULE.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)

READ_ONLY, COPIED, PADDED = 1, 2, 4

CODES: dict[Any, tuple[int, int, int]] = {
    np.int8: (0, 8, 1), np.int16: (0, 16, 1), np.int32: (0, 32, 1), np.int64: (0, 64, 1),
    np.uint8: (1, 8, 1), np.uint16: (1, 16, 1), np.uint32: (1, 32, 1), np.uint64: (1, 64, 1),
    np.float16: (2, 16, 1), np.float32: (2, 32, 1), np.float64: (2, 64, 1), ml_dtypes.bfloat16: (4, 16, 1),
    np.bool_: (6, 8, 1), ml_dtypes.float8_e4m3fn: (10, 8, 1), ml_dtypes.float8_e5m2: (12, 8, 1),
    ml_dtypes.float8_e8m0fnu: (14, 8, 1), ml_dtypes.float4_e2m1fn: (17, 4, 1),
}  # fmt: skip
"""Type code, bits and lanes of dtypes."""


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_ALIVE: list[Any] = []  # what capsules point to: they may outlive the object that made them


class Managed(ctypes.Structure):
    _fields_ = (("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", _DELETER))


class Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", _DELETER),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )


class Exporter:
    """An object with `__dlpack__` and no other protocol; `version` (0, 8) is that of before 1.0.

    `change` is called with the tensor of each capsule, to damage it. `deleted` counts calls of the deleter.
    """

    def __init__(
        self,
        array: np.ndarray,
        *,
        version: tuple[int, int] = (1, 0),
        flags: int = 0,
        device: Any = (1, 0),
        change: Callable[[Tensor], None] = lambda tensor: None,
    ) -> None:
        self.array, self.version, self.flags, self.device, self.change = array, version, flags, device, change
        self.exported = self.deleted = 0

    def __dlpack_device__(self) -> Any:
        return self.device

    def _tensor(self) -> Tensor:
        array = self.array
        axes = ctypes.c_int64 * array.ndim
        code, bits, lanes = CODES[array.dtype.type]
        shape = axes(*array.shape)
        strides = axes(*(stride // array.itemsize for stride in array.strides))
        _ALIVE.extend((shape, strides))
        kind, number = (int(part) for part in self.device) if isinstance(self.device, tuple) else (1, 0)
        tensor = Tensor(
            array.ctypes.data, kind, number, array.ndim, code, bits, lanes, shape, strides, 0
        )  # fmt: skip
        self.change(tensor)
        return tensor

    def _delete(self, _: int) -> None:
        self.deleted += 1

    def capsule(self, name: bytes | None = None) -> Any:
        """A new capsule; `name` replaces the right one."""
        deleter = _DELETER(self._delete)
        is_old = self.version[0] < 1
        held: Any = (
            Managed(self._tensor(), None, deleter)
            if is_old
            else Versioned(*self.version, None, deleter, self.flags, self._tensor())
        )
        name = name or (b"dltensor" if is_old else b"dltensor_versioned")
        _ALIVE.extend((held, deleter, name))
        self.exported += 1
        return _NEW_CAPSULE(ctypes.addressof(held), name, None)

    def __dlpack__(self, **options: Any) -> Any:
        if self.version[0] < 1 and options:
            raise TypeError("unexpected keyword argument")
        return self.capsule()
