"""The routing function of a layer, and its arguments, from metadata and tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import cast, join_choices
from mxfp4moe.checkpoint.gguf.architectures import (
    SIGMOID,
    SOFTMAX,
    SOFTMAX_OF_CHOSEN,
    SQRT_SOFTPLUS,
    Architecture,
)
from mxfp4moe.checkpoint.gguf.metadata import Metadata
from mxfp4moe.checkpoint.gguf.tensors import FLOATS, Tensors

_GATINGS = {
    SOFTMAX: "softmax",
    SIGMOID: "sigmoid",
    SOFTMAX_OF_CHOSEN: "softmax of the chosen",
    SQRT_SOFTPLUS: "sqrt of softplus",
}
_SCORINGS = {SIGMOID: "sigmoid", SQRT_SOFTPLUS: "sqrt_softplus"}
_NAMED = {"sigmoid": "topk_sigmoid", "sqrt_softplus": "topk_sqrt_softplus"}


class Routing(NamedTuple):
    """The name of a routing function, its arguments, and the factor of the routed sum where it has none."""

    function: str
    arguments: dict[str, Any]
    factor: float


def read_routing(
    architecture: Architecture, metadata: Metadata, tensors: Tensors, layer: int, num_experts: int
) -> Routing:
    """Read how `layer` chooses among `num_experts`."""
    if architecture.routing:
        return Routing(architecture.routing, dict(architecture.selection), 1.0)
    gating = _gating(architecture, metadata)
    renormalize = metadata.flag("expert_weights_norm", architecture.renormalize)
    factor = metadata.factor("expert_weights_scale") or 1.0
    if gating == SQRT_SOFTPLUS and layer < metadata.integer("hash_layer_count", default=0, minimum=0):
        if not renormalize:
            raise metadata.error("expert_weights_norm", "true in a layer that routes by token", "false")
        top_k = metadata.integer("expert_used_count", layer=layer)
        return Routing(
            "hash_topk", {"tid2eid": _table(tensors, layer, top_k), "routed_scaling_factor": factor}, 1.0
        )
    groups = _groups(metadata, layer, num_experts)
    bias = _correction_bias(architecture, tensors, layer, num_experts)
    if groups and architecture.selection.get("select_by") == "logit":
        expected = "at most 1 where experts are chosen by their logits"
        raise metadata.error("expert_group_count", expected, str(groups["num_groups"]))
    scoring = _SCORINGS.get(gating, "softmax")
    if scoring == "softmax" and bias and not architecture.has_softmax_bias:
        expected = f"sigmoid ({SIGMOID}) with a correction bias"
        raise metadata.error("expert_gating_func", expected, str(gating))
    weights = {"renormalize": renormalize or gating == SOFTMAX_OF_CHOSEN}
    if scoring == "softmax" and not (architecture.selection or groups or bias):
        return Routing("topk_softmax", weights, factor)
    arguments = {**groups, **bias, **weights, "routed_scaling_factor": factor}
    if not architecture.selection and scoring == "sigmoid" and groups:
        return Routing("grouped_topk", arguments, 1.0)
    if not architecture.selection and scoring != "softmax" and not groups:
        return Routing(_NAMED[scoring], arguments, 1.0)
    if scoring == "softmax" and groups:
        arguments["group_score"] = architecture.softmax_group_score
    return Routing("select_experts", {"scoring": scoring, **arguments, **architecture.selection}, 1.0)


def _gating(architecture: Architecture, metadata: Metadata) -> int:
    """What makes scores of logits; 0 in a file stands for nothing said."""
    allowed = architecture.gatings
    names = ", ".join(_GATINGS[each] for each in allowed)
    expected = f"{join_choices(map(str, allowed))} ({names})"
    default = architecture.gating
    gating = metadata.integer("expert_gating_func", default=default or 0, minimum=0) or default
    if gating is None:
        raise metadata.error("expert_gating_func", expected, "none")
    if gating not in allowed:
        raise metadata.error("expert_gating_func", expected, str(gating))
    return architecture.softmax if gating == SOFTMAX else gating


def _groups(metadata: Metadata, layer: int, num_experts: int) -> dict[str, int]:
    count = metadata.integer("expert_group_count", default=1, minimum=0) or 1
    if num_experts % count:
        expected = f"a divisor of {num_experts} experts"
        raise metadata.error("expert_group_count", expected, str(count))
    if count == 1:
        metadata.integer("expert_group_used_count", default=1, minimum=0)  # of the one group that there is
        return {}
    kept = metadata.integer("expert_group_used_count", maximum=count)
    top_k, most = metadata.integer("expert_used_count", layer=layer), kept * num_experts // count
    if top_k > most:
        raise metadata.error("expert_used_count", f"at most {most}, the experts of {kept} groups", str(top_k))
    return {"num_groups": count, "topk_group": kept}


def _correction_bias(
    architecture: Architecture, tensors: Tensors, layer: int, num_experts: int
) -> dict[str, NDArray[np.float32]]:
    if architecture.bias == "never":
        return {}
    name = f"blk.{layer}.exp_probs_b"
    if name not in tensors:  # as Hy3 calls it
        name = f"{name}.bias"
    if architecture.bias == "maybe" and name not in tensors:
        return {}
    return {"correction_bias": cast(tensors.tensor(name, FLOATS, (num_experts,)), np.float32)}


def _table(tensors: Tensors, layer: int, top_k: int) -> NDArray[Any]:
    name = f"blk.{layer}.ffn_gate_tid2eid.weight"
    vocab_size, _ = tensors.shape(name, 2)
    return tensors.tensor(name, ("I32",), (vocab_size, top_k))
