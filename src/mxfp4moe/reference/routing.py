"""Routing.

Logits and correction bias are rounded once to float32. `topk_softmax` and `sparsemixer` evaluate a softmax in
float64 and round it once. `select_experts` is the rule of which the other functions are cases: a score
(softmax, sigmoid, or the square root of softplus) is rounded once from float64 to float32, and all that
follows is float32: selection score = score + bias; group score; norm of the chosen scores (rounded once);
norm + epsilon; quotient; product with the scaling factor; product with the expert's own factor. Every choice
is by descending float32 number, ties to the lower id.
"""

from __future__ import annotations

import numpy as np

from mxfp4moe._arguments import check_num_experts
from mxfp4moe.reference._precision import CONTRACT, matmul, round_bfloat16
from mxfp4moe.reference.scores import SCORINGS, sqrt_softplus


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

    References
    ----------
    Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer, arXiv:1701.06538.

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

    References
    ----------
    Mixtral of Experts, arXiv:2401.04088, section 2.1.

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


def select_experts(
    router_logits: np.ndarray,
    top_k: int,
    *,
    scoring: str = "softmax",
    logit_softcap: float | None = None,
    num_shared_experts: int = 0,
    select_by: str = "score",
    correction_bias: np.ndarray | None = None,
    num_groups: int = 1,
    topk_group: int = 1,
    group_score: str = "top2_sum",
    masked_groups: str = "exclude",
    renormalize: bool = True,
    norm_order: float = 1.0,
    norm_epsilon: float = 1e-20,
    norm_floor: float = 0.0,
    routed_scaling_factor: float = 1.0,
    expert_scale: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the `top_k` best experts of each row, and weight them.

    Parameters
    ----------
    router_logits : ndarray of shape (..., E + num_shared_experts)
        An expert of logit -inf has selection score -inf, whatever its bias.
    top_k : int
    scoring : {"softmax", "sigmoid", "sqrt_softplus"}
        What gives scores; the softmax is over all logits.
    logit_softcap : float, optional
        Logits become ``cap * tanh(logit / cap)`` first, rounded once.
    num_shared_experts : int
        The last so many logits are of experts that are not chosen but taken by every row, in the last slots.
    select_by : {"score", "logit"}
        To which the bias is added.
    correction_bias : ndarray of shape (E,), optional
    num_groups, topk_group : int
        Experts are chosen among those of the `topk_group` best groups of E / num_groups consecutive experts.
    group_score : {"top2_sum", "max"}
        The sum of a group's two largest selection scores (one that is -inf does not count, so that a group
        with a single expert left has that one's), or its largest.
    masked_groups : {"exclude", "zero"}
        Experts of other groups are never chosen, or have the selection score 0 unless theirs is -inf.
    renormalize : bool
        Divide a row's weights by ``max(norm + norm_epsilon, norm_floor)``, or by 1 where that is 0.
    norm_order : float
        p of the norm ``(sum of w**p)**(1 / p)``.
    norm_epsilon, norm_floor : float
    routed_scaling_factor : float
        Multiplies the weights.
    expert_scale : ndarray of shape (E + num_shared_experts,), optional
        The factor of each expert on its weight.

    Returns
    -------
    topk_weights : float32 ndarray of shape (..., top_k + num_shared_experts)
    topk_ids : int32 ndarray of shape (..., top_k + num_shared_experts)

    References
    ----------
    The implementations that are published with the models; the page "Routing" of the documentation names
    the options of each.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> logits, bias = np.zeros((1, 4), np.float32), np.array([0, 0, 0, 1], np.float32)
    >>> topk_weights, topk_ids = reference.select_experts(logits, 2, correction_bias=bias)
    >>> topk_weights.tolist(), topk_ids.tolist()
    ([[0.5, 0.5]], [[3, 0]])
    """
    check_num_experts("router_logits", router_logits.shape[-1])
    logits = _softcapped(router_logits.astype(np.float32), logit_softcap)
    scores = SCORINGS[scoring](logits).astype(np.float32)
    num_experts = logits.shape[-1] - num_shared_experts
    values = (logits if select_by == "logit" else scores)[..., :num_experts]
    selection = _selection_scores(logits[..., :num_experts], values, correction_bias)
    kept = _in_best_groups(selection, num_groups, topk_group, group_score)
    if masked_groups == "zero":
        selection = np.where(kept | (selection == -np.inf), selection, np.float32(0))
        ids = _descending(selection)[..., :top_k]
    else:
        ids = np.lexsort((-selection, ~kept), axis=-1)[..., :top_k].astype(np.int32)
    shared = np.broadcast_to(
        np.arange(num_experts, logits.shape[-1], dtype=np.int32), (*ids.shape[:-1], num_shared_experts)
    )
    ids = np.concatenate([ids, shared], axis=-1)
    weights = np.take_along_axis(scores, ids, axis=-1)
    if renormalize:
        weights = weights / _divisor(weights, norm_order, norm_epsilon, norm_floor)
    with np.errstate(over="ignore", invalid="ignore"):
        weights = np.asarray(weights * np.float32(routed_scaling_factor))
        if expert_scale is not None:
            weights = np.asarray(weights * expert_scale.astype(np.float32)[ids])
    return weights, ids


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

    References
    ----------
    DeepSeek-V3 Technical Report, arXiv:2412.19437, section 2.1.2.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> topk_weights, topk_ids = reference.topk_sigmoid(np.array([[-1, 0, 0]], np.float32), 2)
    >>> topk_weights.tolist(), topk_ids.tolist()
    ([[0.5, 0.5]], [[1, 2]])
    """
    return select_experts(
        router_logits,
        top_k,
        scoring="sigmoid",
        correction_bias=correction_bias,
        renormalize=renormalize,
        routed_scaling_factor=routed_scaling_factor,
    )


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

    References
    ----------
    The implementation that is published with DeepSeek-V4.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> _, topk_ids = reference.topk_sqrt_softplus(np.array([[-1, 0, 2]], np.float32), 2)
    >>> topk_ids.tolist()
    [[2, 1]]
    """
    return select_experts(
        router_logits,
        top_k,
        scoring="sqrt_softplus",
        correction_bias=correction_bias,
        renormalize=renormalize,
        routed_scaling_factor=routed_scaling_factor,
    )


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

    References
    ----------
    DeepSeek-V3 Technical Report, arXiv:2412.19437, section 2.1.2.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> router_logits = np.array([[5, -9, 2, 2]], np.float32)
    >>> _, topk_ids = reference.grouped_topk(router_logits, 2, num_groups=2, topk_group=1)
    >>> topk_ids.tolist()
    [[2, 3]]
    """
    return select_experts(
        router_logits,
        top_k,
        scoring="sigmoid",
        correction_bias=correction_bias,
        num_groups=num_groups,
        topk_group=topk_group,
        renormalize=renormalize,
        routed_scaling_factor=routed_scaling_factor,
    )


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

    References
    ----------
    Hash Layers For Large Sparse Models, arXiv:2106.04426. The scores: the implementation that is
    published with DeepSeek-V4.

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
    weights = np.take_along_axis(scores, ids, axis=-1)
    with np.errstate(over="ignore"):
        return weights / _divisor(weights, 1.0, 1e-20, 0.0) * np.float32(routed_scaling_factor), ids


def sparsemixer(
    router_logits: np.ndarray, top_k: int = 2, *, jitter_eps: float = 0.01
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the `top_k` largest logits of each row, and weight each by a softmax over those near to it.

    The weight of a chosen expert is the softmax over the experts that were not chosen before it and whose
    logit ``l`` has ``(l_chosen - l) / max(abs(l), l_chosen) <= 2 * jitter_eps``, in float32 arithmetic. A
    chosen expert of logit -inf has the weight 0.

    Parameters
    ----------
    router_logits : ndarray of shape (..., E)
    top_k : int
    jitter_eps : float

    Returns
    -------
    topk_weights : float32 ndarray of shape (..., top_k)
    topk_ids : int32 ndarray of shape (..., top_k)

    References
    ----------
    GRIN: GRadient-INformed MoE, arXiv:2409.12136.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> topk_weights, topk_ids = reference.sparsemixer(np.array([[1, 3, 3]], np.float32), 2)
    >>> topk_weights.tolist(), topk_ids.tolist()
    ([[0.5, 1.0]], [[1, 2]])
    """
    check_num_experts("router_logits", router_logits.shape[-1])
    logits = router_logits.astype(np.float32)
    ids = _descending(logits)[..., :top_k]
    weights = np.empty(ids.shape, np.float32)
    left = logits.copy()
    for slot in range(top_k):
        chosen = np.take_along_axis(left, ids[..., slot : slot + 1], axis=-1)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            distance = (chosen - left) / np.maximum(np.abs(left), chosen)
            far = distance > np.float32(2 * jitter_eps)
            exponentials = np.where(far, 0, np.exp(left.astype(np.float64) - chosen))
            weight = (1 / exponentials.sum(axis=-1)).astype(np.float32)
        weights[..., slot] = np.where(chosen[..., 0] == -np.inf, 0, weight)
        np.put_along_axis(left, ids[..., slot : slot + 1], -np.inf, axis=-1)
    return weights, ids


def _softcapped(logits: np.ndarray, cap: float | None) -> np.ndarray:
    """`cap` is rounded to float32; -inf stays, because it excludes an expert."""
    if cap is None:
        return logits
    wide = float(np.float32(cap))
    capped = (wide * np.tanh(logits.astype(np.float64) / wide)).astype(np.float32)
    return np.where(logits == -np.inf, logits, capped)


def _selection_scores(logits: np.ndarray, values: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    with np.errstate(over="ignore"):
        biased = values if bias is None else values + bias.astype(np.float32)
    return np.where(logits == -np.inf, np.float32(-np.inf), biased)


def _in_best_groups(selection: np.ndarray, num_groups: int, topk_group: int, group_score: str) -> np.ndarray:
    """Which experts are in the best groups."""
    size = selection.shape[-1] // num_groups
    best = np.sort(selection.reshape(*selection.shape[:-1], num_groups, size), axis=-1)[..., -2:]
    group_scores = best[..., -1]
    if group_score == "top2_sum":
        with np.errstate(over="ignore"):
            pair = best.sum(axis=-1, dtype=np.float32)
        group_scores = np.where(best[..., 0] == -np.inf, group_scores, pair)
    kept_groups = _descending(group_scores)[..., :topk_group]
    group_of_expert = np.arange(selection.shape[-1]) // size
    return np.asarray((group_of_expert[:, None] == kept_groups[..., None, :]).any(axis=-1))


def _descending(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores, axis=-1, kind="stable").astype(np.int32)


def _divisor(weights: np.ndarray, order: float, epsilon: float, floor: float) -> np.ndarray:
    """What a row's weights are divided by."""
    wide = weights.astype(np.float64)
    if order == 1:
        norm = wide.sum(axis=-1, keepdims=True)
    else:
        # Relative to the largest, so that no power underflows.
        largest = wide.max(axis=-1, keepdims=True)
        powers = (wide / np.where(largest > 0, largest, 1)) ** order
        norm = largest * powers.sum(axis=-1, keepdims=True) ** (1 / order)
    divisor = np.maximum(norm.astype(np.float32) + np.float32(epsilon), np.float32(floor))
    return np.where(divisor > 0, divisor, np.float32(1))
