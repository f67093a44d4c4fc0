"""A whole mixture-of-experts layer: router, experts and shared expert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mxfp4moe.formats import find_floats
from mxfp4moe.reference._precision import CONTRACT, FLOAT64, INT8, Precision, matmul, round_bfloat16
from mxfp4moe.reference.activation import sigmoid
from mxfp4moe.reference.moe import ExpertOptions, evaluate_experts
from mxfp4moe.reference.norm import rms_factors
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
    router_hidden_states: np.ndarray | None = None,
    out_dtype: DTypeLike | None = None,
) -> np.ndarray:
    """Compute `layer` for every token, with exactly the roundings of the numerics contract.

    Each step that a layer does not have is left out; each product, quotient and sum that is named is one
    float32 operation unless it says otherwise.

    1. The router reads `router_hidden_states` if the layer has `separate_router_input`, or else the hidden
       states, which are rounded once to bfloat16. Its weights are ``router_weight * router_scale``, each
       product rounded once to float32. With `router_norm_eps`, the sums are multiplied by the factor of the
       norm before `router_bias` is added; so what the norm gives is not rounded to bfloat16. These logits
       choose the experts of a token, or its token id does.
    2. With latent projections, the sums of ``x @ latent_down.T`` are computed like router logits, and each is
       rounded once to bfloat16: these are the hidden states of the routed experts.
    3. The routed sum is what `fused_experts` gives for the chosen experts, in float32.
    4. With `latent_norm`, the routed sum is multiplied by the factor of its norm, then by `latent_norm`. With
       latent projections, it is rounded once to bfloat16, and its products with `latent_up` are summed like
       router logits.
    5. The weights of those of a token's slots that hold zero experts are added from slot to slot, their sum
       is multiplied by x, which is rounded once to bfloat16, and the product is added to the routed sum.
    6. The sum is multiplied by `routed_scaling_factor`.
    7. The shared expert is added. Its router weight is `shared_scaling_factor`, times the sigmoid of
       ``x . shared_gate``: the sum is computed like a router logit, and its sigmoid in float64 and rounded
       once.
    8. `output_bias` is added.
    9. The sum is rounded once to the type of the result.

    Parameters
    ----------
    hidden_states : ndarray of shape (..., K)
        bfloat16, float16 or float32.
    layer : MoELayer or LayerDescription
        Any object with their attributes, and with experts that `arrays_of` takes.
    input_ids : integer ndarray of shape (...), optional
        For layers that route by ``hash_topk``.
    router_hidden_states : ndarray of shape (..., K), optional
        For layers whose router reads another array.
    out_dtype : dtype, optional
        That of `hidden_states` if not given.

    Returns
    -------
    ndarray of shape (..., K)

    References
    ----------
    Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer, arXiv:1701.06538.

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
    chosen = _route(_router_input(hidden_states, router_hidden_states, layer), layer, input_ids)
    result = _evaluate(hidden_states, layer, chosen, CONTRACT)
    with np.errstate(over="ignore", under="ignore"):
        return result.astype(hidden_states.dtype if out_dtype is None else out_dtype)


