"""The factors of RMS norms, in a fixed order of additions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxfp4moe import _core
from mxfp4moe._arguments import as_rows
from mxfp4moe.config import resolve_num_threads
from mxfp4moe.formats import FLOAT_CODES


def mean_squares(rows: NDArray[Any], num_threads: int | None = None) -> NDArray[np.float64]:
    """The mean of the squares of each row; neither CPU, other rows nor threads change its bits.

    Parameters
    ----------
    rows : ndarray of shape (..., K)
        float32 or bfloat16, the last axis contiguous.
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
