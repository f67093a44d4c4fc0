"""RMS norms."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike


def rms_norm(
    hidden_states: np.ndarray, weight: np.ndarray | None = None, *, eps: float, dtype: DTypeLike = np.float32
) -> np.ndarray:
    """``(hidden_states * factor) * weight`` in float32, rounded once; the factor is that of `rms_factors`.

    Parameters
    ----------
    hidden_states : ndarray of shape (..., K)
    weight : ndarray of shape (K,), optional
    eps : float
    dtype : dtype, default float32

    Returns
    -------
    ndarray of the shape of hidden_states

    References
    ----------
    Root Mean Square Layer Normalization, arXiv:1910.07467.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> reference.rms_norm(np.array([1.0, 7.0]), np.array([1.0, 2.0]), eps=0).tolist()
    [0.20000000298023224, 2.799999952316284]
    """
    with np.errstate(all="ignore"):
        factors = rms_factors(hidden_states, eps).astype(np.float32)
        result = hidden_states.astype(np.float32) * factors
        if weight is not None:
            result = result * weight.astype(np.float32)
        return np.asarray(result.astype(dtype))


def rms_factors(rows: np.ndarray, epsilon: float) -> np.ndarray:
    """``1 / sqrt(mean(row**2) + epsilon)`` in float64.

    Square i of a row is added in lane i modulo 8, and the lanes in pairs, so that all sums have one order.

    Parameters
    ----------
    rows : ndarray of shape (..., K)
    epsilon : float

    Returns
    -------
    float64 ndarray of shape (..., 1)

    References
    ----------
    Root Mean Square Layer Normalization, arXiv:1910.07467.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> reference.rms_factors(np.full((1, 3), 2.0), 12.0).tolist()
    [[0.25]]
    """
    size = rows.shape[-1]
    steps = -(-size // 8)
    padded = np.zeros((*rows.shape[:-1], steps * 8))
    padded[..., :size] = rows.astype(np.float64) ** 2
    sums = np.add.accumulate(padded.reshape(*rows.shape[:-1], steps, 8), axis=-2)[..., -1, :]
    while sums.shape[-1] > 1:
        sums = sums[..., 0::2] + sums[..., 1::2]
    return np.asarray(1 / np.sqrt(sums / size + epsilon))
