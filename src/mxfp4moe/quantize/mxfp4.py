"""Quantization to MXFP4: 4-bit E2M1 elements, and one E8M0 scale for each 32 of them along the last axis."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from mxfp4moe._arguments import as_array, value_error
from mxfp4moe.quantize._common import (
    E8M0,
    INT8,
    MX_BLOCK_SIZE,
    UINT8,
    NonFinite,
    ScaleRule,
    check_float_dtype,
    check_last_axis,
    dequantize_mx,
    quantize_mx,
)

_BLOCK_BYTES = MX_BLOCK_SIZE // 2


def quantize_mxfp4(
    w: ArrayLike,
    *,
    scale_rule: ScaleRule = "floor",
    nonfinite: NonFinite = "raise",
    num_threads: int | None = None,
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
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
    num_threads : int, optional
        For this call; see `mxfp4moe.num_threads`.

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

    References
    ----------
    OCP Microscaling Formats (MX) Specification, version 1.0, Open Compute Project, 2023: ``floor``. The
    other scale rules are those of the MX formats of torchao.

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
    return quantize_mx(w, "e2m1", scale_rule, nonfinite, num_threads)


def dequantize_mxfp4(
    blocks: ArrayLike, scales: ArrayLike, dtype: DTypeLike = np.float32, *, num_threads: int | None = None
) -> NDArray[Any]:
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
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> blocks = np.full((1, 16), 0x2A, np.uint8)  # codes 10 (-1.0) and 2 (1.0)
    >>> mx.dequantize_mxfp4(blocks, np.array([[128]], np.uint8))[0, :4]
    array([-2.,  2., -2.,  2.], dtype=float32)
    """
    codes = as_array("blocks", blocks, (UINT8, INT8))
    factors = as_array("scales", scales, (UINT8, E8M0))
    result_dtype = check_float_dtype("dtype", dtype)
    check_last_axis("scales", factors, 1)
    *leading, num_blocks = factors.shape
    flat_shape = (*leading, num_blocks * _BLOCK_BYTES)
    nested_shape = (*leading, num_blocks, _BLOCK_BYTES)
    if codes.shape not in (flat_shape, nested_shape):
        expected = f"shape {flat_shape} or {nested_shape} with scales of shape {factors.shape}"
        raise value_error("blocks", expected, f"shape {codes.shape}")
    return dequantize_mx(codes, factors, "e2m1", result_dtype, num_threads)
