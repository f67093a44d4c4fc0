"""From router logits to expert ids and weights."""

from __future__ import annotations

from typing import Any, SupportsIndex

import ml_dtypes
import numpy as np

from .errors import as_array, check_bool, check_positive_int, value_error

_LOGIT_DTYPES = tuple(np.dtype(t) for t in (np.float32, ml_dtypes.bfloat16, np.float16, np.float64))


def topk_softmax(
    router_logits: Any, top_k: SupportsIndex, *, renormalize: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the experts with the largest logits and weight them by a softmax.

    A row's result does not depend on the other rows.

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
    logits = _check_logits(router_logits)
    k = check_positive_int("top_k", top_k, maximum=logits.shape[-1])
    renormalize = check_bool("renormalize", renormalize)
    topk_ids = _largest(logits, k)
    chosen = np.take_along_axis(logits, topk_ids, axis=-1)
    _check_values(logits, chosen)
    largest = chosen[..., :1]
    exponentials = _exp_difference(chosen, largest)
    total = _row_sum(exponentials if renormalize else _exp_difference(logits, largest))
    return (exponentials / total).astype(np.float32), topk_ids.astype(np.int32)


def _exp_difference(x: np.ndarray, largest: np.ndarray) -> np.ndarray:
    # In float64: it cannot overflow, and what is rounded to float32 in the end is the same on every CPU.
    return np.asarray(np.exp(x.astype(np.float64) - largest))


def _row_sum(x: np.ndarray) -> np.ndarray:
    # cumsum adds from left to right; sum() changes its order with the shape and strides of the whole array.
    return np.cumsum(x, axis=-1)[..., -1:]


def _largest(scores: np.ndarray, k: int) -> np.ndarray:
    """Ids of the k largest float32 scores of each row, in descending order, ties to the lower id."""
    # One integer key per score: its bits, mapped so that a larger score is a smaller integer, above its id.
    # Keys are distinct, so partition and sort need not be stable. Adding 0 makes -0 equal to 0.
    bits = (scores + np.float32(0)).view(np.int32)
    descending = np.where(bits < 0, bits & 0x7FFFFFFF, ~bits).astype(np.int64)
    keys = descending << 32 | np.arange(scores.shape[-1])
    if k < scores.shape[-1]:
        keys = np.partition(keys, k - 1, axis=-1)[..., :k]
    return np.sort(keys, axis=-1) & 0xFFFFFFFF


def _check_logits(router_logits: Any) -> np.ndarray:
    logits = as_array("router_logits", router_logits, _LOGIT_DTYPES)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise value_error("router_logits", "shape (..., num_experts)", f"shape {logits.shape}")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(logits, dtype=np.float32)


def _check_values(logits: np.ndarray, chosen: np.ndarray) -> None:
    bad = np.isnan(logits) | (logits == np.inf)
    if bad.any():
        position = tuple(int(i) for i in np.argwhere(bad)[0])
        raise value_error(
            "router_logits", "finite values or -inf", f"{logits[position]} at position {position}"
        )
    empty = chosen[..., 0] == -np.inf
    if empty.any():
        row = tuple(int(i) for i in np.argwhere(empty)[0])
        raise value_error("router_logits", "a finite value in every row", f"only -inf in row {row}")
