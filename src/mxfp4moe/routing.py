"""The routing functions: they turn router logits into expert ids and weights."""

from __future__ import annotations

from typing import Any, NamedTuple, SupportsIndex

import ml_dtypes
import numpy as np

from mxfp4moe import _core
from mxfp4moe._arguments import (
    as_array,
    as_integer_array,
    check_bool,
    check_float32,
    check_num_experts,
    check_positive_int,
    to_int64,
    value_error,
)
from mxfp4moe.config import resolve_num_threads

__all__ = ["grouped_topk", "hash_topk", "topk_sigmoid", "topk_softmax", "topk_sqrt_softplus"]

_FLOAT_DTYPES = tuple(np.dtype(t) for t in (np.float32, ml_dtypes.bfloat16, np.float16, np.float64))
_FLOAT32 = _FLOAT_DTYPES[0]
_SOFTMAX, _SIGMOID, _SQRT_SOFTPLUS = (
    _core.SCORINGS[name] for name in ("softmax", "sigmoid", "sqrt_softplus")
)


class _Rule(NamedTuple):
    """The keywords of `_core.route`."""

    scoring: int
    renormalize: bool
    ids_given: bool = False
    routed_scaling_factor: float = 1.0
    num_groups: int = 1
    topk_group: int = 1


def topk_softmax(
    router_logits: Any, top_k: SupportsIndex, *, renormalize: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the experts with the largest logits and weight them by a softmax.

    gpt-oss, Mixtral and Qwen3-MoE route so. A row's result does not depend on the other rows.

    Parameters
    ----------
    router_logits : array_like of shape (..., num_experts)
        float32, bfloat16, float16, or float64 (rounded once to float32). -inf excludes an expert: it is
        chosen only when nothing else is left, and then has the weight 0.
    top_k : int
        Experts per token, 1 to `num_experts`.
    renormalize : bool, default True
        Softmax over the chosen logits (gpt-oss, Mixtral). False: over all of them, so that the weights of a
        row sum to less than 1 (Qwen3-MoE with ``norm_topk_prob=False``).

    Returns
    -------
    topk_weights : float32 ndarray of shape (..., top_k)
        Within 0.5001 ulp of the exact softmax.
    topk_ids : int32 ndarray of shape (..., top_k)
        By descending logit; of equal logits the lower id comes first.

    Raises
    ------
    TypeError
        `router_logits` is of another dtype, `top_k` is no integer, `renormalize` is no bool.
    ValueError
        `top_k` is out of range; a logit is NaN or +inf; every logit of a row is -inf.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> logits = np.array([[0.0, 2.0, 1.0, 2.0]], dtype=np.float32)
    >>> weights, ids = mx.topk_softmax(logits, 2)
    >>> ids
    array([[1, 3]], dtype=int32)
    >>> weights
    array([[0.5, 0.5]], dtype=float32)
    """
    logits = _check_logits("router_logits", router_logits)
    k = check_positive_int("top_k", top_k, maximum=logits.shape[-1])
    rule = _Rule(_SOFTMAX, check_bool("renormalize", renormalize))
    return _route("router_logits", logits, rule, None, _empty_ids(logits, k))


def topk_sigmoid(
    logits: Any,
    top_k: SupportsIndex,
    *,
    correction_bias: Any = None,
    renormalize: bool = True,
    routed_scaling_factor: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the experts with the largest biased sigmoids and weight them by the sigmoids.

    MiniMax-M2 and -M3, and DeepSeek-V3 without groups, route so: with ``s = sigmoid(logits)``, the experts
    with the largest ``s + correction_bias`` are chosen, and their weights are ``s`` (without the bias),
    divided by their sum, times `routed_scaling_factor`. A row's result does not depend on the other rows.

    Parameters
    ----------
    logits : array_like of shape (..., num_experts)
        float32, bfloat16, float16, or float64 (rounded once to float32). -inf excludes an expert whatever its
        bias: it is chosen only when nothing else is left, and then has the weight 0.
    top_k : int
        Experts per token, 1 to `num_experts`.
    correction_bias : array_like of shape (num_experts,), optional
        Of the same dtypes as `logits`. -inf excludes an expert: it is chosen only when nothing else is left,
        and then weighted as any other.
    renormalize : bool, default True
        Divide the weights of a row by (their sum + 1e-20).
    routed_scaling_factor : float, default 1.0
        Multiplies the weights.

    Returns
    -------
    topk_weights : float32 ndarray of shape (..., top_k)
        Within 3 ulp of the exact formula.
    topk_ids : int32 ndarray of shape (..., top_k)
        By descending float32 selection score ``s + correction_bias``; of equal scores the lower id comes
        first. Sigmoids of large logits are equal: from 17.4 on they are 1.

    Raises
    ------
    TypeError
        An argument is of another kind or dtype.
    ValueError
        A number or shape is out of range; a logit or bias is NaN or +inf.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> logits = np.array([[0.0, 2.0, -1.0, 30.0, 20.0]], dtype=np.float32)
    >>> weights, ids = mx.topk_sigmoid(logits, 2, correction_bias=np.array([1.0, 0, 0, 0, 0], np.float32))
    >>> ids
    array([[0, 3]], dtype=int32)
    >>> weights
    array([[0.33333334, 0.6666667 ]], dtype=float32)
    """
    return _topk_scores(_SIGMOID, logits, top_k, correction_bias, renormalize, routed_scaling_factor)


def topk_sqrt_softplus(
    logits: Any,
    top_k: SupportsIndex,
    *,
    correction_bias: Any = None,
    renormalize: bool = True,
    routed_scaling_factor: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose and weight experts by the square root of the softplus of their logits.

    DeepSeek-V4 routes so, with a `routed_scaling_factor` of 1.5. All is as in `topk_sigmoid`, but for
    ``s = sqrt(log(1 + exp(logits)))``.

    Parameters
    ----------
    logits : array_like of shape (..., num_experts)
        float32, bfloat16, float16, or float64 (rounded once to float32). -inf excludes an expert whatever its
        bias: it is chosen only when nothing else is left, and then has the weight 0.
    top_k : int
        Experts per token, 1 to `num_experts`.
    correction_bias : array_like of shape (num_experts,), optional
        Of the same dtypes as `logits`. -inf excludes an expert: it is chosen only when nothing else is left,
        and then weighted as any other.
    renormalize : bool, default True
        Divide the weights of a row by (their sum + 1e-20).
    routed_scaling_factor : float, default 1.0
        Multiplies the weights.

    Returns
    -------
    topk_weights : float32 ndarray of shape (..., top_k)
        Within 3 ulp of the exact formula.
    topk_ids : int32 ndarray of shape (..., top_k)
        By descending float32 selection score ``s + correction_bias``; of equal scores the lower id comes
        first.

    Raises
    ------
    TypeError
        An argument is of another kind or dtype.
    ValueError
        A number or shape is out of range; a logit or bias is NaN or +inf.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> logits = np.array([[0.0, 3.0, 1.0, 3.0]], dtype=np.float32)
    >>> weights, ids = mx.topk_sqrt_softplus(logits, 2, routed_scaling_factor=1.5)
    >>> ids
    array([[1, 3]], dtype=int32)
    >>> weights
    array([[0.75, 0.75]], dtype=float32)
    """
    return _topk_scores(_SQRT_SOFTPLUS, logits, top_k, correction_bias, renormalize, routed_scaling_factor)


def grouped_topk(
    logits: Any,
    top_k: SupportsIndex,
    *,
    num_groups: SupportsIndex,
    topk_group: SupportsIndex,
    correction_bias: Any = None,
    renormalize: bool = True,
    routed_scaling_factor: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the best groups of experts, then experts among them as `topk_sigmoid` does.

    DeepSeek-V3 and -R1 route so. A group is ``num_experts / num_groups`` consecutive experts, and its score
    the float32 sum of its two largest selection scores ``sigmoid(logits) + correction_bias``; excluded
    experts do not count, and where only one is left the score is that one's. Experts of other groups than the
    `topk_group` best are never chosen.

    Parameters
    ----------
    logits : array_like of shape (..., num_experts)
        float32, bfloat16, float16, or float64 (rounded once to float32). -inf excludes an expert whatever its
        bias: it is chosen only when nothing else is left in the best groups, and then has the weight 0.
    top_k : int
        Experts per token, 1 to ``topk_group * num_experts / num_groups``.
    num_groups : int
        A divisor of `num_experts`.
    topk_group : int
        1 to `num_groups`.
    correction_bias : array_like of shape (num_experts,), optional
        Of the same dtypes as `logits`. -inf excludes an expert: it is chosen only when nothing else is left
        in the best groups, and then weighted as any other.
    renormalize : bool, default True
        Divide the weights of a row by (their sum + 1e-20).
    routed_scaling_factor : float, default 1.0
        Multiplies the weights.

    Returns
    -------
    topk_weights : float32 ndarray of shape (..., top_k)
        Within 3 ulp of the exact formula.
    topk_ids : int32 ndarray of shape (..., top_k)
        By descending float32 selection score; of equal scores the lower id comes first. Of groups of equal
        score the lower one is preferred.

    Raises
    ------
    TypeError
        An argument is of another kind or dtype.
    ValueError
        A number or shape is out of range; a logit or bias is NaN or +inf.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> logits = np.array([[9.0, -9.0, 1.0, 1.0, 2.0, -2.0]], dtype=np.float32)
    >>> weights, ids = mx.grouped_topk(logits, 2, num_groups=3, topk_group=1, renormalize=False)
    >>> ids
    array([[2, 3]], dtype=int32)
    >>> weights
    array([[0.7310586, 0.7310586]], dtype=float32)
    """
    logits = _check_logits("logits", logits)
    num_experts = logits.shape[-1]
    groups = check_positive_int("num_groups", num_groups, maximum=num_experts)
    if num_experts % groups:
        raise value_error("num_groups", f"a divisor of the number of experts, {num_experts}", str(groups))
    kept = check_positive_int("topk_group", topk_group, maximum=groups)
    k = check_positive_int("top_k", top_k, maximum=kept * (num_experts // groups))
    bias = _check_bias(correction_bias, num_experts)
    renormalize = check_bool("renormalize", renormalize)
    factor = check_float32("routed_scaling_factor", routed_scaling_factor)
    rule = _Rule(_SIGMOID, renormalize, False, factor, groups, kept)
    return _route("logits", logits, rule, bias, _empty_ids(logits, k))


def hash_topk(
    logits: Any, input_ids: Any, tid2eid: Any, *, routed_scaling_factor: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Take each token's experts from a table and weight them by their logits.

    The hash layers of DeepSeek-V4 route so: the vocabulary id of a token says which experts it goes to. With
    ``s = sqrt(log(1 + exp(logits)))`` of these, weights are ``s / (sum + 1e-20) * routed_scaling_factor``. A
    row's result does not depend on the other rows.

    Parameters
    ----------
    logits : array_like of shape (..., num_experts)
        float32, bfloat16, float16, or float64 (rounded once to float32). An expert with -inf has the
        weight 0.
    input_ids : integer array_like of shape (...)
        Vocabulary ids, 0 to `vocab_size` - 1.
    tid2eid : integer array_like of shape (vocab_size, top_k)
        Expert ids, 0 to `num_experts` - 1. Only the rows that `input_ids` name are read and checked. int32
        and int64 are used in place, other dtypes are copied.
    routed_scaling_factor : float, default 1.0
        Multiplies the weights.

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
    logits = _check_logits("logits", logits)
    tokens = as_integer_array("input_ids", input_ids)
    if tokens.shape != logits.shape[:-1]:
        raise value_error("input_ids", f"shape {logits.shape[:-1]}", f"shape {tokens.shape}")
    table = as_integer_array("tid2eid", tid2eid)
    if table.ndim != 2 or 0 in table.shape:
        raise value_error("tid2eid", "shape (vocab_size, top_k)", f"shape {table.shape}")
    factor = check_float32("routed_scaling_factor", routed_scaling_factor)
    ids = _hash_ids(tokens, table, logits.shape[-1])
    return _route("logits", logits, _Rule(_SQRT_SOFTPLUS, True, True, factor), None, ids)


def _topk_scores(
    scoring: int,
    logits: Any,
    top_k: SupportsIndex,
    correction_bias: Any,
    renormalize: bool,
    routed_scaling_factor: float,
) -> tuple[np.ndarray, np.ndarray]:
    logits = _check_logits("logits", logits)
    k = check_positive_int("top_k", top_k, maximum=logits.shape[-1])
    bias = _check_bias(correction_bias, logits.shape[-1])
    renormalize = check_bool("renormalize", renormalize)
    factor = check_float32("routed_scaling_factor", routed_scaling_factor)
    rule = _Rule(scoring, renormalize, False, factor)
    return _route("logits", logits, rule, bias, _empty_ids(logits, k))


def _check_logits(name: str, value: Any) -> np.ndarray:
    """`value` as contiguous float32; the kernel looks for NaN and +inf."""
    logits = as_array(name, value, _FLOAT_DTYPES)
    if logits.ndim == 0 or not logits.shape[-1]:
        raise value_error(name, "shape (..., num_experts)", f"shape {logits.shape}")
    check_num_experts(name, logits.shape[-1])
    return _as_float32(logits)


def _check_bias(value: Any, num_experts: int) -> np.ndarray | None:
    """`value` as contiguous float32, or None; the kernel looks for NaN and +inf."""
    if value is None:
        return None
    bias = as_array("correction_bias", value, _FLOAT_DTYPES)
    if bias.shape != (num_experts,):
        raise value_error("correction_bias", f"shape ({num_experts},)", f"shape {bias.shape}")
    return _as_float32(bias)


def _as_float32(array: np.ndarray) -> np.ndarray:
    if array.dtype == _FLOAT32:
        return np.ascontiguousarray(array)
    # What is too large becomes infinite, and NaN stays NaN; both are found and refused afterwards.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return array.astype(np.float32, order="C")


def _empty_ids(logits: np.ndarray, top_k: int) -> np.ndarray:
    return np.empty((*logits.shape[:-1], top_k), np.int32)


def _hash_ids(tokens: np.ndarray, table: np.ndarray, num_experts: int) -> np.ndarray:
    ids = np.empty((*tokens.shape, table.shape[1]), np.int32)
    if ids.size == 0:
        return ids
    # It is copied, so that what is used is what was checked, whatever other threads do to the array.
    rows = to_int64(tokens).reshape(-1)
    entries = table if table.dtype == np.int32 or table.dtype == np.int64 else to_int64(table)
    token, slot = _core.hash_ids(rows, entries, num_experts, ids.reshape(-1, table.shape[1]))
    if token >= 0 and slot < 0:
        position = _position(token, tokens.shape)
        got = f"{tokens[position]} at position {position}"
        raise value_error("input_ids", f"values in [0, {len(table) - 1}]", got)
    if token >= 0:
        position = (int(rows[token]), slot)
        got = f"{table[position]} at position {position}"
        raise value_error("tid2eid", f"values in [0, {num_experts - 1}]", got)
    return ids


def _route(
    name: str, logits: np.ndarray, rule: _Rule, bias: np.ndarray | None, topk_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    top_k = topk_ids.shape[-1]
    topk_weights = np.empty(topk_ids.shape, np.float32)
    bad_row = _core.route(
        logits.reshape(-1, logits.shape[-1]),
        bias,
        topk_weights.reshape(-1, top_k),
        topk_ids.reshape(-1, top_k),
        resolve_num_threads(None),
        **rule._asdict(),
    )
    if bad_row is None:
        raise _not_below_infinity("correction_bias", bias)
    if bad_row >= 0:
        row = _position(bad_row, logits.shape[:-1])
        if np.isneginf(logits[row]).all():
            raise value_error(name, "a finite value in every row", f"only -inf in row {row}")
        raise _not_below_infinity(name, logits, row)
    return topk_weights, topk_ids


def _not_below_infinity(name: str, array: Any, row: tuple[int, ...] = ()) -> ValueError:
    position = (*row, int((~(array[row] < np.inf)).argmax()))
    return value_error(name, "finite values or -inf", f"{array[position]} at position {position}")


def _position(flat_index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(flat_index, shape)) if shape else ()


ROUTING_FUNCTIONS = {
    function.__name__: function
    for function in (topk_softmax, topk_sigmoid, topk_sqrt_softplus, grouped_topk, hash_topk)
}
"""The functions that a layer can route by, by name."""
