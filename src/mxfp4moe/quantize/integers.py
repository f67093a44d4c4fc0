"""Quantization to integers of 4 or 8 bits: a scale, and perhaps a zero point, for each group of a row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from mxfp4moe import _core
from mxfp4moe._arguments import as_array, check_bool, check_int, check_shape, value_error
from mxfp4moe.config import resolve_num_threads
from mxfp4moe.formats import FORMATS, GROUP_MULTIPLE, WeightFormat, ZeroPoints, group_size_of
from mxfp4moe.quantize._common import (
    NonFinite,
    as_bytes,
    as_values,
    check_float_dtype,
    check_last_axis,
    dtype_index,
    raise_nonfinite,
)

_INT4, _INT8 = FORMATS["int4"], FORMATS["int8"]


def quantize_int4(
    w: ArrayLike,
    *,
    group_size: int | None = 32,
    symmetric: bool = True,
    nonfinite: NonFinite = "raise",
    num_threads: int | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8] | None]:
    """Quantize to codes of four bits along the last axis, with a scale for each group.

    A value is (code - zero point) * scale. If symmetric, the zero point is 8, and the scale of a group is its
    largest magnitude divided by 7.5. Otherwise the scale is (high - low) / 15, with the least and the largest
    value of the group, or zero if that is less or larger, and the zero point is -low / scale, rounded. Scales
    are rounded up to bfloat16 numbers, with which kernels are faster than with others, at least 2**-126 and
    at most the largest one; 1 for a group of zeros. A code is value / scale, rounded, plus the zero point,
    clamped to [0, 15]. All arithmetic is float64, and ties go to even.

    Parameters
    ----------
    w : array_like of shape (..., K)
        float32, float16, bfloat16 or float64; K is even. Copied if it is not C-contiguous.
    group_size : int or None, default 32
        A multiple of 32 that divides K or is larger; None means K.
    symmetric : bool, default True
    nonfinite : {"raise", "nan"}, default "raise"
        What an infinity or a NaN does: raise, or make its group zeros with a scale of NaN.
    num_threads : int, optional
        For this call; see `mxfp4moe.num_threads`.

    Returns
    -------
    codes : uint8 ndarray of shape (..., K/2)
        Two codes a byte, even k in the low nibble.
    scales : float32 ndarray of shape (..., K / group_size)
    zero_points : uint8 ndarray of the same shape, or None for 8

    Raises
    ------
    TypeError
        `w` is of another dtype, masked, or no array; an option is of another type.
    ValueError
        K is odd or no multiple of `group_size`; an option is unknown; a value is not finite and `nonfinite`
        is "raise".

    References
    ----------
    GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, arXiv:2210.17323: both
    rules for scales and zero points.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> w = np.linspace(-3, 3, 5 * 64, dtype=np.float32).reshape(5, 64)
    >>> codes, scales, zero_points = mx.quantize_int4(w)
    >>> codes.shape, scales.shape, zero_points
    ((5, 32), (5, 2), None)
    >>> bool((abs(mx.dequantize_int4(codes, scales) - w) < 0.51 * scales.repeat(32, axis=1)).all())
    True
    """
    return _quantize(_INT4, w, group_size, (symmetric, nonfinite), num_threads)


def quantize_int8(
    w: ArrayLike,
    *,
    group_size: int | None = 32,
    symmetric: bool = True,
    nonfinite: NonFinite = "raise",
    num_threads: int | None = None,
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int8] | None]:
    """Quantize to signed codes of eight bits along the last axis, with a scale for each group.

    As `quantize_int4`, but codes and zero points are in [-128, 127]: the zero point is 0 and the scale the
    largest magnitude divided by 127.5 if symmetric, otherwise -128 - low / scale, rounded, and
    (high - low) / 255.

    Parameters
    ----------
    w : array_like of shape (..., K)
        float32, float16, bfloat16 or float64. Copied if it is not C-contiguous.
    group_size : int or None, default 32
        A multiple of 32 that divides K or is larger; None means K.
    symmetric : bool, default True
    nonfinite : {"raise", "nan"}, default "raise"
        What an infinity or a NaN does: raise, or make its group zeros with a scale of NaN.
    num_threads : int, optional
        For this call; see `mxfp4moe.num_threads`.

    Returns
    -------
    codes : int8 ndarray of shape (..., K)
    scales : float32 ndarray of shape (..., K / group_size)
    zero_points : int8 ndarray of the same shape, or None for 0

    Raises
    ------
    TypeError
        `w` is of another dtype, masked, or no array; an option is of another type.
    ValueError
        K is no multiple of `group_size`; an option is unknown; a value is not finite and `nonfinite` is
        "raise".

    References
    ----------
    GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, arXiv:2210.17323: both
    rules for scales and zero points.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> codes, scales, zero_points = mx.quantize_int8(np.arange(96, dtype=np.float32), symmetric=False)
    >>> codes.shape, scales.shape, zero_points.tolist()
    ((96,), (3,), [-128, -128, -128])
    """
    return _quantize(_INT8, w, group_size, (symmetric, nonfinite), num_threads)


def dequantize_int4(
    codes: ArrayLike,
    scales: ArrayLike,
    zero_points: ArrayLike | None = None,
    dtype: DTypeLike = np.float32,
    *,
    num_threads: int | None = None,
) -> NDArray[Any]:
    """The values of codes of four bits: (code - zero point) * scale, rounded once to `dtype`.

    Parameters
    ----------
    codes : array_like of shape (..., K/2)
        uint8 or int8, two codes a byte, even k in the low nibble.
    scales : array_like of shape (..., G)
        float32, bfloat16 or float16. Each belongs to K / G codes, a multiple of 32 or all of them. Any value.
    zero_points : array_like of shape (..., G), optional
        uint8 in [0, 15]; 8 if not given.
    dtype : dtype, default float32
        float32, float16, bfloat16 or float64, which holds every value exactly.
    num_threads : int, optional
        For this call; see `mxfp4moe.num_threads`.

    Returns
    -------
    ndarray of shape (..., K)

    Raises
    ------
    TypeError
        An argument is of another dtype, masked, or no array.
    ValueError
        The shapes do not fit each other, or a zero point is larger than 15.

    References
    ----------
    GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, arXiv:2210.17323.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> mx.dequantize_int4(np.array([[0x1F]], np.uint8), np.array([[0.5]], np.float32))
    array([[ 3.5, -3.5]], dtype=float32)
    """
    return _dequantize(_INT4, codes, (scales, zero_points), dtype, num_threads)


def dequantize_int8(
    codes: ArrayLike,
    scales: ArrayLike,
    zero_points: ArrayLike | None = None,
    dtype: DTypeLike = np.float32,
    *,
    num_threads: int | None = None,
) -> NDArray[Any]:
    """The values of codes of eight bits: (code - zero point) * scale, rounded once to `dtype`.

    Parameters
    ----------
    codes : array_like of shape (..., K)
        int8.
    scales : array_like of shape (..., G)
        float32, bfloat16 or float16. Each belongs to K / G codes, a multiple of 32 or all of them. Any value.
    zero_points : array_like of shape (..., G), optional
        int8; 0 if not given.
    dtype : dtype, default float32
        float32, float16, bfloat16 or float64, which holds every value exactly.
    num_threads : int, optional
        For this call; see `mxfp4moe.num_threads`.

    Returns
    -------
    ndarray of shape (..., K)

    Raises
    ------
    TypeError
        An argument is of another dtype, masked, or no array.
    ValueError
        The shapes do not fit each other.

    References
    ----------
    GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, arXiv:2210.17323.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> mx.dequantize_int8(np.array([[-128, 127]], np.int8), np.array([[0.5]], np.float32))
    array([[-64. ,  63.5]], dtype=float32)
    """
    return _dequantize(_INT8, codes, (scales, zero_points), dtype, num_threads)


def _quantize(
    format: WeightFormat,
    w: ArrayLike,
    group_size: int | None,
    options: tuple[bool, NonFinite],
    num_threads: int | None,
) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[Any] | None]:
    symmetric, nonfinite = options
    values, may_raise = as_values(w, format.k_multiple, nonfinite)
    size = _checked_group_size(values, group_size)
    has_zeros = not check_bool("symmetric", symmetric)
    threads = resolve_num_threads(num_threads)
    *leading, k = values.shape
    codes = np.empty((*leading, *format.row_shapes(k)[1]), np.uint8)
    scales = np.empty((*leading, k // size), np.float32)
    zeros = np.empty(scales.shape, np.uint8) if has_zeros else None
    if scales.size:
        _core.quantize_integers(
            as_bytes(values),
            dtype_index(values.dtype),
            format.element_bits,
            codes.reshape(-1),
            scales.reshape(-1),
            None if zeros is None else zeros.reshape(-1),
            threads,
        )
        if may_raise and np.isnan(scales).any():
            raise_nonfinite(values)
    dtype = _zero_points(format).dtype
    return codes.view(dtype), scales, None if zeros is None else zeros.view(dtype)


def _checked_group_size(values: np.ndarray, group_size: Any) -> int:
    """The size of the groups of the last axis, no more than it has, but at least 1."""
    k: int = values.shape[-1]
    if group_size is None:
        return max(k, 1)
    size = check_int("group_size", group_size, GROUP_MULTIPLE)
    if size % GROUP_MULTIPLE:
        raise value_error("group_size", f"a multiple of {GROUP_MULTIPLE} or None", str(size))
    if size < k and k % size:
        raise value_error("w", f"a last axis that is a multiple of {size}", f"shape {values.shape}")
    return min(size, max(k, 1))


def _zero_points(format: WeightFormat) -> ZeroPoints:
    """What the zero points of one of the two formats are; its codes have the same dtype."""
    assert format.zero_points is not None
    return format.zero_points


def _dequantize(
    format: WeightFormat,
    codes: ArrayLike,
    others: tuple[ArrayLike, ArrayLike | None],
    dtype: DTypeLike,
    num_threads: int | None,
) -> NDArray[Any]:
    """Dequantize `codes`; the others are their scales and zero points."""
    code_array = as_array("codes", codes, tuple(format.weight_dtypes))
    check_last_axis("codes", code_array, 1)
    scales = as_array("scales", others[0], format.scale_dtypes)
    result_dtype = check_float_dtype("dtype", dtype)
    *leading, num_bytes = code_array.shape
    k = format.k_of((num_bytes,))
    check_shape("scales", scales, (*leading, "groups"))
    if k:
        group_size_of("scales", k, scales.shape[-1])
    zeros = None
    if others[1] is not None:
        zeros = as_array("zero_points", others[1], (_zero_points(format).dtype,))
        check_shape("zero_points", zeros, scales.shape)
        _zero_points(format).check("zero_points", zeros)
    result = np.empty((*leading, k), result_dtype)
    if result.size:
        _core.dequantize_integers(
            as_bytes(code_array),
            np.ascontiguousarray(scales.astype(np.float32)).reshape(-1),
            None if zeros is None else as_bytes(zeros),
            dtype_index(result_dtype),
            format.element_bits,
            result.reshape(-1).view(np.uint8),
            resolve_num_threads(num_threads),
        )
    return result