def moe_layer_float64(
    hidden_states: np.ndarray,
    layer: Any,
    input_ids: np.ndarray | None = None,
    *,
    router_hidden_states: np.ndarray | None = None,
) -> np.ndarray:
    """Compute as `moe_layer` does, but in float64 from the chosen experts on.

    Relative errors are measured against this.

    Parameters
    ----------
    hidden_states, layer, input_ids, router_hidden_states
        See `moe_layer`.

    Returns
    -------
    float64 ndarray of shape (..., K)

    References
    ----------
    Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer, arXiv:1701.06538.

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
    chosen = _route(_router_input(hidden_states, router_hidden_states, layer), layer, input_ids)
    return _evaluate(hidden_states, layer, chosen, FLOAT64)


def _evaluate(
    hidden_states: np.ndarray, layer: Any, chosen: tuple[np.ndarray, np.ndarray], precision: Precision
) -> np.ndarray:
    """The sum of all terms, in the dtype of the precision."""
    hidden = round_bfloat16(hidden_states)
    # Experts with activations of eight bits read hidden states that have not been rounded to bfloat16 before.
    read = hidden_states if _experts_precision(layer, layer.experts, precision).int8_activations else hidden
    weights, ids = (np.asarray(array) for array in chosen)
    is_zero = (ids >= layer.num_experts) & (layer.num_zero_experts > 0)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        is_slice = layer.expert_map is not None
        ids = np.where(is_zero, -1, ids)
        if is_slice:
            ids = np.append(layer.expert_map, -1)[ids]
        total = _routed_sum((hidden, read), layer, (weights, ids), precision)
        if layer.num_zero_experts and not is_slice:
            used = np.where(is_zero, weights, 0).astype(np.float32).astype(precision.dtype)
            total = total + np.add.accumulate(used, axis=-1)[..., -1:] * hidden.astype(precision.dtype)
        total = np.asarray(total * precision.dtype.type(layer.routed_scaling_factor))
        if layer.shared_experts is not None and not is_slice:
            total = total + _shared_expert((hidden, read), layer, precision)
        if layer.output_bias is not None and not is_slice:
            total = total + layer.output_bias.astype(precision.dtype)
    return total


def _experts_precision(layer: Any, experts: Any, precision: Precision) -> Precision:
    """The precision of these experts: int8 only if their format allows it."""
    is_int8 = layer.activation_format == "int8" and find_floats(experts.format) is None
    return INT8 if is_int8 and precision is CONTRACT else precision


def _routed_sum(
    tokens: tuple[np.ndarray, np.ndarray],
    layer: Any,
    routed: tuple[np.ndarray, np.ndarray],
    precision: Precision,
) -> np.ndarray:
    """That of the routed experts, in the width of the layer; `tokens`: bfloat16, and what experts read."""
    hidden, read = tokens
    of_experts = _experts_precision(layer, layer.experts, precision)
    on_input = layer.apply_router_weight_on_input
    options = ExpertOptions(layer.activation, layer.alpha, layer.limit, on_input)
    if layer.latent_down is None:
        return evaluate_experts(read, layer.experts, routed, options, of_experts)
    latent = of_experts.round_intermediate(matmul(hidden, layer.latent_down, precision))
    total = evaluate_experts(latent, layer.experts, routed, options, of_experts)
    if layer.latent_norm is not None:
        total = total * rms_factors(total, layer.latent_norm_eps).astype(precision.dtype)
        total = total * layer.latent_norm.astype(precision.dtype)
    return matmul(precision.round_intermediate(total), layer.latent_up, precision)


def _shared_expert(tokens: tuple[np.ndarray, np.ndarray], layer: Any, precision: Precision) -> np.ndarray:
    """The shared expert times its weight, a float32 number."""
    hidden, read = tokens
    slots = (*hidden.shape[:-1], 1)
    weights = np.full(slots, layer.shared_scaling_factor, np.float32)
    if layer.shared_gate is not None:
        logits = matmul(hidden, layer.shared_gate[None], CONTRACT)
        weights = weights * sigmoid(logits).astype(np.float32)
    options = ExpertOptions(layer.activation, layer.alpha, layer.shared_limit, False)
    routed = weights, np.zeros(slots, np.int32)
    of_shared = _experts_precision(layer, layer.shared_experts, precision)
    rows = read if of_shared.int8_activations else hidden
    return evaluate_experts(rows, layer.shared_experts, routed, options, of_shared)


def _router_input(hidden_states: np.ndarray, given: np.ndarray | None, layer: Any) -> np.ndarray:
    if (given is not None) != layer.separate_router_input:
        expected = "an array" if given is None else "None"
        raise TypeError(f"router_hidden_states: expected {expected}, as separate_router_input says")
    return hidden_states if given is None else given


def _route(
    hidden_states: np.ndarray, layer: Any, input_ids: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    weight = layer.router_weight.astype(np.float32)
    if layer.router_scale is not None:
        weight = weight * layer.router_scale.astype(np.float32)
    if layer.router_norm_eps is None:
        logits = router_logits(hidden_states, weight, layer.router_bias)
    else:
        read = round_bfloat16(hidden_states)
        logits = router_logits(read, weight) * rms_factors(read, layer.router_norm_eps).astype(np.float32)
        if layer.router_bias is not None:
            logits = logits + layer.router_bias.astype(np.float32)
    routing = layer.routing
    function = _ROUTING_FUNCTIONS[routing] if isinstance(routing, str) else routing
    second = input_ids if routing == "hash_topk" else layer.top_k
    topk_weights, topk_ids = function(logits, second, **layer.routing_arguments)
    return topk_weights, topk_ids
