"""Activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mxfp4moe.reference import float32
from mxfp4moe.reference.float32 import Parameters, logistic_times

_F = np.float32


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) in float64.

    Parameters
    ----------
    x : float ndarray

    Returns
    -------
    float64 ndarray of the same shape

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> reference.sigmoid(np.zeros(1)).tolist()
    [0.5]
    """
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-x.astype(np.float64))))


def normal_cdf(x: np.ndarray) -> np.ndarray:
    """(1 + erf(x / sqrt(2))) / 2 in float64.

    Parameters
    ----------
    x : float ndarray

    Returns
    -------
    float64 ndarray of the same shape

    References
    ----------
    Gaussian Error Linear Units (GELUs), arXiv:1606.08415.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> reference.normal_cdf(np.zeros(1)).tolist()
    [0.5]
    """
    return np.asarray(
        0.5 * np.vectorize(math.erfc, otypes=[np.float64])(-x.astype(np.float64) / math.sqrt(2.0))
    )


def normal_cdf_tanh(x: np.ndarray) -> np.ndarray:
    """(1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2 in float64.

    Parameters
    ----------
    x : float ndarray

    Returns
    -------
    float64 ndarray of the same shape

    References
    ----------
    Gaussian Error Linear Units (GELUs), arXiv:1606.08415.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> reference.normal_cdf_tanh(np.zeros(1)).tolist()
    [0.5]
    """
    x = x.astype(np.float64)
    with np.errstate(over="ignore"):
        return np.asarray(sigmoid(2.0 * math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def soft_clamp(x: np.ndarray, limit: float) -> np.ndarray:
    """Return limit * tanh(x / limit), in float64 and rounded to the dtype of `x`; `x` if there is no limit.

    Parameters
    ----------
    x : float ndarray
    limit : float
        Above 0; infinite for no limit.

    Returns
    -------
    ndarray of the shape and dtype of `x`

    References
    ----------
    The implementation that is published with Kimi-K3.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> reference.soft_clamp(np.array([0.0, 1000.0]), 4.0).tolist()
    [0.0, 4.0]
    """
    if limit == math.inf:
        return x
    bound = np.float64(limit)
    return np.asarray(bound * np.tanh(x.astype(np.float64) / bound)).astype(x.dtype)


class _Activation(NamedTuple):
    """A formula, the same in float32 operation by operation, and the parameters that are not given."""

    formula: Callable[[Any, np.ndarray, Any, Any], np.ndarray]
    in_float32: Callable[[Any, np.ndarray, Parameters], np.ndarray]
    alpha: float = 0.0
    limit: float = math.inf
    gated: bool = True


_Formula = Callable[[np.ndarray, np.ndarray, Any, Any], np.ndarray]


def _times(factor: Callable[[np.ndarray], np.ndarray]) -> _Formula:
    """The formula gate * factor(gate) * up of what is clamped."""

    def formula(gate: np.ndarray, up: np.ndarray, alpha: Any, limit: Any) -> np.ndarray:
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
        return np.asarray(gate * factor(gate).astype(gate.dtype) * up)

    return formula


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return sigmoid(x).astype(x.dtype)


def _swigluoai(gate: np.ndarray, up: np.ndarray, alpha: Any, limit: Any) -> np.ndarray:
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return np.asarray(gate * _sigmoid(alpha * gate) * (up + gate.dtype.type(1)))


def _silu_clamp(gate: np.ndarray, up: np.ndarray, alpha: Any, limit: Any) -> np.ndarray:
    return np.asarray(np.minimum(gate * _sigmoid(gate), limit) * np.clip(up, -limit, limit))


def _situ(gate: np.ndarray, up: np.ndarray, alpha: Any, limit: Any) -> np.ndarray:
    return np.asarray(soft_clamp(gate, alpha) * _sigmoid(gate) * soft_clamp(up, limit))


def _relu2(gate: None, up: np.ndarray, alpha: Any, limit: Any) -> np.ndarray:
    return np.asarray(np.square(np.maximum(np.clip(up, -limit, limit), up.dtype.type(0))))


def _silu_float32(gate: np.ndarray) -> np.ndarray:
    return logistic_times(gate, _F(0) - gate)


def _silu_up_float32(gate: np.ndarray, up: np.ndarray, p: Parameters) -> np.ndarray:
    return np.asarray(_silu_float32(p.below(gate)) * p.within(up))


def _swigluoai_float32(gate: np.ndarray, up: np.ndarray, p: Parameters) -> np.ndarray:
    gate = p.below(gate)
    return np.asarray(logistic_times(gate, gate * -p.alpha) * (p.within(up) + _F(1)))


def _gelu_float32(gate: np.ndarray, up: np.ndarray, p: Parameters) -> np.ndarray:
    gate = p.below(gate)
    tail = _F(0.5) * float32.erfc(np.abs(gate) * _F(0.70710678))
    return np.asarray((gate * np.where(gate < _F(0), tail, _F(1) - tail)) * p.within(up))


def _gelu_tanh_float32(gate: np.ndarray, up: np.ndarray, p: Parameters) -> np.ndarray:
    gate = p.below(gate)
    linear = _F(-2) * _F(0.79788456)
    cubic = (gate * gate) * (linear * _F(0.044715)) + linear
    return np.asarray(logistic_times(gate, gate * cubic) * p.within(up))


def _silu_clamp_float32(gate: np.ndarray, up: np.ndarray, p: Parameters) -> np.ndarray:
    return np.asarray(p.below(_silu_float32(gate)) * p.within(up))


def _situ_float32(gate: np.ndarray, up: np.ndarray, p: Parameters) -> np.ndarray:
    soft = float32.soft_clamp(gate, p.alpha)
    return np.asarray(logistic_times(soft, _F(0) - gate) * float32.soft_clamp(up, p.limit))


def _relu2_float32(gate: None, up: np.ndarray, p: Parameters) -> np.ndarray:
    return np.asarray(np.square(float32.most(_F(0), p.within(up))))


_ACTIVATIONS = {
    "silu": _Activation(_times(sigmoid), _silu_up_float32),
    "swigluoai": _Activation(_swigluoai, _swigluoai_float32, alpha=1.702, limit=7.0),
    "gelu": _Activation(_times(normal_cdf), _gelu_float32),
    "gelu_tanh": _Activation(_times(normal_cdf_tanh), _gelu_tanh_float32),
    "silu_clamp": _Activation(_silu_clamp, _silu_clamp_float32),
    "situ": _Activation(_situ, _situ_float32, alpha=4.0, limit=25.0),
    "relu2": _Activation(_relu2, _relu2_float32, gated=False),
}


def activate(
    gate: np.ndarray | None, up: np.ndarray, activation: str, alpha: float | None, limit: float | None
) -> np.ndarray:
    """The activation, in the dtype of `up`.

    With g = min(gate, limit) and u = clip(up, -limit, limit), both as they are without a limit, it is

    ==========  ====================================================================
    silu        g * sigmoid(g) * u
    swigluoai   g * sigmoid(alpha * g) * (u + 1)
    gelu        g * normal_cdf(g) * u
    gelu_tanh   g * normal_cdf_tanh(g) * u
    silu_clamp  min(gate * sigmoid(gate), limit) * u
    situ        soft_clamp(gate, alpha) * sigmoid(gate) * soft_clamp(up, limit)
    relu2       max(u, 0)**2, of experts without a gate
    ==========  ====================================================================

    Parameters
    ----------
    gate, up : float32 or float64 ndarray of shape (..., I)
        `gate` is None for experts without a gate.
    activation : str
        A name of this table.
    alpha : float or None
        None means 1.702 for swigluoai and 4.0 for situ; the others have none.
    limit : float or None
        None means 7.0 for swigluoai, 25.0 for situ, and no limit otherwise.

    Returns
    -------
    ndarray of shape (..., I)

    References
    ----------
    GLU Variants Improve Transformer, arXiv:2002.05202: gated activations. Gaussian Error Linear Units
    (GELUs), arXiv:1606.08415. "swigluoai", "silu_clamp" and "situ": the implementations that are
    published with gpt-oss, Step-3.5 and Kimi-K3.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> gate, up = np.array([0, 100], np.float32), np.array([5, 2], np.float32)
    >>> reference.activate(gate, up, "silu", None, None).tolist()
    [0.0, 200.0]
    """
    function = _ACTIVATIONS[activation]
    if function.gated is (gate is None):
        raise ValueError(
            f"activation: {activation} is for experts {'with' if function.gated else 'without'} a gate"
        )
    number = up.dtype.type
    return function.formula(
        gate,
        up,
        number(function.alpha if alpha is None else alpha),
        number(function.limit if limit is None else limit),
    )


def activate_float32(
    gate: np.ndarray | None, up: np.ndarray, activation: str, alpha: float | None, limit: float | None
) -> np.ndarray:
    """Compute as the kernels on activations of eight bits do: as `activate`, each operation in float32."""
    function = _ACTIVATIONS[activation]
    parameters = Parameters(
        _F(function.alpha if alpha is None else alpha), _F(function.limit if limit is None else limit)
    )
    with np.errstate(all="ignore"):
        return np.asarray(function.in_float32(gate, up, parameters))
