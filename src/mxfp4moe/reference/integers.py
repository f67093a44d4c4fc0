"""Quantization to integers, with a scale and perhaps a zero point for each group of a row."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from mxfp4moe.reference.elements import finite_blocks, pack_e2m1, round_once, unpack_e2m1, widen

_LARGEST_BFLOAT16 = (2 - 2.0**-7) * 2.0**127


def quantize_integers(
    w: np.ndarray, bits: int, group_size: int | None, symmetric: bool, nonfinite: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Codes, one an element, counted from the lowest one, of groups of the last axis.

    All arithmetic is float64, and quotients are rounded to the nearest integer, ties to even. With
    ``n = 2**bits`` codes,

    - symmetric: ``scale = amax / ((n - 1) / 2)`` of the largest magnitude amax, the zero point n / 2;
    - else, by the least and the largest value and zero: ``scale = (high - low) / (n - 1)``, and the zero
      point is -low / scale, rounded.

    A scale is rounded up to a bfloat16 number, at least 2**-126 and at most the largest one; it is 1 for a
    group of zeros. A code is the rounded quotient of a value and the scale, plus the zero point, clamped to
    [0, n - 1]. With ``nonfinite="nan"`` a group with an infinity or a NaN is a group of zeros of scale NaN.

    Parameters
    ----------
    w : ndarray of shape (..., K)
        float16, bfloat16, float32 or float64.
    bits : {4, 8}
    group_size : int or None
        It divides K, or is at least K, or None, which is K.
    symmetric : bool
    nonfinite : {"raise", "nan"}

    Returns
    -------
    codes : uint8 ndarray of shape (..., K)
    scales : float32 ndarray of shape (..., K / group_size)
    zero_points : uint8 ndarray of shape (..., K / group_size), or None if they are all n / 2
    """
    top = 2**bits - 1
    k = w.shape[-1]
    size = max(k if group_size is None else min(group_size, k), 1)
    groups, valid = finite_blocks(widen(w, np.float64), (*w.shape[:-1], k // size, size), nonfinite)
    low, high = groups.min(axis=-1, initial=0), groups.max(axis=-1, initial=0)
    with np.errstate(over="ignore"):  # of float64 beyond float32
        spread = 2 * np.maximum(-low, high) if symmetric else high - low
    bounded = np.clip(spread / top, 2.0**-126, _LARGEST_BFLOAT16)
    scales = _bfloat16_above(np.where(spread == 0, 1, bounded))
    divisor = scales.astype(np.float64)
    zeros = np.full(scales.shape, 2.0 ** (bits - 1))
    if not symmetric:
        zeros = np.clip(np.rint(-low / divisor), 0, top)
    codes = np.clip(np.rint(groups / divisor[..., None]) + zeros[..., None], 0, top)
    zero_points = None if symmetric else zeros.astype(np.uint8)
    return codes.astype(np.uint8).reshape(w.shape), np.where(valid, scales, np.float32(np.nan)), zero_points


def _bfloat16_above(exact: np.ndarray) -> np.ndarray:
    """The least bfloat16 numbers, as float32, that are not below positive float64 numbers."""
    nearest = exact.astype(np.float32)
    bits = nearest.view(np.uint32) + (nearest < exact)
    return ((bits + 0xFFFF) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def dequantize_integers(differences: np.ndarray, scales: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """Codes minus their zero point, of groups, times their scale, exactly, rounded once to `dtype`."""
    with np.errstate(invalid="ignore"):  # 0 times infinity
        products = differences * scales.astype(np.float64)[..., None]
    return round_once(products.reshape(*products.shape[:-2], -1), dtype)


def quantize_int4(
    w: np.ndarray, group_size: int | None = 32, symmetric: bool = True, nonfinite: str = "raise"
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Codes of four bits, by `quantize_integers`.

    Parameters
    ----------
    w : ndarray of shape (..., K)
        float16, bfloat16, float32 or float64; K is even.
    group_size : int or None
    symmetric : bool
    nonfinite : {"raise", "nan"}

    Returns
    -------
    codes : uint8 ndarray of shape (..., K/2)
        Two codes a byte, even k in the low nibble.
    scales : float32 ndarray of shape (..., K / group_size)
    zero_points : uint8 ndarray of shape (..., K / group_size), or None for 8

    References
    ----------
    GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, arXiv:2210.17323:
    scales and zero points of groups, both rules.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> codes, scales, zero_points = reference.quantize_int4(np.full(32, -7.5, np.float32))
    >>> codes[:2].tolist(), scales.tolist(), zero_points
    ([0, 0], [1.0], None)
    """
    codes, scales, zeros = quantize_integers(w, 4, group_size, symmetric, nonfinite)
    return pack_e2m1(codes), scales, zeros


def quantize_int8(
    w: np.ndarray, group_size: int | None = 32, symmetric: bool = True, nonfinite: str = "raise"
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Signed codes of eight bits: those of `quantize_integers` minus 128.

    Parameters
    ----------
    w : ndarray of shape (..., K)
        float16, bfloat16, float32 or float64.
    group_size : int or None
    symmetric : bool
    nonfinite : {"raise", "nan"}

    Returns
    -------
    codes : int8 ndarray of shape (..., K)
    scales : float32 ndarray of shape (..., K / group_size)
    zero_points : int8 ndarray of shape (..., K / group_size), or None for 0

    References
    ----------
    GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, arXiv:2210.17323:
    scales and zero points of groups, both rules.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> codes, scales, zero_points = reference.quantize_int8(np.full(32, -127.5, np.float32))
    >>> codes[:2].tolist(), scales.tolist(), zero_points
    ([-128, -128], [1.0], None)
    """
    codes, scales, zeros = quantize_integers(w, 8, group_size, symmetric, nonfinite)
    return _signed(codes), scales, None if zeros is None else _signed(zeros)


def _signed(codes: np.ndarray) -> np.ndarray:
    return (codes ^ 128).view(np.int8)


def dequantize_int4(
    codes: np.ndarray,
    scales: np.ndarray,
    zero_points: np.ndarray | None = None,
    dtype: DTypeLike = np.float32,
) -> np.ndarray:
    """(code - zero point) * scale, exactly, rounded once to `dtype`.

    Parameters
    ----------
    codes : uint8 ndarray of shape (..., K/2)
    scales : ndarray of shape (..., G)
        float32, bfloat16 or float16, of K / G consecutive codes each.
    zero_points : uint8 ndarray of shape (..., G), or None for 8
    dtype : dtype
        float16, bfloat16, float32 or float64.

    Returns
    -------
    ndarray of shape (..., K)

    References
    ----------
    GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, arXiv:2210.17323.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> codes, scales = np.full((1, 16), 0x1F, np.uint8), np.full((1, 1), 0.5, np.float32)
    >>> reference.dequantize_int4(codes, scales)[0, :2].tolist()
    [3.5, -3.5]
    """
    groups = unpack_e2m1(codes).view(np.uint8).astype(np.float64).reshape(*scales.shape, -1)
    zeros = 8.0 if zero_points is None else zero_points.astype(np.float64)[..., None]
    return dequantize_integers(groups - zeros, scales, dtype)


def dequantize_int8(
    codes: np.ndarray,
    scales: np.ndarray,
    zero_points: np.ndarray | None = None,
    dtype: DTypeLike = np.float32,
) -> np.ndarray:
    """(code - zero point) * scale, exactly, rounded once to `dtype`.

    Parameters
    ----------
    codes : int8 ndarray of shape (..., K)
    scales : ndarray of shape (..., G)
        float32, bfloat16 or float16, of K / G consecutive codes each.
    zero_points : int8 ndarray of shape (..., G), or None for 0
    dtype : dtype
        float16, bfloat16, float32 or float64.

    Returns
    -------
    ndarray of shape (..., K)

    References
    ----------
    GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, arXiv:2210.17323.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> codes, scales = np.array([[-128, 127]], np.int8), np.full((1, 1), 0.5, np.float32)
    >>> reference.dequantize_int8(codes, scales).tolist()
    [[-64.0, 63.5]]
    """
    groups = codes.astype(np.float64).reshape(*scales.shape, -1)
    zeros = 0.0 if zero_points is None else zero_points.astype(np.float64)[..., None]
    return dequantize_integers(groups - zeros, scales, dtype)
