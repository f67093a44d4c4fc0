"""Quantization to MXFP8: E4M3 or E5M2 elements, and one E8M0 scale for each 32 along the last axis."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from mxfp4moe._arguments import as_array, check_choice, check_shape
from mxfp4moe.quantize._common import (
    E4M3,
    E5M2,
    E8M0,
    MX_BLOCK_SIZE,
    UINT8,
    NonFinite,
    ScaleRule,
    check_float_dtype,
    check_last_axis,
    dequantize_mx,
    quantize_mx,
)

_DTYPES = {"e4m3": E4M3, "e5m2": E5M2}


def quantize_mxfp8(
    w: ArrayLike,
    *,
    element: Literal["e4m3", "e5m2"] = "e4m3",
    scale_rule: ScaleRule = "floor",
    nonfinite: NonFinite = "raise",
    num_threads: int | None = None,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Quantize to MXFP8 along the last axis.

    The scale exponent e of a block of 32 follows from its largest magnitude ``amax = m * 2**E``, 1 <= m < 2:
    it is E - 8 (e4m3) or E - 15 (e5m2), or one more, clamped to [-127, 127]. Each value divided by 2**e is
    rounded to the nearest value of the element, ties to the even code, and saturates at +-448 (e4m3) or
    +-57344 (e5m2): no finite value becomes infinite or NaN. That is the only rounding for every input dtype.
    The sign is kept, also of what rounds to zero, except that a block of zeros of either sign has scale byte
    0 and codes 0.

    Parameters
    ----------
    w : array_like of shape (..., K)
        float32, float16, bfloat16 or float64; K a multiple of 32. Copied if it is not C-contiguous.
    element : {"e4m3", "e5m2"}, default "e4m3"
    scale_rule : {"floor", "ceil", "rceil", "even"}, default "floor"
        When the scale exponent is one more: never (``floor``: the largest values may saturate), if m > 1
        (``ceil``), if m > 1.75 (``rceil``: the smallest e with which nothing saturates), if m rounded half up
        to the mantissa bits of the element (3 or 2) is 2 (``even``).
    nonfinite : {"raise", "nan"}, default "raise"
        What an infinity or a NaN does: raise, or make its block's scale NaN (byte 255, codes 0).
    num_threads : int, optional
        For this call; see `mxfp4moe.num_threads`.

    Returns
    -------
    values : float8_e4m3fn or float8_e5m2 ndarray of shape (..., K)
    scales : float8_e8m0fnu ndarray of shape (..., K/32)

    Raises
    ------
    TypeError
        `w` is of another dtype, masked, or no array; an option is no string.
    ValueError
        `w` has no axis or its last is no multiple of 32; an option is unknown; a value is not finite and
        `nonfinite` is "raise".

    References
    ----------
    OCP Microscaling Formats (MX) Specification, version 1.0, Open Compute Project, 2023: ``floor``. The
    other scale rules are those of the MX formats of torchao.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> w = np.linspace(-3, 3, 64, dtype=np.float32).reshape(2, 32)
    >>> values, scales = mx.quantize_mxfp8(w)
    >>> values.dtype.name, values.shape, scales.shape
    ('float8_e4m3fn', (2, 32), (2, 1))
    >>> bool((abs(mx.dequantize_mxfp8(values, scales) - w) <= abs(w) / 16).all())
    True
    """
    name = check_choice("element", element, tuple(_DTYPES))
    codes, scales = quantize_mx(w, name, scale_rule, nonfinite, num_threads)
    return codes.view(_DTYPES[name]), scales


def dequantize_mxfp8(
    values: ArrayLike, scales: ArrayLike, dtype: DTypeLike = np.float32, *, num_threads: int | None = None
) -> NDArray[Any]:
    """The values of an MXFP8 array: element times scale, rounded once to `dtype`.

    Parameters
    ----------
    values : array_like of shape (..., K)
        float8_e4m3fn or float8_e5m2.
    scales : array_like of shape (..., K/32)
        uint8 or float8_e8m0fnu; byte s means 2**(s - 127), 255 means NaN.
    dtype : dtype, default float32
        float32, float16, bfloat16 or float64. float32 and float64 hold every value exactly, but 2**128 and
        more are infinite in float32.
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
    OCP Microscaling Formats (MX) Specification, version 1.0, Open Compute Project, 2023.

    Examples
    --------
    >>> import ml_dtypes
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> values = np.full((1, 32), 1.125).astype(ml_dtypes.float8_e4m3fn)
    >>> mx.dequantize_mxfp8(values, np.array([[128]], np.uint8))[0, :3]
    array([2.25, 2.25, 2.25], dtype=float32)
    """
    codes = as_array("values", values, (E4M3, E5M2))
    factors = as_array("scales", scales, (UINT8, E8M0))
    result_dtype = check_float_dtype("dtype", dtype)
    check_last_axis("values", codes, MX_BLOCK_SIZE)
    check_shape("scales", factors, (*codes.shape[:-1], codes.shape[-1] // MX_BLOCK_SIZE))
    element = "e4m3" if codes.dtype == E4M3 else "e5m2"
    return dequantize_mx(codes, factors, element, result_dtype, num_threads)
