"""Routing.

Logits and correction bias are rounded once to float32. A softmax is evaluated in float64 and rounded once.
The other functions round a score (sigmoid, or the square root of softplus) once from float64 to float32 and
go on in float32: selection score = score + bias; group score; sum of the chosen scores (rounded once);
sum + 1e-20; quotient; product with the scaling factor. Every choice is by descending float32 number, ties to
the lower id.
"""

from __future__ import annotations

import numpy as np

from mxfp4moe._arguments import check_num_experts
from mxfp4moe.reference._precision import CONTRACT, matmul, round_bfloat16
from mxfp4moe.reference.activation import sigmoid


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

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> reference.router_logits(np.ones((1, 2), np.float32), np.array([[1, 2], [3, 4]])).tolist()
    [[3.0, 7.0]]
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
        The softmax is over the chosen logits (True) or over all E (False).

    Returns
    -------
    topk_weights : float32 ndarray of shape (..., top_k)
    topk_ids : int32 ndarray of shape (..., top_k)

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> topk_weights, topk_ids = reference.topk_softmax(np.array([[1, 3, 3, 0]], np.float32), 2)
    >>> topk_weights.tolist(), topk_ids.tolist()
    ([[0.5, 0.5]], [[1, 2]])
    """
    check_num_experts("router_logits", router_logits.shape[-1])
    logits = router_logits.astype(np.float32).astype(np.float64)
    ids = np.argsort(-logits, axis=-1, kind="stable")[..., :top_k]
    chosen = np.take_along_axis(logits, ids, axis=-1)
    largest = chosen[..., :1]
    total = np.exp((chosen if renormalize else logits) - largest).sum(axis=-1, keepdims=True)
    return (np.exp(chosen - largest) / total).astype(np.float32), ids.astype(np.int32)


def sqrt_softplus(x: np.ndarray) -> np.ndarray:
    """sqrt(log(1 + exp(x))) in float64.

    Parameters
    ----------
    x : float ndarray

    Returns
    -------
    float64 ndarray of the same shape

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> reference.sqrt_softplus(np.array([100.0])).tolist()
    [10.0]
    """
    x = x.astype(np.float64)
    return np.asarray(np.sqrt(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))))


def topk_sigmoid(
    router_logits: np.ndarray,
    top_k: int,
    *,
    correction_bias: np.ndarray | None = None,
    renormalize: bool = True,
    routed_scaling_factor: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """The `top_k` largest of sigmoid(logits) + bias in each row, and the sigmoids as weights.

    Parameters
    ----------
    router_logits : ndarray of shape (..., E)
        An expert of logit -inf has selection score -inf, whatever its bias.
    top_k : int
    correction_bias : ndarray of shape (E,), optional
    renormalize : bool
        Divide the weights of a row by (their sum + 1e-20).
    routed_scaling_factor : float
        Multiplies the weights.

    Returns
    -------
    topk_weights : float32 ndarray of shape (..., top_k)
    topk_ids : int32 ndarray of shape (..., top_k)

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> topk_weights, topk_ids = reference.topk_sigmoid(np.array([[-1, 0, 0]], np.float32), 2)
    >>> topk_weights.tolist(), topk_ids.tolist()
    ([[0.5, 0.5]], [[1, 2]])
    """
    check_num_experts("router_logits", router_logits.shape[-1])
    scores = sigmoid(router_logits.astype(np.float32)).astype(np.float32)
    ids = _descending(_selection_scores(router_logits, scores, correction_bias))[..., :top_k]
    return _weights(scores, ids, renormalize, routed_scaling_factor), ids


def topk_sqrt_softplus(
    router_logits: np.ndarray,
    top_k: int,
    *,
    correction_bias: np.ndarray | None = None,
    renormalize: bool = True,
    routed_scaling_factor: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose and weight as `topk_sigmoid` does, with sqrt(softplus(logits)) as scores.

    Parameters
    ----------
    router_logits : ndarray of shape (..., E)
        An expert of logit -inf has selection score -inf, whatever its bias.
    top_k : int
    correction_bias : ndarray of shape (E,), optional
    renormalize : bool
        Divide the weights of a row by (their sum + 1e-20).
    routed_scaling_factor : float
        Multiplies the weights.

    Returns
    -------
    topk_weights : float32 ndarray of shape (..., top_k)
    topk_ids : int32 ndarray of shape (..., top_k)

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> _, topk_ids = reference.topk_sqrt_softplus(np.array([[-1, 0, 2]], np.float32), 2)
    >>> topk_ids.tolist()
    [[2, 1]]
    """
    check_num_experts("router_logits", router_logits.shape[-1])
    scores = sqrt_softplus(router_logits.astype(np.float32)).astype(np.float32)
    ids = _descending(_selection_scores(router_logits, scores, correction_bias))[..., :top_k]
    return _weights(scores, ids, renormalize, routed_scaling_factor), ids


