"""What activations are made of in float32, operation by operation.

Each operation is one of IEEE 754, so that the bits are the same on every CPU. The kernels on activations of
eight bits compute exactly this.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_F = np.float32
_MAGIC = _F(1.5 * 2.0**23)
"""Adding it leaves an integer's value in the low mantissa bits."""

_EXP = (1.381453999e-3, 8.368745246e-3, 4.166839080e-2, 1.666652040e-1, 4.999999343e-1)
_TANH = (-5.704986764e-3, 2.063908703e-2, -5.373971501e-2, 1.333144220e-1, -3.333328194e-1)
_ERFC = (
    4.415330067e-2,
    -1.544028302e-1,
    1.130215462e-1,
    5.487099729e-2,
    1.024950485e-1,
    1.837799156e-1,
    2.043219553e-1,
    2.261064958e-1,
    2.256536472e-1,
)


def _polynomial(coefficients: tuple[float, ...], x: np.ndarray) -> np.ndarray:
    result = np.full_like(x, _F(coefficients[0]))
    for coefficient in coefficients[1:]:
        result = np.asarray(result * x + _F(coefficient))
    return result


def least(bound: np.float32, x: np.ndarray) -> np.ndarray:
    return np.where(bound < x, bound, x)


def most(bound: np.float32, x: np.ndarray) -> np.ndarray:
    return np.where(bound > x, bound, x)


def _power_of_two(n: np.ndarray) -> np.ndarray:
    bits = (n + (_MAGIC + _F(127))).view(np.uint32) << np.uint32(23)
    return np.asarray(bits.view(_F))


def exp(x: np.ndarray) -> np.ndarray:
    """e**x by a polynomial of degree 6, with a relative error below 2e-7."""
    x = most(_F(-104), least(_F(100), x))
    n = (x * _F(1.44269504) + _MAGIC) - _MAGIC
    r = n * _F(2.12194440e-4) + (n * _F(-0.693359375) + x)
    p = _F(1) + ((r * r) * _polynomial(_EXP, r) + r)
    half = np.rint(n * _F(0.5))
    return np.asarray((p * _power_of_two(half)) * _power_of_two(n - half))


def tanh(x: np.ndarray) -> np.ndarray:
    magnitude = np.abs(x)
    far = np.copysign(_F(1) - _F(2) / (exp(magnitude + magnitude) + _F(1)), x)
    square = x * x
    return np.asarray(np.where(magnitude < _F(0.625), (x * square) * _polynomial(_TANH, square) + x, far))


def erfc(z: np.ndarray) -> np.ndarray:
    """The complementary error function of numbers that are not negative."""
    t = _F(1) / (z * _F(0.4) + _F(1))
    return np.asarray((_polynomial(_ERFC, t) * t) * exp(_F(0) - z * z))


def logistic_times(gate: np.ndarray, negated: np.ndarray) -> np.ndarray:
    """Gate / (1 + exp(negated))."""
    return np.asarray(gate / (_F(1) + exp(negated)))


class Parameters(NamedTuple):
    """The parameters of an activation, and what the limit makes of gate and up."""

    alpha: np.float32
    limit: np.float32

    def below(self, x: np.ndarray) -> np.ndarray:
        return least(self.limit, x)

    def within(self, x: np.ndarray) -> np.ndarray:
        return most(-self.limit, least(self.limit, x))


def soft_clamp(x: np.ndarray, limit: np.float32) -> np.ndarray:
    return np.where(limit * _F(2.0**-12) < np.abs(x), limit * tanh(x / limit), x)
