"""What a router's logits say about its tokens."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray


def unroutable_value(hidden_states: NDArray[Any], logits: NDArray[np.float32]) -> str | None:
    """The infinite or NaN value of the first token that cannot be routed; None if that token is finite."""
    unroutable = ~(logits < np.inf).all(axis=-1) | np.isneginf(logits).all(axis=-1)
    if not unroutable.any():
        return None
    token = tuple(int(i[0]) for i in np.nonzero(unroutable)) if unroutable.ndim else ()
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(hidden_states[token].astype(ml_dtypes.bfloat16).astype(np.float32))
    if finite.all():
        return None
    position = (*token, int(finite.argmin()))
    return f"{hidden_states[position]} at position {position}"
