"""Router logits: a matrix product whose rows do not depend on each other."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

_ALIGNMENT = 16  # floats; 64 bytes
_CHUNK = 8192  # floats; above this, a BLAS may split one dot product over threads
_TOKENS = 1024  # routed at a time, which bounds the float32 copy of the hidden states


def aligned_rows(matrix: NDArray[Any]) -> NDArray[np.float32]:
    """A float32 copy of `matrix`, its rows zero-padded so that each starts at a multiple of 64 bytes."""
    rows, columns = matrix.shape
    padded = -(-columns // _ALIGNMENT) * _ALIGNMENT
    memory = np.zeros(rows * padded + _ALIGNMENT, np.float32)
    offset = -(memory.ctypes.data // 4) % _ALIGNMENT
    result = memory[offset : offset + rows * padded].reshape(rows, padded)
    result[:, :columns] = matrix
    return result


def compute_logits(
    tokens: NDArray[Any], weight_rows: NDArray[np.float32], bias: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """The logits of each token, rounded to bfloat16, and each of the aligned `weight_rows`."""
    logits = np.zeros((len(tokens), len(weight_rows)), np.float32)
    for first in range(0, len(tokens), _TOKENS):
        with np.errstate(over="ignore"):
            rows = aligned_rows(tokens[first : first + _TOKENS].astype(ml_dtypes.bfloat16))
        # One dot product for each (token, expert), always of equally long and equally aligned rows. A matrix
        # product would change its order of summation with the number of rows; this gives a token the same
        # bits in any batch.
        for begin in range(0, rows.shape[1], _CHUNK):
            part = np.s_[:, begin : begin + _CHUNK]
            with np.errstate(over="ignore", invalid="ignore"):
                logits[first : first + _TOKENS] += np.vecdot(rows[part][:, None], weight_rows[part])
    return logits if bias is None else logits + bias
