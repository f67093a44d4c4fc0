"""What the quantizers of all formats share: dtypes, argument checks and the calls of the MX formats."""

from __future__ import annotations

from typing import Any, Literal, get_args

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from mxfp4moe import _core
from mxfp4moe._arguments import as_array, check_choice, check_dtype, value_error
from mxfp4moe.config import active_kernels, resolve_num_threads

ScaleRule = Literal["floor", "ceil", "rceil", "even"]
NonFinite = Literal["raise", "nan"]

FLOAT_DTYPES = tuple(np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16, np.float64))
SCALE_RULES: tuple[ScaleRule, ...] = get_args(ScaleRule)

E2M1 = np.dtype(ml_dtypes.float4_e2m1fn)
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
E5M2 = np.dtype(ml_dtypes.float8_e5m2)
E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
UINT8 = np.dtype(np.uint8)
INT8 = np.dtype(np.int8)

MX_BLOCK_SIZE = 32


def as_values(w: ArrayLike, multiple: int, nonfinite: str) -> tuple[np.ndarray, bool]:
    """`w` C-contiguous, its last axis a multiple of `multiple`; whether values that are not finite raise."""
    values = as_array("w", w, FLOAT_DTYPES)
    check_last_axis("w", values, multiple)
    may_raise = check_choice("nonfinite", nonfinite, get_args(NonFinite)) == "raise"
    # ascontiguousarray turns a scalar into a row.
    return np.ascontiguousarray(values).reshape(values.shape), may_raise


def as_bytes(array: np.ndarray) -> np.ndarray:
    """The memory of `array` in C order, copied if it is not contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def dtype_index(dtype: np.dtype[Any]) -> int:
    """The number of a float dtype in the C++ library."""
    return _core.DTYPES[dtype.name]


def kernels_and_threads(num_threads: int | None) -> tuple[int, int]:
    """What each call of the C++ library ends with."""
    return active_kernels(), resolve_num_threads(num_threads)


def at_position(array: np.ndarray, flat_index: int) -> str:
    """``value at position (i, j)``."""
    position = tuple(int(i) for i in np.unravel_index(flat_index, array.shape))
    return f"{array[position]} at position {position}"


def raise_nonfinite(values: np.ndarray) -> None:
    """Raise the error that names the first value that is not finite."""
    with np.errstate(invalid="ignore"):  # raised by a signaling NaN
        index = int((~np.isfinite(values.reshape(-1))).argmax())
    raise value_error("w", "finite values", at_position(values, index))


def check_last_axis(name: str, array: np.ndarray, multiple: int) -> None:
    """Raise unless `array` has an axis and the last is a multiple of `multiple`."""
    expected = "at least one axis" if multiple == 1 else f"a last axis that is a multiple of {multiple}"
    if array.ndim == 0 or array.shape[-1] % multiple:
        raise value_error(name, expected, f"shape {array.shape}")


def check_float_dtype(name: str, value: DTypeLike) -> np.dtype[Any]:
    """`value` as one of the dtypes that weights may have."""
    return check_dtype(name, value, FLOAT_DTYPES)


def quantize_mx(
    w: ArrayLike, element: str, scale_rule: str, nonfinite: str, num_threads: int | None
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Code bytes, of shape (..., K/2) for e2m1 and (..., K) for the others, and scales of an MX format."""
    values, may_raise = as_values(w, MX_BLOCK_SIZE, nonfinite)
    rule = _core.SCALE_RULES[check_choice("scale_rule", scale_rule, SCALE_RULES)]

    calls = kernels_and_threads(num_threads)
    *leading, k = values.shape
    codes = np.empty((*leading, k // 2 if element == "e2m1" else k), np.uint8)
    scales = np.empty((*leading, k // MX_BLOCK_SIZE), np.uint8)
    if scales.size:
        _core.quantize_mx(
            as_bytes(values),
            codes.reshape(-1),
            scales.reshape(-1),
            *calls,
            dtype=dtype_index(values.dtype),
            element=_core.MX_ELEMENTS[element],
            scale_rule=rule,
        )
        if may_raise and scales.max() == 255:  # NaN, the largest byte there is
            raise_nonfinite(values)
    return codes, scales.view(E8M0)


def dequantize_mx(
    codes: NDArray[Any], scales: NDArray[Any], element: str, dtype: np.dtype[Any], num_threads: int | None
) -> NDArray[Any]:
    """The values of an MX array whose shapes have been checked."""
    calls = kernels_and_threads(num_threads)
    *leading, num_blocks = scales.shape
    values = np.empty((*leading, num_blocks * MX_BLOCK_SIZE), dtype)
    if values.size:
        _core.dequantize_mx(
            as_bytes(codes),
            as_bytes(scales),
            values.reshape(-1).view(np.uint8),
            *calls,
            dtype=dtype_index(dtype),
            element=_core.MX_ELEMENTS[element],
        )
    return values
