"""Tokens that cannot be routed, because their hidden states or their router logits are not finite."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray


def nonfinite_tokens(hidden_states: NDArray[Any], logits: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which tokens have hidden states that are not finite in bfloat16, or logits that no rule can route."""
    # NaN or infinity times a router's weights leaves no logit finite: few hidden states are looked at.
    tokens = _unroutable(logits)
    rest = ~np.isfinite(logits).all(axis=-1) & ~tokens
    if rest.any():
        tokens[rest] = ~_finite(hidden_states[rest]).all(axis=-1)
    return tokens


def unroutable_value(hidden_states: NDArray[Any], logits: NDArray[np.float32]) -> str | None:
    """The infinite or NaN value of the first token that cannot be routed; None if that token is finite."""
    unroutable = _unroutable(logits)
    if not unroutable.any():
        return None
    token = tuple(int(i[0]) for i in np.nonzero(unroutable)) if unroutable.ndim else ()
    finite = _finite(hidden_states[token])
    if finite.all():
        return None
    position = (*token, int(finite.argmin()))
    return f"{hidden_states[position]} at position {position}"


def _unroutable(logits: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Rows with a logit that is NaN or infinite, or without one above -inf."""
    return np.asarray(~(logits < np.inf).all(axis=-1) | np.isneginf(logits).all(axis=-1))


def _finite(hidden_states: NDArray[Any]) -> NDArray[np.bool_]:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.isfinite(hidden_states.astype(ml_dtypes.bfloat16).astype(np.float32))
