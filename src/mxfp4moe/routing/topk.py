"""The rules that most models route by, each a case of `Rule`."""

from __future__ import annotations

from typing import SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxfp4moe._arguments import check_bool, check_float32, check_positive_int
from mxfp4moe.routing.rule import (
    SCORINGS,
    Routed,
    Rule,
    as_expert_numbers,
    as_logits,
    check_groups,
    route,
)


def topk_softmax(
    router_logits: ArrayLike,
    top_k: SupportsIndex,
    *,
    renormalize: bool = True,
    num_threads: int | None = None,
) -> Routed:
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
    num_threads : int, optional
        Of this call; more than there is work for are not used.

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

    References
    ----------
    Mixtral of Experts, arXiv:2401.04088, section 2.1.

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
    logits = as_logits(router_logits)
    k = check_positive_int("top_k", top_k, maximum=logits.shape[-1])
    # This gives the same numbers and computes fewer scores.
    scoring = "topk_softmax" if check_bool("renormalize", renormalize) else "softmax"
    rule = Rule(scoring=SCORINGS[scoring], by_logit=True)
    return route(logits, rule, k, num_threads=num_threads)


def topk_sigmoid(
    router_logits: ArrayLike,
    top_k: SupportsIndex,
    *,
    correction_bias: ArrayLike | None = None,
    renormalize: bool = True,
    routed_scaling_factor: float = 1.0,
    num_threads: int | None = None,
) -> Routed:
    """Choose the experts with the largest biased sigmoids and weight them by the sigmoids.

    MiniMax-M2 and -M3, and DeepSeek-V3 without groups, route so: with ``s = sigmoid(router_logits)``, the
    experts with the largest ``s + correction_bias`` are chosen, and their weights are ``s`` (without the
    bias), divided by their sum, times `routed_scaling_factor`. A row's result does not depend on the other
    rows.

    Parameters
    ----------
    router_logits : array_like of shape (..., num_experts)
        float32, bfloat16, float16, or float64 (rounded once to float32). -inf excludes an expert whatever its
        bias: it is chosen only when nothing else is left, and then has the weight 0.
    top_k : int
        Experts per token, 1 to `num_experts`.
    correction_bias : array_like of shape (num_experts,), optional
        Of the same dtypes as `router_logits`. -inf excludes an expert: it is chosen only when nothing else is
        left, and then weighted as any other.
    renormalize : bool, default True
        Divide the weights of a row by (their sum + 1e-20).
    routed_scaling_factor : float, default 1.0
        Multiplies the weights.
    num_threads : int, optional
        Of this call; more than there is work for are not used.

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

    References
    ----------
    DeepSeek-V3 Technical Report, arXiv:2412.19437, section 2.1.2.

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
    rule = _score_rule("sigmoid", renormalize, routed_scaling_factor)
    return _topk(as_logits(router_logits), top_k, rule, correction_bias, num_threads)


def topk_sqrt_softplus(
    router_logits: ArrayLike,
    top_k: SupportsIndex,
    *,
    correction_bias: ArrayLike | None = None,
    renormalize: bool = True,
    routed_scaling_factor: float = 1.0,
    num_threads: int | None = None,
) -> Routed:
    """Choose and weight experts by the square root of the softplus of their logits.

    DeepSeek-V4 routes so, with a `routed_scaling_factor` of 1.5. All is as in `topk_sigmoid`, but for
    ``s = sqrt(log(1 + exp(router_logits)))``.

    Parameters
    ----------
    router_logits : array_like of shape (..., num_experts)
        float32, bfloat16, float16, or float64 (rounded once to float32). -inf excludes an expert whatever its
        bias: it is chosen only when nothing else is left, and then has the weight 0.
    top_k : int
        Experts per token, 1 to `num_experts`.
    correction_bias : array_like of shape (num_experts,), optional
        Of the same dtypes as `router_logits`. -inf excludes an expert: it is chosen only when nothing else is
        left, and then weighted as any other.
    renormalize : bool, default True
        Divide the weights of a row by (their sum + 1e-20).
    routed_scaling_factor : float, default 1.0
        Multiplies the weights.
    num_threads : int, optional
        Of this call; more than there is work for are not used.

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

    References
    ----------
    The implementation that is published with DeepSeek-V4.

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
    rule = _score_rule("sqrt_softplus", renormalize, routed_scaling_factor)
    return _topk(as_logits(router_logits), top_k, rule, correction_bias, num_threads)


def grouped_topk(
    router_logits: ArrayLike,
    top_k: SupportsIndex,
    *,
    num_groups: SupportsIndex,
    topk_group: SupportsIndex,
    correction_bias: ArrayLike | None = None,
    renormalize: bool = True,
    routed_scaling_factor: float = 1.0,
    num_threads: int | None = None,
) -> Routed:
    """Choose the best groups of experts, then experts among them as `topk_sigmoid` does.

    DeepSeek-V3 and -R1 route so. A group is ``num_experts / num_groups`` consecutive experts, and its score
    the float32 sum of its two largest selection scores ``sigmoid(router_logits) + correction_bias``; excluded
    experts do not count, and where only one is left the score is that one's. Experts of other groups than the
    `topk_group` best are never chosen.

    Parameters
    ----------
    router_logits : array_like of shape (..., num_experts)
        float32, bfloat16, float16, or float64 (rounded once to float32). -inf excludes an expert whatever its
        bias: it is chosen only when nothing else is left in the best groups, and then has the weight 0.
    top_k : int
        Experts per token, 1 to ``topk_group * num_experts / num_groups``.
    num_groups : int
        A divisor of `num_experts`.
    topk_group : int
        1 to `num_groups`.
    correction_bias : array_like of shape (num_experts,), optional
        Of the same dtypes as `router_logits`. -inf excludes an expert: it is chosen only when nothing else is
        left in the best groups, and then weighted as any other.
    renormalize : bool, default True
        Divide the weights of a row by (their sum + 1e-20).
    routed_scaling_factor : float, default 1.0
        Multiplies the weights.
    num_threads : int, optional
        Of this call; more than there is work for are not used.

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

    References
    ----------
    DeepSeek-V3 Technical Report, arXiv:2412.19437, section 2.1.2.

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
    logits = as_logits(router_logits)
    groups, kept = check_groups(num_groups, topk_group, logits.shape[-1])
    rule = _score_rule("sigmoid", renormalize, routed_scaling_factor)
    rule["num_groups"], rule["topk_group"] = groups, kept
    return _topk(logits, top_k, rule, correction_bias, num_threads, kept * (logits.shape[-1] // groups))


def _score_rule(scoring: str, renormalize: bool, routed_scaling_factor: float) -> Rule:
    return Rule(
        scoring=SCORINGS[scoring],
        renormalize=check_bool("renormalize", renormalize),
        routed_scaling_factor=check_float32("routed_scaling_factor", routed_scaling_factor),
    )


def _topk(
    logits: NDArray[np.float32],
    top_k: SupportsIndex,
    rule: Rule,
    correction_bias: ArrayLike | None,
    num_threads: int | None,
    maximum: int | None = None,
) -> Routed:
    """Weights and ids of `top_k` experts of the `most` that may be chosen; None means all."""
    num_experts = logits.shape[-1]
    k = check_positive_int("top_k", top_k, num_experts if maximum is None else maximum)
    bias = as_expert_numbers("correction_bias", correction_bias, num_experts)
    return route(logits, rule, k, correction_bias=bias, num_threads=num_threads)
