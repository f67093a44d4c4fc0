"""Integer codes of checkpoints, packed in words of 32 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def unpack(words: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """The codes of 4 or 8 bits in words [..., n], lowest bits first: [..., n * 32 / bits]."""
    data = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return data
    return np.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:-1], -1)


def affine(codes: NDArray[np.uint8], scales: NDArray[Any], biases: NDArray[Any]) -> NDArray[np.float32]:
    """Codes [N, K] times the scale of their group, plus its bias, [N, K / group] each; rounded once."""
    grouped = codes.reshape(*scales.shape, -1).astype(np.float64)
    values = grouped * scales.astype(np.float64)[..., None] + biases.astype(np.float64)[..., None]
    return values.reshape(codes.shape).astype(np.float32)
