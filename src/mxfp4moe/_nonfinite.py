"""Tokens that cannot be routed, because their hidden states or their router logits are not finite."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import cast, value_error
from mxfp4moe.linear.rms_norm import mean_squares


def nonfinite_tokens(hidden_states: NDArray[Any], logits: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which tokens have hidden states that are not finite in bfloat16, or logits that no rule can route."""
    # NaN or infinity times a router's weights leaves no logit finite: few hidden states are looked at.
    tokens = _unroutable(logits)
    rest = ~np.isfinite(logits).all(axis=-1) & ~tokens
    if rest.any():
        tokens[rest] = ~_finite(hidden_states[rest]).all(axis=-1)
    return tokens


def nonfinite_value(hidden_states: NDArray[Any], logits: NDArray[np.float32]) -> str | None:
    """The first hidden state that is not finite in bfloat16, and its position; None if all are finite."""
    # As no logit of such a token is finite, those of one expert show at which tokens to look.
    finite_logits = np.isfinite(logits[..., 0])
    if finite_logits.all():
        return None
    tokens = np.argwhere(~finite_logits)
    values = hidden_states[tuple(tokens.T)].reshape(len(tokens), -1)
    found = np.argwhere(~_finite(values))
    if not len(found):
        return None
    row, column = found[0].tolist()
    return f"{values[row, column]} at position {(*tokens[row].tolist(), column)}"


def nonfinite_rows(hidden_states: NDArray[Any]) -> NDArray[np.bool_]:
    """Which tokens have hidden states that are not finite in bfloat16."""
    return np.asarray(~np.isfinite(mean_squares(cast(hidden_states, ml_dtypes.bfloat16))))


def check_finite(name: str, hidden_states: NDArray[Any]) -> None:
    """Raise if a hidden state of argument `name` is not finite in bfloat16."""
    tokens = np.argwhere(nonfinite_rows(hidden_states))
    if len(tokens):
        position = (*tokens[0].tolist(), int(_finite(hidden_states[tuple(tokens[0])]).argmin()))
        got = f"{hidden_states[position]} at position {position}"
        raise value_error(name, "values that are finite in bfloat16", got)


def _unroutable(logits: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Rows with a logit that is NaN or infinite, or without one above -inf."""
    return np.asarray(~(logits < np.inf).all(axis=-1) | np.isneginf(logits).all(axis=-1))


def _finite(hidden_states: NDArray[Any]) -> NDArray[np.bool_]:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.isfinite(hidden_states.astype(ml_dtypes.bfloat16).astype(np.float32))
