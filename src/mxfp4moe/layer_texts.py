"""What a layer is, for a person to read."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from mxfp4moe.layer_description import DEFAULTS, LayerDescription
from mxfp4moe.layer_values import same_value, text_of


def later_fields(layer: LayerDescription[Any]) -> dict[str, Any]:
    """The fields that this layer has and most layers do not have, by name."""
    later = [each.name for each in fields(LayerDescription) if each.metadata.get("is_later")]
    values = {name: getattr(layer, name) for name in later}
    return {name: value for name, value in values.items() if not same_value(value, DEFAULTS[name])}


def later_texts(layer: LayerDescription[Any]) -> list[str]:
    """The fields that most layers do not have as ``name=value``, for a person to read."""
    return [f"{name}={text_of(value)}" for name, value in later_fields(layer).items()]


def field_texts(layer: LayerDescription[Any]) -> list[str]:
    """Sizes and options as ``name=value``, as far as they are given."""
    texts: dict[str, Any] = {} if layer.layer_number is None else {"layer": layer.layer_number}
    texts |= {
        "num_experts": layer.num_experts,
        "top_k": layer.top_k,
        "hidden_size": layer.hidden_size,
        "intermediate_size": layer.intermediate_size,
        "format": repr(layer.experts.format),
        "routing": layer.routing_text,
        "activation": repr(layer.activation),
    }
    for name in ("alpha", "limit"):
        if getattr(layer, name) is not None:
            texts[name] = getattr(layer, name)
    if layer.routed_scaling_factor != 1:
        texts["routed_scaling_factor"] = layer.routed_scaling_factor
    if layer.shared_experts is not None:
        shared = layer.shared_experts
        texts["shared_experts"] = f"{shared.intermediate_size} of {shared.format!r}"
    return [*(f"{name}={value}" for name, value in texts.items()), *later_texts(layer)]
