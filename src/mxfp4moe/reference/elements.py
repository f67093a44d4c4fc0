"""The elements of small float formats: their values, rounding to them, two codes of E2M1 in a byte."""

from __future__ import annotations

import math
from typing import NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

E2M1_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)


class Element(NamedTuple):
    """A small float format: its magnitudes by code, and its mantissa bits."""

    magnitudes: np.ndarray
    mantissa_bits: int

    @property
    def max_exponent(self) -> int:
        """The exponent of the largest value: 2**max_exponent <= largest < 2 * 2**max_exponent."""
        return math.frexp(float(self.magnitudes[-1]))[1] - 1


def _finite_magnitudes(dtype: DTypeLike) -> np.ndarray:
    magnitudes = np.arange(128, dtype=np.uint8).view(dtype).astype(np.float64)
    return np.asarray(magnitudes[np.isfinite(magnitudes)])


E2M1 = Element(E2M1_VALUES[:8].astype(np.float64), 1)
E4M3 = Element(_finite_magnitudes(ml_dtypes.float8_e4m3fn), 3)
E5M2 = Element(_finite_magnitudes(ml_dtypes.float8_e5m2), 2)


def round_to_element(values: np.ndarray, element: Element) -> np.ndarray:
    """The codes of the nearest values of `element`, ties to the even code, saturating; the sign bit is kept.

    The sign is the highest bit of a code: 8 of E2M1 (code 8 is -0), 128 of the others.
    """
    magnitudes = element.magnitudes
    midpoints = (magnitudes[:-1] + magnitudes[1:]) / 2
    # On a midpoint the two searches give the two neighbours; one of them is even.
    wide = np.abs(values.astype(np.float64))
    below, above = (np.searchsorted(midpoints, wide, side) for side in ("left", "right"))
    sign_bit = 8 if element is E2M1 else 128
    codes = np.where(below % 2 == 0, below, above) + sign_bit * np.signbit(values)
    return np.asarray(codes.astype(np.uint8))


def round_once(values: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """float64 `values` of at most 48 bits rounded to nearest even in `dtype`, which `astype` does not do:
    for bfloat16 it rounds to float32 first.

    A float32 whose last bit is set to 1 where it is not exact (rounded to odd) is on the same side of every
    16-bit value and of every midpoint of two as the exact value.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        nearest = values.astype(np.float32)
        if np.dtype(dtype).itemsize != 2:
            return values.astype(dtype)
        back = nearest.astype(np.float64)
        away = np.where(np.abs(values) > np.abs(back), 1, -1)
        even = nearest.view(np.uint32) % 2 == 0
        inexact = (values != back) & ~np.isnan(values)
        odd = np.where(even & inexact, nearest.view(np.uint32) + away, nearest.view(np.uint32))
        return odd.astype(np.uint32).view(np.float32).astype(dtype)


def widen(w: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """`w` in a wider dtype."""
    with np.errstate(invalid="ignore"):  # raised by a signaling NaN
        return w.astype(dtype)


def finite_blocks(
    values: np.ndarray, shape: tuple[int, ...], nonfinite: str
) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of `values` along the last axis of `shape`, zero where one is not finite, and which are."""
    blocks = values.reshape(shape)
    finite = np.isfinite(blocks)
    if nonfinite == "raise" and not finite.all():
        position = np.argwhere(~finite.reshape(values.shape))[0].tolist()
        raise ValueError(f"w: not finite at position {position}")
    valid = np.asarray(finite.all(axis=-1))
    return np.where(valid[..., None], blocks, 0), valid


def pack_e2m1(codes: np.ndarray) -> np.ndarray:
    """Two codes a byte along the last axis, the even one in the low nibble.

    Parameters
    ----------
    codes : uint8 or float4_e2m1fn ndarray of shape (..., K)
        One code a byte.

    Returns
    -------
    uint8 ndarray of shape (..., K/2)

    References
    ----------
    OCP Microscaling Formats (MX) Specification, version 1.0, Open Compute Project, 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> reference.pack_e2m1(np.array([1, 2, 15, 0], np.uint8)).tolist()
    [33, 15]
    """
    codes = codes.view(np.uint8) & 15  # the high nibble of a float4_e2m1fn means nothing
    return codes[..., 0::2] | codes[..., 1::2] << 4


def unpack_e2m1(blocks: np.ndarray) -> np.ndarray:
    """The inverse of `pack_e2m1`.

    Parameters
    ----------
    blocks : uint8 or int8 ndarray of shape (..., K/2)

    Returns
    -------
    float4_e2m1fn ndarray of shape (..., K)

    References
    ----------
    OCP Microscaling Formats (MX) Specification, version 1.0, Open Compute Project, 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> reference.unpack_e2m1(np.array([33, 15], np.uint8)).astype(float).tolist()
    [0.5, 1.0, -6.0, 0.0]
    """
    blocks = blocks.view(np.uint8)
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 2 * blocks.shape[-1])
    return codes.view(ml_dtypes.float4_e2m1fn)
