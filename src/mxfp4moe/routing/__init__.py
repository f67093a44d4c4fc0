"""The routing functions: they turn router logits into expert ids and weights."""

from mxfp4moe.routing.general import select_experts
from mxfp4moe.routing.hashed import hash_topk
from mxfp4moe.routing.sparse_mixer import sparsemixer
from mxfp4moe.routing.topk import grouped_topk, topk_sigmoid, topk_softmax, topk_sqrt_softplus

__all__ = [
    "ROUTING_FUNCTIONS",
    "grouped_topk",
    "hash_topk",
    "select_experts",
    "sparsemixer",
    "topk_sigmoid",
    "topk_softmax",
    "topk_sqrt_softplus",
]

ROUTING_FUNCTIONS = {
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
"""The functions that a layer can route by, by name."""
