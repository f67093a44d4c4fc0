"""Experts by the vocabulary ids of tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from mxfp4moe import _core
from mxfp4moe._arguments import as_integer_array, check_float32, to_int64, value_error
from mxfp4moe.routing.rule import SCORINGS, Routed, Rule, as_logits, position_of, route


def hash_topk(
    router_logits: ArrayLike,
    input_ids: ArrayLike,
    tid2eid: ArrayLike,
    *,
    routed_scaling_factor: float = 1.0,
    num_threads: int | None = None,
) -> Routed:
    """Take each token's experts from a table and weight them by their logits.

    The hash layers of DeepSeek-V4 route so: the vocabulary id of a token says which experts it goes to. With
    ``s = sqrt(log(1 + exp(router_logits)))`` of these, weights are
    ``s / (sum + 1e-20) * routed_scaling_factor``. A row's result does not depend on the other rows.

    Parameters
    ----------
    router_logits : array_like of shape (..., num_experts)
        float32, bfloat16, float16, or float64 (rounded once to float32). An expert with -inf has the
        weight 0.
    input_ids : integer array_like of shape (...)
        Vocabulary ids, 0 to `vocab_size` - 1.
    tid2eid : integer array_like of shape (vocab_size, top_k)
        Expert ids, 0 to `num_experts` - 1. Only the rows that `input_ids` name are read and checked. int32
        and int64 are used in place, other dtypes are copied.
    routed_scaling_factor : float, default 1.0
        Multiplies the weights.
    num_threads : int, optional
        Of this call; more than there is work for are not used.

    Returns
    -------
    topk_weights : float32 ndarray of shape (..., top_k)
        Within 3 ulp of the exact formula.
    topk_ids : int32 ndarray of shape (..., top_k)
        In the order of the table. An expert that a row repeats counts each time.

    Raises
    ------
    TypeError
        An argument is of another kind or dtype.
    ValueError
        The shapes do not fit; an input id or an entry of the table is out of range; a logit is NaN or +inf.

    References
    ----------
    Hash Layers For Large Sparse Models, arXiv:2106.04426. The scores: the implementation that is
    published with DeepSeek-V4.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> logits = np.array([[0.0, 3.0, 1.0, 3.0]], dtype=np.float32)
    >>> tid2eid = np.array([[0, 1], [3, 1]])
    >>> weights, ids = mx.hash_topk(logits, np.array([1]), tid2eid)
    >>> ids
    array([[3, 1]], dtype=int32)
    >>> weights
    array([[0.5, 0.5]], dtype=float32)
    """
    logits = as_logits(router_logits)
    tokens = as_integer_array("input_ids", input_ids)
    if tokens.shape != logits.shape[:-1]:
        raise value_error("input_ids", f"shape {logits.shape[:-1]}", f"shape {tokens.shape}")
    table = as_integer_array("tid2eid", tid2eid)
    if table.ndim != 2 or 0 in table.shape:
        raise value_error("tid2eid", "shape (vocab_size, top_k)", f"shape {table.shape}")
    factor = check_float32("routed_scaling_factor", routed_scaling_factor)
    ids = _look_up(tokens, table, logits.shape[-1])
    rule = Rule(
        scoring=SCORINGS["sqrt_softplus"], ids_given=True, renormalize=True, routed_scaling_factor=factor
    )
    return route(logits, rule, ids, num_threads=num_threads)


def _look_up(tokens: np.ndarray, table: np.ndarray, num_experts: int) -> np.ndarray:
    ids = np.empty((*tokens.shape, table.shape[1]), np.int32)
    if ids.size == 0:
        return ids
    # It is copied, so that what is used is what was checked, whatever other threads do to the array.
    rows = to_int64(tokens).reshape(-1)
    entries = table if table.dtype == np.int32 or table.dtype == np.int64 else to_int64(table)
    token, slot = _core.hash_ids(rows, entries, num_experts, ids.reshape(-1, table.shape[1]))
    if token >= 0 and slot < 0:
        position = position_of(token, tokens.shape)
        got = f"{tokens[position]} at position {position}"
        raise value_error("input_ids", f"values in [0, {len(table) - 1}]", got)
    if token >= 0:
        position = (int(rows[token]), slot)
        got = f"{table[position]} at position {position}"
        raise value_error("tid2eid", f"values in [0, {num_experts - 1}]", got)
    return ids
