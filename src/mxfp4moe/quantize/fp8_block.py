"""Quantization to FP8: E4M3 elements, and a float32 scale for each block of rows and columns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from mxfp4moe import _core
from mxfp4moe._arguments import as_array, check_block_shape, check_shape, value_error
from mxfp4moe.quantize._common import (
    E4M3,
    UINT8,
    NonFinite,
    as_bytes,
    as_values,
    check_float_dtype,
    dtype_index,
    kernels_and_threads,
    raise_nonfinite,
)

BlockShape = tuple[int | None, int | None]


def quantize_fp8_block(
    w: ArrayLike,
    *,
    block_shape: BlockShape = (128, 128),
    nonfinite: NonFinite = "raise",
    num_threads: int | None = None,
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Quantize the matrices in the last two axes to E4M3, with a float32 scale for each block of them.

    The scale of a block is float32(amax / 448), with amax its largest magnitude, but at least 2**-126 and at
    most the largest float32; 1 for a block of zeros. Each value is divided by the scale, in float32 or, for
    float64 input, in float64, and the quotient rounded to the nearest E4M3 value, ties to the even code,
    saturating at +-448. The sign is kept, also of what rounds to zero, except in a block of zeros: codes 0.

    Parameters
    ----------
    w : array_like of shape (..., N, K)
        float32, float16, bfloat16 or float64. Copied if it is not C-contiguous.
    block_shape : (int or None, int or None), default (128, 128)
        Rows and columns of a block; None means the whole axis: (None, None) is a scale for each matrix,
        (1, None) for each row. The last blocks of an axis may be smaller.
    nonfinite : {"raise", "nan"}, default "raise"
        What an infinity or a NaN does: raise, or make its block's scale NaN (codes 0).
    num_threads : int, optional
        For this call; see `mxfp4moe.num_threads`.

    Returns
    -------
    values : float8_e4m3fn ndarray of shape (..., N, K)
    scales : float32 ndarray of shape (..., ceil(N / block_shape[0]), ceil(K / block_shape[1]))

    Raises
    ------
    TypeError
        `w` is of another dtype, masked, or no array; `block_shape` is no pair of integers or None.
    ValueError
        `w` has fewer than two axes; a block size is below 1; an option is unknown; a value is not finite and
        `nonfinite` is "raise".

    References
    ----------
    DeepSeek-V3 Technical Report, arXiv:2412.19437, section 3.3. FP8 Formats for Deep Learning,
    arXiv:2209.05433: E4M3.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> w = np.linspace(-3, 3, 200 * 300, dtype=np.float32).reshape(200, 300)
    >>> values, scales = mx.quantize_fp8_block(w)
    >>> values.dtype.name, scales.shape
    ('float8_e4m3fn', (2, 3))
    >>> mx.quantize_fp8_block(w, block_shape=(1, None))[1].shape
    (200, 1)
    >>> bool((abs(mx.dequantize_fp8_block(values, scales) - w) <= abs(w) / 16 + 1e-5).all())
    True
    """
    calls = kernels_and_threads(num_threads)
    array, may_raise = as_values(w, 1, nonfinite)
    _check_matrices("w", array)
    shape = array.shape
    block = _block_of(shape, block_shape)
    values = np.empty(shape, np.uint8)
    scales = np.empty(_scales_shape(shape, block), np.float32)
    if values.size:
        _core.quantize_fp8_block(
            as_bytes(array),
            dtype_index(array.dtype),
            _matrices(shape),
            block,
            values.reshape(-1),
            scales.reshape(-1),
            *calls,
        )
        if may_raise and np.isnan(scales).any():
            raise_nonfinite(array)
    return values.view(E4M3), scales


def dequantize_fp8_block(
    values: ArrayLike,
    scales: ArrayLike,
    block_shape: BlockShape = (128, 128),
    dtype: DTypeLike = np.float32,
    *,
    num_threads: int | None = None,
) -> NDArray[Any]:
    """The values of a block-scaled FP8 array: element times scale, rounded once to `dtype`.

    Parameters
    ----------
    values : array_like of shape (..., N, K)
        float8_e4m3fn, or its codes as uint8.
    scales : array_like of shape (..., ceil(N / block_shape[0]), ceil(K / block_shape[1]))
        float32. Any value.
    block_shape : (int or None, int or None), default (128, 128)
        Rows and columns of a block; None means the whole axis.
    dtype : dtype, default float32
        float32, float16, bfloat16 or float64, which holds every value exactly.
    num_threads : int, optional
        For this call; see `mxfp4moe.num_threads`.

    Returns
    -------
    ndarray of shape (..., N, K)

    Raises
    ------
    TypeError
        An argument is of another dtype, masked, or no array.
    ValueError
        The shapes do not fit each other; a block size is below 1.

    References
    ----------
    DeepSeek-V3 Technical Report, arXiv:2412.19437, section 3.3. FP8 Formats for Deep Learning,
    arXiv:2209.05433: E4M3.

    Examples
    --------
    >>> import ml_dtypes
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> values = np.ones((2, 4)).astype(ml_dtypes.float8_e4m3fn)
    >>> mx.dequantize_fp8_block(values, np.array([[0.5, 3.0]], np.float32), block_shape=(None, 2))
    array([[0.5, 0.5, 3. , 3. ],
           [0.5, 0.5, 3. , 3. ]], dtype=float32)
    """
    calls = kernels_and_threads(num_threads)
    codes = as_array("values", values, (E4M3, UINT8))
    factors = as_array("scales", scales, (np.dtype(np.float32),))
    result_dtype = check_float_dtype("dtype", dtype)
    _check_matrices("values", codes)
    shape = codes.shape
    block = _block_of(shape, block_shape)
    check_shape("scales", factors, _scales_shape(shape, block))
    result = np.empty(shape, result_dtype)
    if result.size:
        _core.dequantize_fp8_block(
            as_bytes(codes),
            np.ascontiguousarray(factors).reshape(-1),
            _matrices(shape),
            block,
            dtype_index(result_dtype),
            result.reshape(-1).view(np.uint8),
            *calls,
        )
    return result


def _check_matrices(name: str, array: np.ndarray) -> None:
    if array.ndim < 2:
        raise value_error(name, "at least two axes", f"shape {array.shape}")


def _block_of(shape: tuple[int, ...], block_shape: Any) -> tuple[int, int]:
    """Rows and columns of a block, no more than there are, but at least 1."""
    rows, columns = check_block_shape("block_shape", block_shape)
    n, k = (max(size, 1) for size in shape[-2:])
    return min(rows or n, n), min(columns or k, k)


def _scales_shape(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    return (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))


def _matrices(shape: tuple[int, ...]) -> tuple[int, int, int]:
    return math.prod(shape[:-2]), shape[-2], shape[-1]
