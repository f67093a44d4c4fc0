"""Routing."""

from __future__ import annotations

import numpy as np

from ._precision import CONTRACT, matmul, round_bfloat16


def router_logits(
    hidden_states: np.ndarray, router_weight: np.ndarray, router_bias: np.ndarray | None = None
) -> np.ndarray:
    """router_weight . hidden + router_bias in float32, on hidden states rounded once to bfloat16.

    Parameters
    ----------
    hidden_states : ndarray of shape (..., K)
        bfloat16, float16 or float32.
    router_weight : ndarray of shape (E, K)
    router_bias : ndarray of shape (E,), optional

    Returns
    -------
    float32 ndarray of shape (..., E)
    """
    logits = matmul(round_bfloat16(hidden_states), router_weight, CONTRACT)
    return logits if router_bias is None else logits + router_bias.astype(np.float32)


def topk_softmax(
    router_logits: np.ndarray, top_k: int, *, renormalize: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """The `top_k` largest logits of each row, in descending order, ties to the lower id, and their softmax.

    Parameters
    ----------
    router_logits : ndarray of shape (..., E)
    top_k : int
    renormalize : bool
        Softmax over the chosen logits (True) or over all E (False).

    Returns
    -------
    topk_weights : float32 ndarray of shape (..., top_k)
    topk_ids : int32 ndarray of shape (..., top_k)
    """
    logits = router_logits.astype(np.float32).astype(np.float64)
    ids = np.argsort(-logits, axis=-1, kind="stable")[..., :top_k]
    chosen = np.take_along_axis(logits, ids, axis=-1)
    largest = chosen[..., :1]
    total = np.exp((chosen if renormalize else logits) - largest).sum(axis=-1, keepdims=True)
    return (np.exp(chosen - largest) / total).astype(np.float32), ids.astype(np.int32)
