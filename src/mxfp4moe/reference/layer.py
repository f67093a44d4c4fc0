"""A whole mixture-of-experts layer: router, experts and shared expert."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mxfp4moe.reference.moe import fused_experts, fused_experts_float64
from mxfp4moe.reference.routing import (
    grouped_topk,
    hash_topk,
    router_logits,
    select_experts,
    sparsemixer,
    topk_sigmoid,
    topk_softmax,
    topk_sqrt_softplus,
)

_ROUTING_FUNCTIONS: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    function.__name__: function
    for function in (
        topk_softmax,
        topk_sigmoid,
        topk_sqrt_softplus,
        grouped_topk,
        hash_topk,
        select_experts,
        sparsemixer,
    )
}


def moe_layer(
    hidden_states: np.ndarray,
    layer: Any,
    input_ids: np.ndarray | None = None,
    *,
    out_dtype: DTypeLike | None = None,
) -> np.ndarray:
    """Compute `layer` for every token, with exactly the roundings of the numerics contract.

    The router logits of a token choose its experts (or its token id does). The result is
    ``routed_scaling_factor * fused_experts(...) + shared expert``, where both terms, their product and their
    sum are float32, rounded once.

    Parameters
    ----------
    hidden_states : ndarray of shape (..., K)
        bfloat16, float16 or float32.
    layer : MoELayer or LayerDescription
        Any object with their attributes, and with experts that `arrays_of` takes.
    input_ids : integer ndarray of shape (...), optional
        For layers that route by ``hash_topk``.
    out_dtype : dtype, optional
        That of `hidden_states` if not given.

    Returns
    -------
    ndarray of shape (..., K)

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> w13 = mx.quantize_mxfp4(np.ones((4, 64, 96), np.float32))
    >>> w2 = mx.quantize_mxfp4(np.ones((4, 96, 32), np.float32))
    >>> layer = mx.MoELayer(mx.pack_experts(*w13, *w2), np.ones((4, 96), np.float32), top_k=2)
    >>> mx.reference.moe_layer(np.ones((3, 96), np.float32), layer).shape
    (3, 96)
    """
    result = _evaluate(hidden_states, layer, input_ids, partial(fused_experts, out_dtype=np.float32))
    with np.errstate(over="ignore", under="ignore"):
        return result.astype(hidden_states.dtype if out_dtype is None else out_dtype)


def moe_layer_float64(
    hidden_states: np.ndarray, layer: Any, input_ids: np.ndarray | None = None
) -> np.ndarray:
    """Compute as `moe_layer` does, but the experts in float64. Relative errors are measured against this.

    Parameters
    ----------
    hidden_states, layer, input_ids
        See `moe_layer`.

    Returns
    -------
    float64 ndarray of shape (..., K)

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> w13 = mx.quantize_mxfp4(np.ones((4, 64, 96), np.float32))
    >>> w2 = mx.quantize_mxfp4(np.ones((4, 96, 32), np.float32))
    >>> layer = mx.MoELayer(mx.pack_experts(*w13, *w2), np.ones((4, 96), np.float32), top_k=2)
    >>> mx.reference.moe_layer_float64(np.ones((3, 96), np.float32), layer).dtype
    dtype('float64')
    """
    return _evaluate(hidden_states, layer, input_ids, fused_experts_float64)


def _evaluate(
    hidden_states: np.ndarray, layer: Any, input_ids: np.ndarray | None, compute: Callable[..., np.ndarray]
) -> np.ndarray:
    function = {"activation": layer.activation, "alpha": layer.alpha}
    chosen = _route(hidden_states, layer, input_ids)
    total = compute(hidden_states, layer.experts, *chosen, limit=layer.limit, **function)
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.asarray(total * total.dtype.type(layer.routed_scaling_factor))
        if layer.shared_experts is not None:
            slots = (*hidden_states.shape[:-1], 1)
            only = np.ones(slots, np.float32), np.zeros(slots, np.int32)
            total += compute(hidden_states, layer.shared_experts, *only, limit=layer.shared_limit, **function)
    return total


def _route(
    hidden_states: np.ndarray, layer: Any, input_ids: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    logits = router_logits(hidden_states, layer.router_weight, layer.router_bias)
    routing = layer.routing
    function = _ROUTING_FUNCTIONS[routing] if isinstance(routing, str) else routing
    second = input_ids if routing == "hash_topk" else layer.top_k
    topk_weights, topk_ids = function(logits, second, **layer.routing_arguments)
    return topk_weights, topk_ids
