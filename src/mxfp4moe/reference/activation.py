"""Activations."""

from __future__ import annotations

import math

import numpy as np


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


def activate(
    gate: np.ndarray, up: np.ndarray, activation: str, alpha: float | None, limit: float | None
) -> np.ndarray:
    """The gated activation, in the dtype of `gate` and `up`.

    With a limit the gate is first clamped from above and up on both sides, whatever the activation. Then

    =========  =========================================
    silu       gate * sigmoid(gate) * up
    swigluoai  gate * sigmoid(alpha * gate) * (up + 1)
    gelu       gate * normal_cdf(gate) * up
    gelu_tanh  gate * normal_cdf_tanh(gate) * up
    =========  =========================================

    Parameters
    ----------
    gate, up : float32 or float64 ndarray of shape (..., I)
    activation : {"silu", "swigluoai", "gelu", "gelu_tanh"}
    alpha : float or None
        None means 1.702.
    limit : float or None
        None means 7.0 for swigluoai and no limit otherwise.

    Returns
    -------
    ndarray of shape (..., I)

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> gate, up = np.array([0, 100], np.float32), np.array([5, 2], np.float32)
    >>> reference.activate(gate, up, "silu", None, None).tolist()
    [0.0, 200.0]
    """
    dtype = gate.dtype
    if limit is None:
        limit = 7.0 if activation == "swigluoai" else math.inf
    bound = dtype.type(limit)
    gate = np.minimum(gate, bound)
    up = np.clip(up, -bound, bound)
    if activation == "swigluoai":
        factor = sigmoid(dtype.type(1.702 if alpha is None else alpha) * gate)
        up = up + dtype.type(1)
    else:
        factor = {"silu": sigmoid, "gelu": normal_cdf, "gelu_tanh": normal_cdf_tanh}[activation](gate)
    return np.asarray(gate * factor.astype(dtype) * up)
