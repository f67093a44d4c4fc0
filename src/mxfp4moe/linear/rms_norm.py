"""RMS norms and their factors, in a fixed order of additions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from mxfp4moe import _core
from mxfp4moe._arguments import as_array, as_rows, cast, check_dtype, check_float32, check_shape, value_error
from mxfp4moe.config import resolve_num_threads
from mxfp4moe.formats import FLOAT_CODES

_FLOAT32 = np.dtype(np.float32)
_FLOAT_DTYPES = tuple(FLOAT_CODES)


def mean_squares(rows: NDArray[Any], num_threads: int | None = None) -> NDArray[np.float64]:
    """The mean of the squares of each row; neither CPU, other rows nor threads change its bits.

    Parameters
    ----------
    rows : ndarray of shape (..., K)
        float32, bfloat16 or float16, the last axis contiguous.
    num_threads : int, optional

    Returns
    -------
    ndarray of shape (...), float64
        Infinite or NaN if, and only if, a number of the row is.
    """
    threads = resolve_num_threads(num_threads)
    means = np.empty(rows.shape[:-1], np.float64)
    if means.size:
        _core.mean_squares(as_rows(rows).view(np.uint8), FLOAT_CODES[rows.dtype], means.reshape(-1), threads)
    return means


def rms_factors(rows: NDArray[Any], epsilon: float, num_threads: int | None = None) -> NDArray[np.float32]:
    """Compute ``1 / sqrt(mean(row**2) + epsilon)`` of each row in float64, rounded once.

    Parameters
    ----------
    rows : ndarray of shape (..., K)
        As for `mean_squares`.
    epsilon : float
        Above 0.
    num_threads : int, optional

    Returns
    -------
    ndarray of shape (..., 1), float32
    """
    means = mean_squares(rows, num_threads)[..., None]
    return (1 / np.sqrt(means + epsilon)).astype(np.float32)


def rms_norm(
    hidden_states: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    eps: float,
    dtype: DTypeLike | None = None,
    num_threads: int | None = None,
) -> NDArray[Any]:
    """RMS norm over the last axis: ``hidden_states / sqrt(mean(hidden_states**2) + eps) * weight``.

    The result is ``(x * factor) * weight`` in float32. The factor is computed in float64, where the squares
    are added in one order, and rounded once. So each row has the same bits on every CPU, whatever the other
    rows and the number of threads.

    Parameters
    ----------
    hidden_states : float32, bfloat16 or float16 array of shape (..., K)
    weight : float array of shape (K,), optional
        float32, bfloat16 or float16.
    eps : float
        At least 0.
    dtype : dtype, optional
        Of the result: float32, bfloat16 or float16, rounded once; float32 if not given.
    num_threads : int, optional
        For this call; see `mxfp4moe.num_threads`.

    Returns
    -------
    ndarray of the shape of hidden_states

    Raises
    ------
    TypeError
        An argument is of another kind or dtype.
    ValueError
        An array is of another shape; `eps` is out of range.

    References
    ----------
    Root Mean Square Layer Normalization, arXiv:1910.07467.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> mx.rms_norm(np.array([[1, 7], [5, 5]], np.float32), np.array([1, 2], np.float32), eps=0)
    array([[0.2, 2.8],
           [1. , 2. ]], dtype=float32)
    """
    hidden = as_array("hidden_states", hidden_states, _FLOAT_DTYPES)
    if hidden.ndim == 0:
        raise value_error("hidden_states", "at least one axis", "shape ()")
    scale = None
    if weight is not None:
        scale = as_array("weight", weight, _FLOAT_DTYPES)
        check_shape("weight", scale, hidden.shape[-1:])
        scale = np.ascontiguousarray(cast(scale, np.float32))
    epsilon = check_float32("eps", eps, minimum=0)
    result = np.empty(hidden.shape, _FLOAT32 if dtype is None else check_dtype("dtype", dtype, _FLOAT_DTYPES))
    threads = resolve_num_threads(num_threads)
    if result.size:
        if hidden.strides[-1] != hidden.itemsize:
            hidden = np.ascontiguousarray(hidden)
        _core.rms_norm(
            as_rows(hidden).view(np.uint8),
            FLOAT_CODES[hidden.dtype],
            scale,
            epsilon,
            as_rows(result).view(np.uint8),
            FLOAT_CODES[result.dtype],
            threads,
        )
    return result
