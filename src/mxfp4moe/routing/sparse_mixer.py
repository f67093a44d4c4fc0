"""The routing of Phi-3.5-MoE."""

from __future__ import annotations

from typing import SupportsIndex

from numpy.typing import ArrayLike

from mxfp4moe._arguments import check_float32, check_positive_int
from mxfp4moe.routing.rule import SCORINGS, Routed, Rule, as_logits, route


def sparsemixer(
    router_logits: ArrayLike,
    top_k: SupportsIndex = 2,
    *,
    jitter_eps: float = 0.01,
    num_threads: int | None = None,
) -> Routed:
    """Choose the experts with the largest logits and weight each by a softmax over those near to it.

    Phi-3.5-MoE routes so. The weight of a chosen expert is the softmax over the experts that were not chosen
    before it and whose logit ``l`` is near to its own ``c``: ``(c - l) / max(abs(l), c) <= 2 * jitter_eps``.
    Weights of a row do not sum to 1. A row's result does not depend on the other rows.

    Parameters
    ----------
    router_logits : array_like of shape (..., num_experts)
        float32, bfloat16, float16, or float64 (rounded once to float32). -inf excludes an expert: it is
        chosen only when nothing else is left, and then has the weight 0.
    top_k : int, default 2
        Experts per token, 1 to `num_experts`.
    jitter_eps : float, default 0.01
        ``router_jitter_noise`` of the model, at least 0.
    num_threads : int, optional
        Of this call; more than there is work for are not used.

    Returns
    -------
    topk_weights : float32 ndarray of shape (..., top_k)
        Within 0.5001 ulp of the exact softmax; what is near is decided in float32.
    topk_ids : int32 ndarray of shape (..., top_k)
        By descending logit; of equal logits the lower id comes first.

    Raises
    ------
    TypeError
        An argument is of another kind or dtype.
    ValueError
        A number is out of range; a logit is NaN or +inf; every logit of a row is -inf.

    References
    ----------
    GRIN: GRadient-INformed MoE, arXiv:2409.12136.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> logits = np.array([[1.0, 3.0, 3.0, 2.0]], dtype=np.float32)
    >>> weights, ids = mx.sparsemixer(logits, 2, jitter_eps=0.1)
    >>> ids
    array([[1, 2]], dtype=int32)
    >>> weights
    array([[0.5, 1. ]], dtype=float32)
    """
    logits = as_logits(router_logits)
    k = check_positive_int("top_k", top_k, maximum=logits.shape[-1])
    eps = check_float32("jitter_eps", jitter_eps, minimum=0)
    rule = Rule(scoring=SCORINGS["sparsemixer"], jitter_eps=eps, by_logit=True)
    return route(logits, rule, k, num_threads=num_threads)
