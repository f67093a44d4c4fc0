"""Activations in float32, operation by operation.

Each operation is one of IEEE 754, so that the bits are the same on every CPU. The kernels on activations of
eight bits compute exactly this.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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


def _least(bound: np.float32, x: np.ndarray) -> np.ndarray:
    return np.where(bound < x, bound, x)


def _most(bound: np.float32, x: np.ndarray) -> np.ndarray:
    return np.where(bound > x, bound, x)


def _power_of_two(n: np.ndarray) -> np.ndarray:
    bits = (n + (_MAGIC + _F(127))).view(np.uint32) << np.uint32(23)
    return np.asarray(bits.view(_F))


def exp(x: np.ndarray) -> np.ndarray:
    """e**x by a polynomial of degree 6, with a relative error below 2e-7."""
    x = _most(_F(-104), _least(_F(100), x))
    n = (x * _F(1.44269504) + _MAGIC) - _MAGIC
    r = n * _F(2.12194440e-4) + (n * _F(-0.693359375) + x)
    p = _F(1) + ((r * r) * _polynomial(_EXP, r) + r)
    half = np.rint(n * _F(0.5))
    return np.asarray((p * _power_of_two(half)) * _power_of_two(n - half))


def _tanh(x: np.ndarray) -> np.ndarray:
    magnitude = np.abs(x)
    far = np.copysign(_F(1) - _F(2) / (exp(magnitude + magnitude) + _F(1)), x)
    square = x * x
    return np.asarray(np.where(magnitude < _F(0.625), (x * square) * _polynomial(_TANH, square) + x, far))


def _erfc(z: np.ndarray) -> np.ndarray:
    """The complementary error function of numbers that are not negative."""
    t = _F(1) / (z * _F(0.4) + _F(1))
    return np.asarray((_polynomial(_ERFC, t) * t) * exp(_F(0) - z * z))


def _logistic_times(gate: np.ndarray, negated: np.ndarray) -> np.ndarray:
    return np.asarray(gate / (_F(1) + exp(negated)))


def _silu(gate: np.ndarray) -> np.ndarray:
    return _logistic_times(gate, _F(0) - gate)


class _Parameters(NamedTuple):
    alpha: np.float32
    limit: np.float32

    def below(self, x: np.ndarray) -> np.ndarray:
        return _least(self.limit, x)

    def within(self, x: np.ndarray) -> np.ndarray:
        return _most(-self.limit, _least(self.limit, x))


def _soft_clamp(x: np.ndarray, limit: np.float32) -> np.ndarray:
    return np.where(limit * _F(2.0**-12) < np.abs(x), limit * _tanh(x / limit), x)


def _silu_up(gate: np.ndarray, up: np.ndarray, p: _Parameters) -> np.ndarray:
    return np.asarray(_silu(p.below(gate)) * p.within(up))


def _swigluoai(gate: np.ndarray, up: np.ndarray, p: _Parameters) -> np.ndarray:
    gate = p.below(gate)
    return np.asarray(_logistic_times(gate, gate * -p.alpha) * (p.within(up) + _F(1)))


def _gelu(gate: np.ndarray, up: np.ndarray, p: _Parameters) -> np.ndarray:
    gate = p.below(gate)
    tail = _F(0.5) * _erfc(np.abs(gate) * _F(0.70710678))
    return np.asarray((gate * np.where(gate < _F(0), tail, _F(1) - tail)) * p.within(up))


def _gelu_tanh(gate: np.ndarray, up: np.ndarray, p: _Parameters) -> np.ndarray:
    gate = p.below(gate)
    linear = _F(-2) * _F(0.79788456)
    cubic = (gate * gate) * (linear * _F(0.044715)) + linear
    return np.asarray(_logistic_times(gate, gate * cubic) * p.within(up))


def _silu_clamp(gate: np.ndarray, up: np.ndarray, p: _Parameters) -> np.ndarray:
    return np.asarray(p.below(_silu(gate)) * p.within(up))


def _situ(gate: np.ndarray, up: np.ndarray, p: _Parameters) -> np.ndarray:
    soft = _soft_clamp(gate, p.alpha)
    return np.asarray(_logistic_times(soft, _F(0) - gate) * _soft_clamp(up, p.limit))


def _relu2(gate: None, up: np.ndarray, p: _Parameters) -> np.ndarray:
    return np.asarray(np.square(_most(_F(0), p.within(up))))


_FORMULAS: dict[str, Callable[..., np.ndarray]] = {
    "silu": _silu_up,
    "swigluoai": _swigluoai,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu_clamp": _silu_clamp,
    "situ": _situ,
    "relu2": _relu2,
}
_ALPHA = {"swigluoai": 1.702, "situ": 4.0}
_LIMIT = {"swigluoai": 7.0, "situ": 25.0}


def activate_float32(
    gate: np.ndarray | None, up: np.ndarray, activation: str, alpha: float | None, limit: float | None
) -> np.ndarray:
    """Compute as `activate` does, each operation in float32."""
    parameters = _Parameters(
        _F(_ALPHA.get(activation, 0.0) if alpha is None else alpha),
        _F(_LIMIT.get(activation, math.inf) if limit is None else limit),
    )
    with np.errstate(all="ignore"):
        return np.asarray(_FORMULAS[activation](gate, up, parameters))
