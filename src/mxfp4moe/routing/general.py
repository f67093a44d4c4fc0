"""Any rule that is made of scores, a choice by them, and weights."""

from __future__ import annotations

from typing import Literal, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from mxfp4moe._arguments import (
    check_bool,
    check_choice,
    check_float32,
    check_int,
    check_positive_int,
    value_error,
)
from mxfp4moe.routing.rule import (
    GROUP_SCORES,
    SCORINGS,
    Routed,
    Rule,
    as_expert_numbers,
    as_logits,
    check_groups,
    route,
)

_SCORINGS = ("softmax", "sigmoid", "sqrt_softplus")
_GROUP_SCORES = tuple(GROUP_SCORES)


def select_experts(
    router_logits: ArrayLike,
    top_k: SupportsIndex,
    *,
    scoring: Literal["softmax", "sigmoid", "sqrt_softplus"] = "softmax",
    logit_softcap: float | None = None,
    num_shared_experts: SupportsIndex = 0,
    select_by: Literal["score", "logit"] = "score",
    correction_bias: ArrayLike | None = None,
    num_groups: SupportsIndex = 1,
    topk_group: SupportsIndex = 1,
    group_score: Literal["top2_sum", "max"] = "top2_sum",
    masked_groups: Literal["exclude", "zero"] = "exclude",
    renormalize: bool = True,
    norm_order: float = 1.0,
    norm_epsilon: float = 1e-20,
    norm_floor: float = 0.0,
    routed_scaling_factor: float = 1.0,
    expert_scale: ArrayLike | None = None,
    num_threads: int | None = None,
) -> Routed:
    """Score all experts, choose the best ones, and make weights of their scores.

    The rule of which the other functions have shorter names: for every model that combines their parts in
    another way. A row's result does not depend on the other rows.

    Parameters
    ----------
    router_logits : array_like of shape (..., num_experts + num_shared_experts)
        float32, bfloat16, float16, or float64 (rounded once to float32). -inf excludes an expert whatever its
        bias: it is chosen only when nothing else is left, and then has the weight 0.
    top_k : int
        Experts per token, 1 to `num_experts`; with groups, and those of others excluded, to
        ``topk_group * num_experts / num_groups``.
    scoring : {"softmax", "sigmoid", "sqrt_softplus"}
        What makes a score ``s`` of a logit: softmax over all logits of the row, sigmoid, or
        ``sqrt(log(1 + exp(logit)))``.
    logit_softcap : float, optional
        Above 0: logits become ``logit_softcap * tanh(logit / logit_softcap)`` before all else (Laguna).
    num_shared_experts : int, default 0
        The last so many logits are of experts that every token takes, in the last slots; their scores count
        in the norm (Inkling).
    select_by : {"score", "logit"}
        Experts are chosen by ``s + correction_bias``, or by ``logit + correction_bias`` (Llama-4, Kolibri).
    correction_bias : array_like of shape (num_experts,), optional
        Of the same dtypes as `router_logits`. -inf excludes an expert: it is chosen only when nothing else is
        left, and then weighted as any other.
    num_groups : int, default 1
        A divisor of `num_experts`: groups of so many consecutive experts.
    topk_group : int, default 1
        The best so many groups are kept.
    group_score : {"top2_sum", "max"}
        A group's score: the float32 sum of its two largest selection scores (DeepSeek-V3; excluded experts do
        not count, and where only one is left the score is that one's), or its largest (DeepSeek-V2).
    masked_groups : {"exclude", "zero"}
        Experts of groups that are not kept are never chosen, or have the selection score 0, which is more
        than a negative one (Mistral-4).
    renormalize : bool, default True
        Divide the weights of a row by ``max(norm + norm_epsilon, norm_floor)``, where ``norm`` is that of the
        scores of its experts. Where it is 0, so are all weights.
    norm_order : float, default 1.0
        ``p`` of the norm ``sum(s**p)**(1/p)``, at least 1 (DBRX).
    norm_epsilon : float, default 1e-20
        At least 0.
    norm_floor : float, default 0.0
        At least 0 (ERNIE-4.5: 1e-12).
    routed_scaling_factor : float, default 1.0
        Multiplies the weights.
    expert_scale : array_like of shape (num_experts + num_shared_experts,), optional
        The finite factor of each expert on its weight, last of all (Gemma-4).
    num_threads : int, optional
        Of this call; more than there is work for are not used.

    Returns
    -------
    topk_weights : float32 ndarray of shape (..., top_k + num_shared_experts)
        Scores are within 0.5001 ulp of the exact ones; all that follows is float32 arithmetic.
    topk_ids : int32 ndarray of shape (..., top_k + num_shared_experts)
        By descending float32 selection score; of equal scores the lower id comes first. Of groups of equal
        score the lower one is preferred. Ids of shared experts, from `num_experts` on, come last.

    Raises
    ------
    TypeError
        An argument is of another kind or dtype.
    ValueError
        A number or shape is out of range; a logit or bias is NaN or +inf; with softmax, every logit of a row
        is -inf.

    See Also
    --------
    topk_softmax : the softmax of the chosen logits, rounded once.

    References
    ----------
    The implementations that are published with the models; the page "Routing" of the documentation names
    the options of each.

    Examples
    --------
    Softmax scores, chosen with a bias, as ERNIE-4.5 has it:

    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> logits = np.array([[3.0, 1.0, 1.0, 1.0]], dtype=np.float32)
    >>> bias = np.array([0.0, 0.0, 0.0, 1.0], dtype=np.float32)
    >>> weights, ids = mx.select_experts(logits, 2, correction_bias=bias, norm_epsilon=0.0, norm_floor=1e-12)
    >>> ids
    array([[3, 0]], dtype=int32)
    >>> weights
    array([[0.11920293, 0.8807971 ]], dtype=float32)
    """
    logits = as_logits(router_logits)
    most_shared = logits.shape[-1] - 1
    num_shared = check_int("num_shared_experts", num_shared_experts, 0, most_shared)
    num_experts = logits.shape[-1] - num_shared
    groups, kept = check_groups(num_groups, topk_group, num_experts)
    zero_masked = check_choice("masked_groups", masked_groups, ("exclude", "zero")) == "zero"
    limit = num_experts if zero_masked else kept * (num_experts // groups)
    k = check_positive_int("top_k", top_k, maximum=limit)
    rule = Rule(
        scoring=SCORINGS[check_choice("scoring", scoring, _SCORINGS)],
        logit_softcap=_check_softcap(logit_softcap),
        by_logit=check_choice("select_by", select_by, ("score", "logit")) == "logit",
        num_shared=num_shared,
        num_groups=groups,
        topk_group=kept,
        group_score=GROUP_SCORES[check_choice("group_score", group_score, _GROUP_SCORES)],
        zero_masked=zero_masked,
        renormalize=check_bool("renormalize", renormalize),
        norm_order=check_float32("norm_order", norm_order, minimum=1),
        norm_epsilon=check_float32("norm_epsilon", norm_epsilon, minimum=0),
        norm_floor=check_float32("norm_floor", norm_floor, minimum=0),
        routed_scaling_factor=check_float32("routed_scaling_factor", routed_scaling_factor),
    )
    scale = as_expert_numbers("expert_scale", expert_scale, logits.shape[-1])
    if scale is not None and not np.isfinite(scale).all():
        position = int(np.isfinite(scale).argmin())
        raise value_error("expert_scale", "finite values", f"{scale[position]} at position {(position,)}")
    return route(
        logits,
        rule,
        k + num_shared,
        correction_bias=as_expert_numbers("correction_bias", correction_bias, num_experts),
        expert_scale=scale,
        num_threads=num_threads,
    )


def _check_softcap(value: float | None) -> float:
    """`logit_softcap` as the kernel takes it, in which 0 is none."""
    if value is None:
        return 0.0
    cap = check_float32("logit_softcap", value)
    if not np.float32(cap) > 0:
        raise value_error("logit_softcap", "None or a float32 number above 0", repr(cap))
    return cap