def grouped_topk(
    router_logits: np.ndarray,
    top_k: int,
    *,
    num_groups: int,
    topk_group: int,
    correction_bias: np.ndarray | None = None,
    renormalize: bool = True,
    routed_scaling_factor: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose and weight as `topk_sigmoid` does, among the experts of the best groups.

    A group is E / num_groups consecutive experts. Its score is the sum of its two largest selection scores;
    one that is -inf does not count, so that a group with a single expert left has that one's.

    Parameters
    ----------
    router_logits : ndarray of shape (..., E)
        An expert of logit -inf has selection score -inf, whatever its bias.
    top_k : int
    num_groups : int
        A divisor of E.
    topk_group : int
        How many of the groups are kept.
    correction_bias : ndarray of shape (E,), optional
    renormalize : bool
        Divide the weights of a row by (their sum + 1e-20).
    routed_scaling_factor : float
        Multiplies the weights.

    Returns
    -------
    topk_weights : float32 ndarray of shape (..., top_k)
    topk_ids : int32 ndarray of shape (..., top_k)

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> router_logits = np.array([[5, -9, 2, 2]], np.float32)
    >>> _, topk_ids = reference.grouped_topk(router_logits, 2, num_groups=2, topk_group=1)
    >>> topk_ids.tolist()
    [[2, 3]]
    """
    check_num_experts("router_logits", router_logits.shape[-1])
    scores = sigmoid(router_logits.astype(np.float32)).astype(np.float32)
    selection = _selection_scores(router_logits, scores, correction_bias)
    best = np.sort(selection.reshape(*selection.shape[:-1], num_groups, -1), axis=-1)[..., -2:]
    with np.errstate(over="ignore"):
        pair = best.sum(axis=-1, dtype=np.float32)
    group_scores = np.where(best[..., 0] == -np.inf, best[..., -1], pair)
    kept_groups = _descending(group_scores)[..., :topk_group]
    group_of_expert = np.arange(selection.shape[-1]) // (selection.shape[-1] // num_groups)
    kept = (group_of_expert[:, None] == kept_groups[..., None, :]).any(axis=-1)
    ids = np.lexsort((-selection, ~kept), axis=-1)[..., :top_k].astype(np.int32)
    return _weights(scores, ids, renormalize, routed_scaling_factor), ids


def hash_topk(
    router_logits: np.ndarray,
    input_ids: np.ndarray,
    tid2eid: np.ndarray,
    *,
    routed_scaling_factor: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """The experts that a table assigns to each vocabulary id, weighted as by `topk_sqrt_softplus`.

    Parameters
    ----------
    router_logits : ndarray of shape (..., E)
    input_ids : integer ndarray of shape (...)
    tid2eid : integer ndarray of shape (vocab_size, top_k)
    routed_scaling_factor : float

    Returns
    -------
    topk_weights : float32 ndarray of shape (..., top_k)
    topk_ids : int32 ndarray of shape (..., top_k)
        In the order of the table.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> tid2eid = np.array([[3, 0], [1, 2]])
    >>> topk_weights, topk_ids = reference.hash_topk(np.zeros((1, 4), np.float32), np.array([1]), tid2eid)
    >>> topk_weights.tolist(), topk_ids.tolist()
    ([[0.5, 0.5]], [[1, 2]])
    """
    check_num_experts("router_logits", router_logits.shape[-1])
    scores = sqrt_softplus(router_logits.astype(np.float32)).astype(np.float32)
    ids = tid2eid[input_ids].astype(np.int32)
    return _weights(scores, ids, True, routed_scaling_factor), ids


def _selection_scores(logits: np.ndarray, scores: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    biased = scores if bias is None else scores + bias.astype(np.float32)
    return np.where(logits.astype(np.float32) == -np.inf, np.float32(-np.inf), biased)


def _descending(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores, axis=-1, kind="stable").astype(np.int32)


def _weights(scores: np.ndarray, ids: np.ndarray, renormalize: bool, factor: float) -> np.ndarray:
    weights = np.take_along_axis(scores, ids, axis=-1)
    if renormalize:
        total = weights.sum(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
        weights = weights / (total + np.float32(1e-20))
    with np.errstate(over="ignore"):
        return np.asarray(weights * np.float32(factor))
