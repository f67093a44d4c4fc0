"""Quantization to MXFP4: 4-bit E2M1 elements, and one E8M0 scale for each 32 of them along the last axis."""

from __future__ import annotations

from typing import Any, Literal

import ml_dtypes
import numpy as np

from . import _core
from .config import active_kernels, resolve_num_threads
from .errors import as_array, check_choice, describe, join_choices, type_error, value_error

ScaleRule = Literal["floor", "ceil", "rceil", "even"]

_BLOCK_SIZE = 32
_BLOCK_BYTES = _BLOCK_SIZE // 2
_NAN_SCALE = 255
# Both in the order of the enumerations of the C++ library.
_FLOAT_DTYPES = tuple(np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16, np.float64))
_SCALE_RULES = ("floor", "ceil", "rceil", "even")

_E2M1 = np.dtype(ml_dtypes.float4_e2m1fn)
_E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
_UINT8 = np.dtype(np.uint8)
_INT8 = np.dtype(np.int8)


def quantize_mxfp4(
    w: Any, scale_rule: ScaleRule = "floor", nonfinite: Literal["raise", "nan"] = "raise"
) -> tuple[np.ndarray, np.ndarray]:
    """Quantize to MXFP4 along the last axis.

    The scale exponent e of a block of 32 follows from its largest magnitude ``amax = m * 2**E``, 1 <= m < 2:
    it is E - 2 or one more, clamped to [-127, 127]. Each value divided by 2**e is rounded to the nearest of
    +-{0, 0.5, 1, 1.5, 2, 3, 4, 6}, ties to the even code, and saturates at +-6. That is the only rounding for
    every input dtype. The sign is kept, also of what rounds to zero, except that a block of zeros of either
    sign has scale byte 0 and codes 0.

    Parameters
    ----------
    w : array_like of shape (..., K)
        float32, float16, bfloat16 or float64; K a multiple of 32. Copied if it is not C-contiguous.
    scale_rule : {"floor", "ceil", "rceil", "even"}, default "floor"
        When the scale exponent is one more: never (``floor``: the largest values may saturate), if m > 1
        (``ceil``), if m > 1.5 (``rceil``: the smallest e with ``amax <= 6 * 2**e``), if m >= 1.75 (``even``:
        amax rounded half up to one mantissa bit).
    nonfinite : {"raise", "nan"}, default "raise"
        What an infinity or a NaN does: raise, or make its block's scale NaN (byte 255, codes 0).

    Returns
    -------
    blocks : uint8 ndarray of shape (..., K/2)
        Two codes a byte, even k in the low nibble.
    scales : float8_e8m0fnu ndarray of shape (..., K/32)

    Raises
    ------
    TypeError
        `w` is of another dtype, masked, or no array; an option is no string.
    ValueError
        `w` has no axis or its last is no multiple of 32; an option is unknown; a value is not finite and
        `nonfinite` is "raise".

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> w = np.linspace(-3, 3, 64, dtype=np.float32).reshape(2, 32)
    >>> blocks, scales = mx.quantize_mxfp4(w)
    >>> blocks.shape, scales.shape
    ((2, 16), (2, 1))
    >>> scales.astype(np.float32).ravel()
    array([0.5, 0.5], dtype=float32)
    >>> float(abs(mx.dequantize_mxfp4(blocks, scales) - w).max()) <= 0.5
    True
    """
    values = as_array("w", w, _FLOAT_DTYPES)
    _check_last_axis("w", values, _BLOCK_SIZE)
    rule = _SCALE_RULES.index(check_choice("scale_rule", scale_rule, _SCALE_RULES))
    may_raise = check_choice("nonfinite", nonfinite, ("raise", "nan")) == "raise"

    *leading, k = values.shape
    blocks = np.empty((*leading, k // 2), np.uint8)
    scales = np.empty((*leading, k // _BLOCK_SIZE), np.uint8)
    if scales.size:
        flat = np.ascontiguousarray(values).reshape(-1)
        _core.quantize_mxfp4(
            flat.view(np.uint8),
            _FLOAT_DTYPES.index(flat.dtype),
            rule,
            blocks.reshape(-1),
            scales.reshape(-1),
            active_kernels(),
            resolve_num_threads(None),
        )
        if may_raise:
            _check_finite(values.shape, flat, scales.reshape(-1))
    return blocks, scales.view(_E8M0)


def dequantize_mxfp4(blocks: Any, scales: Any, dtype: Any = np.float32) -> np.ndarray:
    """The values of an MXFP4 array: code times scale, rounded once to `dtype`.

    Parameters
    ----------
    blocks : array_like of shape (..., K/2) or (..., K/32, 16)
        uint8 or int8, two codes a byte, even k in the low nibble.
    scales : array_like of shape (..., K/32)
        uint8 or float8_e8m0fnu; byte s means 2**(s - 127), 255 means NaN.
    dtype : dtype, default float32
        float32, float16, bfloat16 or float64. float32 and float64 hold every value exactly, but 2**128 and
        more are infinite in float32.

    Returns
    -------
    ndarray of shape (..., K)

    Raises
    ------
    TypeError
        An argument is of another dtype, masked, or no array.
    ValueError
        The shapes do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> blocks = np.full((1, 16), 0x2A, np.uint8)  # codes 10 (-1.0) and 2 (1.0)
    >>> mx.dequantize_mxfp4(blocks, np.array([[128]], np.uint8))[0, :4]
    array([-2.,  2., -2.,  2.], dtype=float32)
    """
    codes = as_array("blocks", blocks, (_UINT8, _INT8))
    factors = as_array("scales", scales, (_UINT8, _E8M0))
    result_dtype = _check_float_dtype("dtype", dtype)
    _check_last_axis("scales", factors, 1)
    *leading, num_blocks = factors.shape
    flat_shape = (*leading, num_blocks * _BLOCK_BYTES)
    nested_shape = (*leading, num_blocks, _BLOCK_BYTES)
    if codes.shape not in (flat_shape, nested_shape):
        expected = f"shape {flat_shape} or {nested_shape} with scales of shape {factors.shape}"
        raise value_error("blocks", expected, f"shape {codes.shape}")

    values = np.empty((*leading, num_blocks * _BLOCK_SIZE), result_dtype)
    if values.size:
        _core.dequantize_mxfp4(
            _as_bytes(codes),
            _as_bytes(factors),
            _FLOAT_DTYPES.index(result_dtype),
            values.reshape(-1).view(np.uint8),
            active_kernels(),
            resolve_num_threads(None),
        )
    return values


def pack_e2m1(codes: Any) -> np.ndarray:
    """Pack 4-bit codes, one a byte, two a byte.

    Parameters
    ----------
    codes : array_like of shape (..., K)
        float4_e2m1fn, or its codes as uint8, 0 to 15; K even.

    Returns
    -------
    uint8 ndarray of shape (..., K/2)
        Even k in the low nibble.

    Raises
    ------
    TypeError
        `codes` is of another dtype, masked, or no array.
    ValueError
        `codes` has no axis or its last is odd; a uint8 is above 15.

    Examples
    --------
    >>> import ml_dtypes
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> codes = np.array([1.0, -1.0, 0.5, 6.0]).astype(ml_dtypes.float4_e2m1fn)
    >>> [hex(byte) for byte in mx.pack_e2m1(codes)]
    ['0xa2', '0x71']
    """
    array = as_array("codes", codes, (_E2M1, _UINT8))
    _check_last_axis("codes", array, 2)
    if array.dtype == _UINT8 and array.size and array.max() > 15:
        flat_index = int((array > 15).argmax())
        raise value_error("codes", "values in [0, 15]", _at_position(array, flat_index))
    blocks = np.empty((*array.shape[:-1], array.shape[-1] // 2), np.uint8)
    if blocks.size:
        _core.pack_e2m1(_as_bytes(array), blocks.reshape(-1), resolve_num_threads(None))
    return blocks


def unpack_e2m1(blocks: Any) -> np.ndarray:
    """Unpack 4-bit codes: the inverse of `pack_e2m1`.

    Parameters
    ----------
    blocks : array_like of shape (..., K/2)
        uint8 or int8, two codes a byte, even k in the low nibble.

    Returns
    -------
    float4_e2m1fn ndarray of shape (..., K)

    Raises
    ------
    TypeError
        `blocks` is of another dtype, masked, or no array.
    ValueError
        `blocks` has no axis.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> mx.unpack_e2m1(np.array([0xA2, 0x71], np.uint8)).astype(np.float32)
    array([ 1. , -1. ,  0.5,  6. ], dtype=float32)
    """
    array = as_array("blocks", blocks, (_UINT8, _INT8))
    _check_last_axis("blocks", array, 1)
    codes = np.empty((*array.shape[:-1], 2 * array.shape[-1]), np.uint8)
    if codes.size:
        _core.unpack_e2m1(_as_bytes(array), codes.reshape(-1), resolve_num_threads(None))
    return codes.view(_E2M1)


def _as_bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _at_position(array: np.ndarray, flat_index: int) -> str:
    position = tuple(int(i) for i in np.unravel_index(flat_index, array.shape))
    return f"{array[position]} at position {position}"


def _check_last_axis(name: str, array: np.ndarray, multiple: int) -> None:
    expected = "at least one axis" if multiple == 1 else f"a last axis that is a multiple of {multiple}"
    if array.ndim == 0 or array.shape[-1] % multiple:
        raise value_error(name, expected, f"shape {array.shape}")


def _check_finite(shape: tuple[int, ...], flat: np.ndarray, scales: np.ndarray) -> None:
    # Only a block that is not finite has this scale, and it is the largest byte there is.
    block = int(scales.argmax())
    if scales[block] == _NAN_SCALE:
        begin = block * _BLOCK_SIZE
        index = begin + int((~np.isfinite(flat[begin : begin + _BLOCK_SIZE])).argmax())
        raise value_error("w", "finite values", _at_position(flat.reshape(shape), index))


def _check_float_dtype(name: str, value: Any) -> np.dtype[Any]:
    expected = join_choices(dtype.name for dtype in _FLOAT_DTYPES)
    if value is None:  # which would mean float64 to NumPy
        raise type_error(name, expected, "None")
    try:
        dtype: np.dtype[Any] = np.dtype(value)
    except TypeError:
        raise type_error(name, expected, describe(value)) from None
    if dtype not in _FLOAT_DTYPES:
        raise type_error(name, expected, str(dtype))
    return dtype
