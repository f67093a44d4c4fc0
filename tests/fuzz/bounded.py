"""Float64 numbers with a bound on how far float32 arithmetic of the numerics contract may be from them.

A bound is the sum of what each operation adds: one rounding (`EPS32` times the magnitude), and `TINY`, below
which numbers may count as zero. An infinite bound says that anything may come: a float32 sum that could
overflow is finite, infinite or NaN, as the order of its terms has it. A value that is NaN or infinite with a
finite bound is what must come exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

EPS32 = 2.0**-24  # half a unit in the last place, relative
EPS16 = 2.0**-8  # of bfloat16
TINY = 2.0**-126
HUGE = 2.0**127  # half of what overflows in float32 and bfloat16
FACTOR_ULPS = 16  # of an approximated sigmoid, erf or tanh, which is in [0, 1], and what a gate times it is
SOFT_CLAMP_ULPS = 8  # of limit * tanh(x / limit)
SLOPE = 1.13  # largest derivative of gate * factor(gate), for every activation and alpha

Array = np.ndarray


class Bounded(NamedTuple):
    """Values and, of the same shape, their bounds."""

    value: Array
    error: Array

    @property
    def most(self) -> Array:
        return abs(self.value) + self.error


def exactly(value: Array) -> Bounded:
    value = np.asarray(value, np.float64)
    return Bounded(value, np.zeros(value.shape))


def _settle(value: Array, error: Array, most: Array) -> Bounded:
    """A result of operations on `value`, whose magnitude is at most `most` where it is finite."""
    anything = np.isnan(error) | np.isinf(error) | (np.isfinite(value) & ~(most < HUGE))
    special = ~np.isfinite(value)
    return Bounded(
        np.where(anything & ~np.isnan(value), 0.0, value),
        np.where(anything, np.inf, np.where(special, 0.0, error)),
    )


def add(a: Bounded, b: Bounded) -> Bounded:
    value, most = a.value + b.value, a.most + b.most
    error = a.error + b.error + EPS32 * most + TINY
    # What may be anything may be an infinity of the other sign; NaN it cannot undo.
    either = np.isinf(a.error) | np.isinf(b.error)
    certain = (np.isnan(a.value) & np.isfinite(a.error)) | (np.isnan(b.value) & np.isfinite(b.error))
    return _certain_nan(_settle(value, np.where(either, np.inf, _finite(error, value)), most), certain)


def multiply(a: Bounded, b: Bounded) -> Bounded:
    value, most = a.value * b.value, a.most * b.most
    error = a.error * abs(b.value) + abs(a.value) * b.error + a.error * b.error + EPS32 * most + TINY
    # Infinity times what may be zero or of either sign.
    unclear = np.isinf(a.value) & _may_be_zero(b) | np.isinf(b.value) & _may_be_zero(a)
    either = np.isinf(a.error) | np.isinf(b.error) | unclear
    certain = (np.isnan(a.value) & np.isfinite(a.error)) | (np.isnan(b.value) & np.isfinite(b.error))
    return _certain_nan(_settle(value, np.where(either, np.inf, _finite(error, value)), most), certain)


def _finite(error: Array, value: Array) -> Array:
    """Bounds of values that are NaN or infinite are not numbers; such values are exact."""
    return np.where(np.isfinite(value), error, 0.0)


def _may_be_zero(x: Bounded) -> Array:
    """Where it is not sure whether float32 arithmetic has a zero."""
    return (abs(x.value) < np.maximum(x.error, TINY)) & ((x.value != 0) | (x.error > 0))


def _certain_nan(result: Bounded, certain: Array) -> Bounded:
    return Bounded(np.where(certain, np.nan, result.value), np.where(certain, 0.0, result.error))


def dot(x: Bounded, weights: Array, scales: Array) -> Bounded:
    """x [T, K] times (weights * scales)[N, K], summed in any order.

    A scale multiplies partial sums, so each term passes at most its own rounding, K additions, a
    multiplication by the scale, and K additions of scaled parts.
    """
    k = weights.shape[1]
    matrix = weights * scales
    plain, scaled = abs(weights), abs(matrix)
    if np.isfinite(x.value).all() and np.isfinite(x.error).all() and np.isfinite(matrix).all():
        value, magnitude = x.value @ matrix.T, x.most @ scaled.T
        error, partial = x.error @ scaled.T, x.most @ plain.T
        unclear = np.zeros(value.shape, bool)
    else:
        value = (x.value[:, None] * matrix).sum(-1)
        products = x.most[:, None] * scaled
        fine = np.isfinite(products)
        magnitude = np.where(fine, products, 0).sum(-1)
        partial = np.where(fine, x.most[:, None] * plain, 0).sum(-1)
        error = np.where(fine, x.error[:, None] * scaled, 0).sum(-1)
        # An infinite scale meets partial sums that may be zero; an infinite term, others that may overflow.
        unclear = np.broadcast_to(np.isinf(scales).any(-1), value.shape)
        unclear = unclear | np.isinf(x.error).any(-1)[:, None]
        unclear |= ~np.isfinite(value) & ~(np.maximum(magnitude, partial) < HUGE)
        unclear |= (np.isinf(x.value)[:, None] & _may_be_zero(exactly(matrix))).any(-1)
        unclear |= (np.isinf(matrix) & _may_be_zero(x)[:, None]).any(-1)
        certain = np.isnan(x.value) & np.isfinite(x.error)
        nan_scales = np.isnan(scales).any(-1) | np.isnan(weights).any(-1)
        unclear &= ~(certain.any(-1)[:, None] | nan_scales)
    largest = np.nan_to_num(abs(scales), nan=0.0, posinf=0.0).max(-1) + 1
    reach = (
        np.nan_to_num(plain, nan=0.0, posinf=0.0).sum(-1) + np.nan_to_num(x.most, posinf=0.0).sum(-1)[:, None]
    )
    error = error + (2 * k + 4) * EPS32 * magnitude + TINY * largest * (reach + 2 * k + 4)
    most = np.maximum(np.maximum(magnitude, partial), TINY)
    return _settle(value, np.where(unclear, np.inf, _finite(error, value)), most)


def clamp(x: Bounded, low: float, high: float) -> Bounded:
    """NaN stays; the limit itself is rounded to float32."""
    value = np.where(np.isnan(x.value), x.value, np.clip(x.value, low, high))
    inside = np.isfinite(high) * EPS32 * abs(high) if math.isfinite(high) else 0.0
    return Bounded(value, x.error + np.where(np.isfinite(value), inside, 0.0))


def soft_clamp(x: Bounded, function: Callable[[Array], Array]) -> Bounded:
    """limit * tanh(x / limit), which `function` is: its derivative is at most 1."""
    value = function(x.value)
    error = x.error + SOFT_CLAMP_ULPS * EPS32 * (abs(value) + x.error) + TINY
    return Bounded(value, np.where(np.isinf(x.error), np.inf, _finite(error, value)))


def gated(
    gate: Bounded, factor: Callable[[Array], Array], of: Callable[[Array], Array] = lambda x: x
) -> Bounded:
    """of(gate) * factor(gate), with a factor in [0, 1], and |of(x)| at most |x|."""
    value = of(gate.value) * factor(gate.value)
    error = SLOPE * gate.error + FACTOR_ULPS * EPS32 * gate.most + TINY * (1 + gate.most)
    return _settle(value, np.where(np.isinf(gate.error), np.inf, _finite(error, value)), gate.most)


def rounded(x: Bounded, unit: float, largest: float, smallest: float) -> Bounded:
    """Rounded to a type of that relative unit, largest finite and smallest positive number."""
    overflows = x.most > largest
    surely = overflows & (abs(x.value) - x.error > largest * (1 + 2 * unit))
    value = np.where(surely, np.copysign(np.inf, x.value), x.value)
    error = np.where(surely, 0.0, np.where(overflows & np.isfinite(x.value), np.inf, x.error))
    error = error + np.where(np.isfinite(value), unit * x.most + smallest, 0.0)
    return Bounded(value, error)


def misses(got: Array, expected: Bounded) -> Array:
    """Where `got` is neither what must come nor within the bound."""
    got = got.astype(np.float64)
    value, error = expected
    same = (got == value) | (np.isnan(got) & np.isnan(value))
    with np.errstate(invalid="ignore"):
        return ~(same | np.isinf(error) | (abs(got - value) <= error))
