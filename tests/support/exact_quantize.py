"""The rules of the MX formats in exact rational arithmetic, and blocks that try them."""

from __future__ import annotations

import bisect
import functools
import itertools
from fractions import Fraction
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

bfloat16 = np.dtype(ml_dtypes.bfloat16)
float8_e4m3fn = np.dtype(ml_dtypes.float8_e4m3fn)
float8_e5m2 = np.dtype(ml_dtypes.float8_e5m2)

DTYPES = [np.dtype(np.float32), np.dtype(np.float16), bfloat16, np.dtype(np.float64)]
RULES = ["floor", "ceil", "rceil", "even"]


class Element(NamedTuple):
    """Magnitudes by code, mantissa bits, exponent of the largest value, and the sign bit of a code."""

    values: list[Fraction]
    mantissa_bits: int
    max_exponent: int
    sign: int


def fp8_magnitudes(mantissa_bits: int, bias: int, largest: int) -> list[Fraction]:
    magnitudes = []
    for code in range(largest + 1):
        exponent, fraction = divmod(code, 2**mantissa_bits)
        significand = Fraction(fraction, 2**mantissa_bits) + (exponent > 0)
        magnitudes.append(significand * power_of_two(max(exponent, 1) - bias))
    return magnitudes


def power_of_two(exponent: int) -> Fraction:
    return Fraction(2) ** exponent


ELEMENTS = {
    "e2m1": Element([Fraction(n, 2) for n in (0, 1, 2, 3, 4, 6, 8, 12)], 1, 2, 8),
    "e4m3": Element(fp8_magnitudes(3, 7, 0x7E), 3, 8, 128),
    "e5m2": Element(fp8_magnitudes(2, 15, 0x7B), 2, 15, 128),
}


def nearest_code(magnitude: Fraction, element: Element) -> int:
    """Nearest, ties to the even code, saturating."""
    values = element.values
    above = bisect.bisect_left(values, magnitude)
    if above in (0, len(values)):
        return min(above, len(values) - 1)
    low, high = magnitude - values[above - 1], values[above] - magnitude
    if low == high:
        return above - above % 2
    return above - 1 if low < high else above


def exact_block(block: np.ndarray, rule: str, element: Element) -> tuple[list[int], int]:
    """Codes and scale byte of a finite block: nothing but comparing rationals."""
    values = [Fraction(float(v)) for v in block]
    amax = max(map(abs, values))
    if amax == 0:
        return [0] * 32, 0
    floor_log2 = amax.numerator.bit_length() - amax.denominator.bit_length()
    floor_log2 -= power_of_two(floor_log2) > amax
    if rule == "rceil":
        start = floor_log2 - element.max_exponent - 1  # too small
        smallest = next(e for e in itertools.count(start) if amax <= element.values[-1] * power_of_two(e))
        e = min(max(smallest, -127), 127)
    else:
        if rule == "even":  # half up to the mantissa bits
            step = power_of_two(floor_log2 - element.mantissa_bits)
            rounded = (amax / step + Fraction(1, 2)).__floor__() * step
            floor_log2 += rounded >= power_of_two(floor_log2 + 1)
        elif rule == "ceil":
            floor_log2 += amax != power_of_two(floor_log2)
        e = min(max(floor_log2 - element.max_exponent, -127), 127)
    scale = power_of_two(e)
    codes = [
        nearest_code(abs(value) / scale, element) + element.sign * int(negative)
        for value, negative in zip(values, np.signbit(block), strict=True)
    ]
    return codes, e + 127


@functools.cache
def hard_blocks(dtype: np.dtype[Any]) -> np.ndarray:
    """Blocks whose largest values sit on and beside every threshold, over the whole range of `dtype`."""
    rng = np.random.default_rng(0)
    info = ml_dtypes.finfo(dtype)
    amax = np.array([4, 4.5, 5, 5.25, 6, 6.5, 7, 7.25, 7.5, 7.75]).astype(dtype)
    amax = np.concatenate([np.nextafter(amax, dtype.type(0)), amax, np.nextafter(amax, dtype.type(8))])
    rows = amax[:, None] * rng.uniform(-1, 1, (len(amax), 32)).astype(dtype)
    rows[:, 16:] *= np.exp2(-np.arange(16)).astype(dtype)  # subnormal elements too
    rows[:, 5] = amax
    rows[::2, 5] *= -1
    low, high = int(info.minexp), int(info.maxexp) - 4
    exponents = [0, high, low, low - int(info.nmant) + 1, low + 3, -3]
    scaled = [np.ldexp(rows.astype(np.float64), e).astype(dtype) for e in exponents]
    edges = np.zeros((4, 32), dtype)
    edges[0, 0], edges[1, 31], edges[2, 7] = info.max, -info.max, info.smallest_subnormal
    edges[3, 1], edges[3, 2] = info.max, -info.smallest_subnormal
    return np.concatenate([*scaled, edges])


@functools.cache
def exact_blocks(dtype: np.dtype[Any], rule: str, element: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes [blocks, 32] and scale bytes [blocks, 1] of `hard_blocks`."""
    pairs = [exact_block(block, rule, ELEMENTS[element]) for block in hard_blocks(dtype)]
    return np.array([codes for codes, _ in pairs]), np.array([[scale] for _, scale in pairs])


def any_bits(rng: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Any values of `dtype`, those that are not finite included, of any magnitude."""
    values = np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype)
    return values.reshape(shape).copy()


def every_value(dtype: np.dtype[Any]) -> np.ndarray:
    """All 2**16 values of a 16-bit dtype, those that are not finite included."""
    return np.arange(2**16, dtype=np.uint16).view(dtype)


@functools.cache
def nearest_16_bit(value: float, dtype: np.dtype[Any]) -> float:
    """Correct rounding by comparing rationals with the neighbours of a first guess."""
    exact, guess = Fraction(value), dtype.type(value)
    candidates = [np.nextafter(guess, dtype.type(-np.inf)), guess, np.nextafter(guess, dtype.type(np.inf))]
    finite = [c for c in candidates if np.isfinite(c)]
    return float(min(finite, key=lambda c: (abs(Fraction(float(c)) - exact), int(c.view(np.uint16)) % 2)))
