"""NumPy's dtypes by the names that safetensors files, and packed files after them, give them; exact casts."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

# F4 is absent: two elements share a byte, and they are returned as those bytes.
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
        "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8",
        "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    }.items()
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

_BFLOAT16 = DTYPES["BF16"]


def widen(array: NDArray[Any]) -> NDArray[np.float32]:
    """A float32, bfloat16 or float16 array as float32, C-contiguous; the NaNs of bfloat16 keep their bits."""
    array = np.ascontiguousarray(array)
    if array.dtype == _BFLOAT16:
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # raised by a signaling NaN
        return array.astype(np.float32, copy=False)


def narrow(array: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """The array that `widen` made this of, or None if there is none of this dtype."""
    if dtype == _BFLOAT16:
        result = (array.view(np.uint32) >> 16).astype(np.uint16).view(dtype)
    else:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            result = array.astype(dtype, copy=False)
    return result if np.array_equal(widen(result).view(np.uint32), array.view(np.uint32)) else None
