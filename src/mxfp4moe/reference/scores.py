"""What makes scores of router logits, evaluated in float64."""

from __future__ import annotations

import numpy as np

from mxfp4moe.reference.activation import sigmoid


def sqrt_softplus(x: np.ndarray) -> np.ndarray:
    """sqrt(log(1 + exp(x))) in float64.

    Parameters
    ----------
    x : float ndarray

    Returns
    -------
    float64 ndarray of the same shape

    References
    ----------
    The implementation that is published with DeepSeek-V4.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> reference.sqrt_softplus(np.array([100.0])).tolist()
    [10.0]
    """
    x = x.astype(np.float64)
    return np.asarray(np.sqrt(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))))


def softmax(x: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, exp(x) / sum(exp(x)), in float64.

    Parameters
    ----------
    x : ndarray of shape (..., E)

    Returns
    -------
    float64 ndarray of shape (..., E)

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> reference.softmax(np.zeros((1, 4), np.float32)).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """
    x = x.astype(np.float64)
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


SCORINGS = {"softmax": softmax, "sigmoid": sigmoid, "sqrt_softplus": sqrt_softplus}
