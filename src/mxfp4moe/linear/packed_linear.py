"""A matrix of float weights by hidden states, on the kernels of the experts: router and projections."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mxfp4moe import _core
from mxfp4moe._arguments import as_rows, cast
from mxfp4moe.config import active_kernels, resolve_num_threads
from mxfp4moe.formats import FLOAT_CODES

_PANEL_ROWS = _core.PANEL_ROWS
_MAX_TERMS = 3  # of 8 bits each, as many as a float32 number has


class PackedLinear:
    """A matrix of floats, packed; calling it gives ``hidden_states @ weight.T + bias`` in float32.

    Weights are exact: each is the sum of up to three bfloat16 numbers, one if it is a bfloat16 number itself.
    (Parts below 2**-126 may count as zero, as everywhere.) The sums of the terms are added in a fixed order,
    so that a token has the same bits in any batch and for any number of threads.

    Parameters
    ----------
    weight : ndarray of shape (N, K)
        float32, bfloat16 or float16. Not to be changed afterwards.

    Attributes
    ----------
    weight : ndarray
    """

    __slots__ = ("_num_rows", "_storage", "weight")

    def __init__(self, weight: NDArray[Any]) -> None:
        num_rows, k = weight.shape
        is_bfloat16 = weight.dtype == ml_dtypes.bfloat16
        terms = [weight.view(np.uint16)] if is_bfloat16 else split_bfloat16(cast(weight, np.float32))
        # Rows are in panels of 16; the panels of the terms of the same weights stand side by side.
        num_panels = -(-num_rows // _PANEL_ROWS)
        rows = np.zeros((len(terms), num_panels * _PANEL_ROWS, k), np.uint16)
        rows[:, :num_rows] = terms
        panels = np.swapaxes(rows.reshape(len(terms), num_panels, _PANEL_ROWS, k), 0, 1)
        packed = np.ascontiguousarray(panels).reshape(-1, k).view(np.uint8)
        self.weight = weight
        self._num_rows = num_rows
        self._storage = _core.LinearStorage(packed, num_rows, len(terms), resolve_num_threads(None))

    def __reduce__(self) -> tuple[type[PackedLinear], tuple[NDArray[Any]]]:
        return PackedLinear, (self.weight,)

    def __call__(
        self,
        hidden_states: NDArray[np.generic],
        bias: NDArray[np.float32] | None = None,
        num_threads: int | None = None,
    ) -> NDArray[np.float32]:
        """Compute float32 of shape (..., N).

        Parameters
        ----------
        hidden_states : ndarray of shape (..., K)
            bfloat16, float16 or float32, rounded once to bfloat16; the last axis contiguous.
        bias : float32 ndarray of shape (N,), optional
        num_threads : int, optional
        """
        threads = resolve_num_threads(num_threads)
        rows = as_rows(hidden_states)
        out = np.empty((len(rows), self._num_rows), np.float32)
        if len(rows):
            code = FLOAT_CODES[rows.dtype]
            _core.linear(self._storage, active_kernels(), rows.view(np.uint8), code, bias, out, threads)
        return out if rows is hidden_states else out.reshape(*hidden_states.shape[:-1], self._num_rows)


def split_bfloat16(weight: NDArray[np.float32]) -> list[NDArray[np.uint16]]:
    """Split float32 numbers into bfloat16 terms of the same sign, the largest first; return their bits.

    Each term has the leading 8 significant bits of what is left, so three hold the 24 of a number. Their sum
    is exact from 2**-110 on; below, bits smaller than 2**-133 are dropped. Infinity and NaN are all in the
    first term.
    """
    terms: list[NDArray[np.uint16]] = []
    rest = weight
    while not terms or (len(terms) < _MAX_TERMS and rest.any()):
        bits = rest.view(np.uint32)
        # Because it is truncated, the first term cannot become infinite, unless a NaN loses all its bits.
        leading = np.where(np.isnan(rest), np.uint32(0x7FC00000), bits & np.uint32(0xFFFF0000))
        terms.append((leading >> 16).astype(np.uint16))
        with np.errstate(invalid="ignore"):
            rest = np.where(np.isfinite(rest), rest - leading.view(np.float32), np.float32(0))
    return terms
