"""Quantization to NVFP4: E2M1 elements, an E4M3 scale for each 16 of them, a float32 scale for a tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from mxfp4moe import _core
from mxfp4moe._arguments import as_array, check_shape, value_error
from mxfp4moe.quantize._common import (
    E4M3,
    INT8,
    UINT8,
    NonFinite,
    as_bytes,
    as_values,
    check_float_dtype,
    check_last_axis,
    dtype_index,
    kernels_and_threads,
    raise_nonfinite,
)

_BLOCK_SIZE = 16
_BLOCK_BYTES = _BLOCK_SIZE // 2
_NAN_SCALE = 0x7F
_FLOAT32 = np.dtype(np.float32)


def quantize_nvfp4(
    w: ArrayLike,
    *,
    tensor_scale: ArrayLike | None = None,
    nonfinite: NonFinite = "raise",
    num_threads: int | None = None,
) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[np.float32]]:
    """Quantize to NVFP4 along the last axis; the last two axes are one tensor.

    With amax the largest finite magnitude of a tensor, its scale is float32(amax / (448 * 6)), but at least
    2**-126 and at most the largest float32; 1 for a tensor of zeros. The scale of a block of 16 whose largest
    magnitude is amax is amax / 6 / tensor scale, rounded to the nearest E4M3 value and saturating at 448.
    Each value is divided by block scale times tensor scale and rounded to the nearest of
    +-{0, 0.5, 1, 1.5, 2, 3, 4, 6}, ties to the even code, saturating at +-6. Products and quotients are
    float32, or float64 for float64 input. The sign is kept, also of what rounds to zero, except where a
    block's scale is zero: codes 0.

    Parameters
    ----------
    w : array_like of shape (..., N, K) or (K,)
        float32, float16, bfloat16 or float64; K a multiple of 16. Copied if it is not C-contiguous.
    tensor_scale : array_like of shape (...) or (), optional
        float32, finite and at least 2**-126: the scale of each tensor, instead of the one above; several
        matrices may then share one. Magnitudes above 448 * 6 times it saturate.
    nonfinite : {"raise", "nan"}, default "raise"
        What an infinity or a NaN does: raise, or make its block's scale NaN (byte 127, codes 0).
    num_threads : int, optional
        For this call; see `mxfp4moe.num_threads`.

    Returns
    -------
    blocks : uint8 ndarray of shape (..., N, K/2) or (K/2,)
        Two codes a byte, even k in the low nibble.
    scales : float8_e4m3fn ndarray of shape (..., N, K/16) or (K/16,)
    tensor_scale : float32 ndarray of shape (...) or ()
        To be multiplied by. Some software stores its reciprocal.

    Raises
    ------
    TypeError
        `w` or `tensor_scale` is of another dtype, masked, or no array; an option is no string.
    ValueError
        `w` has no axis or its last is no multiple of 16; `tensor_scale` is of another shape, or has a number
        that is too small or not finite; an option is unknown; a value is not finite and `nonfinite` is
        "raise".

    References
    ----------
    Pretraining Large Language Models with NVFP4, arXiv:2509.25149.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> w = np.linspace(-3, 3, 5 * 64, dtype=np.float32).reshape(5, 2, 32)
    >>> blocks, scales, tensor_scale = mx.quantize_nvfp4(w)
    >>> blocks.shape, scales.shape, tensor_scale.shape
    ((5, 2, 16), (5, 2, 2), (5,))
    >>> float(abs(mx.dequantize_nvfp4(blocks, scales, tensor_scale) - w).max()) <= 0.6
    True
    """
    values, may_raise = as_values(w, _BLOCK_SIZE, nonfinite)
    calls = kernels_and_threads(num_threads)
    *leading, k = values.shape
    blocks = np.empty((*leading, k // 2), np.uint8)
    scales = np.empty((*leading, k // _BLOCK_SIZE), np.uint8)
    result_scale = _given_scale(tensor_scale, leading[:-1])
    if scales.size:
        _core.quantize_nvfp4(
            as_bytes(values),
            dtype_index(values.dtype),
            blocks.reshape(-1),
            scales.reshape(-1),
            result_scale.reshape(-1),
            tensor_scale is not None,
            *calls,
        )
        if may_raise and scales.max() == _NAN_SCALE:  # the largest byte of a scale
            raise_nonfinite(values)
    return blocks, scales.view(E4M3), result_scale


def _given_scale(tensor_scale: ArrayLike | None, shape: list[int]) -> NDArray[np.float32]:
    """A new array of the scales that were given; without any, of ones."""
    if tensor_scale is None:
        return np.ones(shape, np.float32)
    given = as_array("tensor_scale", tensor_scale, (_FLOAT32,))
    check_shape("tensor_scale", given, shape)
    is_wrong = ~(np.isfinite(given) & (given >= np.finfo(np.float32).tiny))
    if is_wrong.any():
        raise value_error("tensor_scale", "finite numbers of at least 2**-126", str(given[is_wrong][0]))
    return np.array(given, np.float32, order="C")


def dequantize_nvfp4(
    blocks: ArrayLike,
    scales: ArrayLike,
    tensor_scale: ArrayLike,
    dtype: DTypeLike = np.float32,
    *,
    num_threads: int | None = None,
) -> NDArray[Any]:
    """The values of an NVFP4 array: element times block scale times tensor scale, rounded once to `dtype`.

    Parameters
    ----------
    blocks : array_like of shape (..., N, K/2) or (K/2,)
        uint8 or int8, two codes a byte, even k in the low nibble.
    scales : array_like of shape (..., N, K/16) or (K/16,)
        float8_e4m3fn, or its codes as uint8.
    tensor_scale : array_like of shape (...) or ()
        float32. Any value.
    dtype : dtype, default float32
        float32, float16, bfloat16 or float64, which holds every value exactly.
    num_threads : int, optional
        For this call; see `mxfp4moe.num_threads`.

    Returns
    -------
    ndarray of shape (..., N, K) or (K,)

    Raises
    ------
    TypeError
        An argument is of another dtype, masked, or no array.
    ValueError
        The shapes do not fit each other.

    References
    ----------
    Pretraining Large Language Models with NVFP4, arXiv:2509.25149.

    Examples
    --------
    >>> import ml_dtypes
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> blocks = np.full((1, 8), 0x2A, np.uint8)  # codes 10 (-1.0) and 2 (1.0)
    >>> scales = np.array([[1.5]]).astype(ml_dtypes.float8_e4m3fn)
    >>> mx.dequantize_nvfp4(blocks, scales, np.float32(2))[0, :4]
    array([-3.,  3., -3.,  3.], dtype=float32)
    """
    calls = kernels_and_threads(num_threads)
    codes = as_array("blocks", blocks, (UINT8, INT8))
    factors = as_array("scales", scales, (E4M3, UINT8))
    tensor_factors = as_array("tensor_scale", tensor_scale, (_FLOAT32,))
    result_dtype = check_float_dtype("dtype", dtype)
    check_last_axis("scales", factors, 1)
    *leading, num_blocks = factors.shape
    check_shape("blocks", codes, (*leading, num_blocks * _BLOCK_BYTES))
    check_shape("tensor_scale", tensor_factors, leading[:-1])
    values = np.empty((*leading, num_blocks * _BLOCK_SIZE), result_dtype)
    if values.size:
        _core.dequantize_nvfp4(
            as_bytes(codes),
            as_bytes(factors),
            np.ascontiguousarray(tensor_factors).reshape(-1),
            dtype_index(result_dtype),
            values.reshape(-1).view(np.uint8),
            *calls,
        )
    return values
