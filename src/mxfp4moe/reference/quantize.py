"""Quantization."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

E2M1_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)


def quantize_mxfp4(
    w: np.ndarray, scale_rule: str = "floor", nonfinite: str = "raise"
) -> tuple[np.ndarray, np.ndarray]:
    """MXFP4 of `w`: 4-bit E2M1 codes and one E8M0 scale per 32 values of the last axis.

    The scale exponent e of a block follows from its largest magnitude amax = m * 2**E, 1 <= m < 2. It is
    E - 2 or one more, clamped to [-127, 127]:

    - ``floor``: E - 2 always, so that values above 6 * 2**e saturate;
    - ``ceil``: one more if m > 1;
    - ``rceil``: one more if m > 1.5: the smallest e with amax <= 6 * 2**e;
    - ``even``: one more if m >= 1.75: amax is first rounded, half up, to one mantissa bit.

    Each value divided by 2**e is rounded to the nearest E2M1 value, ties to the even code, and saturates at
    +-6. The sign bit is kept, also where the magnitude rounds to zero (code 8 is -0). The exceptions: a block
    of zeros of either sign has scale byte 0 and codes 0; with ``nonfinite="nan"`` a block with an infinity or
    a NaN has scale byte 255 (NaN) and codes 0.

    Parameters
    ----------
    w : ndarray of shape (..., K)
        float16, bfloat16, float32 or float64; K a multiple of 32. All steps are exact but the one rounding.
    scale_rule : {"floor", "ceil", "rceil", "even"}
    nonfinite : {"raise", "nan"}

    Returns
    -------
    blocks : uint8 ndarray of shape (..., K/2)
        Two codes a byte, even k in the low nibble.
    scales : float8_e8m0fnu ndarray of shape (..., K/32)

    Raises
    ------
    ValueError
        A value is not finite and `nonfinite` is "raise".
    """
    with np.errstate(invalid="ignore"):  # raised by a signaling NaN
        values = w.astype(np.float64).reshape(*w.shape[:-1], w.shape[-1] // 32, 32)
    finite = np.isfinite(values)
    if nonfinite == "raise" and not finite.all():
        raise ValueError(f"w: not finite at position {np.argwhere(~finite.reshape(w.shape))[0].tolist()}")
    valid = np.asarray(finite.all(axis=-1))
    values = np.where(valid[..., None], values, 0)
    amax = np.abs(values).max(axis=-1)

    half_m, exponent = np.frexp(amax)  # amax = half_m * 2**exponent, 0.5 <= half_m < 1
    next_exponent = {
        "floor": np.zeros_like(valid),
        "ceil": half_m > 0.5,
        "rceil": half_m > 0.75,
        "even": half_m >= 0.875,
    }[scale_rule]
    e = np.clip(exponent - 1 - 2 + next_exponent, -127, 127)

    magnitude = np.ldexp(np.abs(values), -e[..., None])
    midpoints = (E2M1_VALUES[:7] + E2M1_VALUES[1:8]) / 2
    # On a midpoint the two searches give the two neighbours; one of them is even.
    below, above = (np.searchsorted(midpoints, magnitude, side) for side in ("left", "right"))
    codes = np.where(below % 2 == 0, below, above) + 8 * np.signbit(values)

    zero = amax == 0
    codes = np.where(zero[..., None], 0, codes).astype(np.uint8)
    scales = np.where(valid, np.where(zero, 0, e + 127), 255).astype(np.uint8)
    return pack_e2m1(codes.reshape(w.shape)), scales.view(ml_dtypes.float8_e8m0fnu)


def dequantize_mxfp4(blocks: np.ndarray, scales: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
    """Code times scale, exactly, rounded once to `dtype`.

    Parameters
    ----------
    blocks : ndarray of shape (..., K/2) or (..., K/32, 16)
        uint8 or int8.
    scales : ndarray of shape (..., K/32)
        uint8 or float8_e8m0fnu: byte s means 2**(s - 127), 255 means NaN.
    dtype : dtype
        float16, bfloat16, float32 or float64. A product too large for it is infinite.

    Returns
    -------
    ndarray of shape (..., K)
    """
    codes = unpack_e2m1(blocks).view(np.uint8).reshape(*scales.shape, 32)
    exponents = scales.view(np.uint8).astype(np.int32) - 127
    factors = np.where(exponents == 128, np.nan, np.ldexp(1.0, exponents))
    values = E2M1_VALUES[codes] * factors[..., None]
    with np.errstate(over="ignore"):
        return values.reshape(*scales.shape[:-1], scales.shape[-1] * 32).astype(dtype)


def pack_e2m1(codes: np.ndarray) -> np.ndarray:
    """Two codes a byte along the last axis, the even one in the low nibble; `codes` has one a byte."""
    codes = codes.view(np.uint8) & 15  # the high nibble of a float4_e2m1fn means nothing
    return codes[..., 0::2] | codes[..., 1::2] << 4


def unpack_e2m1(blocks: np.ndarray) -> np.ndarray:
    """The inverse of `pack_e2m1`, as float4_e2m1fn."""
    blocks = blocks.view(np.uint8)
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 2 * blocks.shape[-1])
    return codes.view(ml_dtypes.float4_e2m1fn)
