"""MiniMax-M3: as M2, with swigluoai, a shared expert, and a factor of the routed sum."""

from __future__ import annotations

from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint._model import Model, Names, language_model, read_num_experts, read_num_layers
from mxfp4moe.checkpoint.models.minimax_m2 import PUBLISHED, correction_bias_rule
from mxfp4moe.checkpoint.schemes import find_scheme

MODEL_TYPES = ("minimax_m3_vl", "minimax_m3_vl_text")

_PARTS = ("language_model.model", "model.language_model", "model")


def read_model(config: Config) -> Model:
    """Read the configuration of MiniMax-M3, or of its text model alone."""
    config, quantized = language_model(config)
    scheme = find_scheme(quantized)
    num_experts = read_num_experts(config, "num_local_experts")
    config.choice("scoring_func", ("sigmoid",), default="sigmoid")
    config.choice("hidden_act", ("swigluoai", "silu"), default="swigluoai")  # silu is not what it computes
    rule = correction_bias_rule(config, num_experts)
    limit = config.positive_number("swiglu_limit", default=7.0)
    num_layers = read_num_layers(config)
    dense = _dense_layers(config, num_layers)
    intermediate = config.integer("intermediate_size", multiple_of=scheme.multiple_of)
    num_shared = config.integer("n_shared_experts", minimum=0, maximum=1, default=1)
    shared_size = config.integer(
        "shared_intermediate_size", multiple_of=scheme.multiple_of, default=intermediate
    )
    return Model(
        hidden_size=config.integer("hidden_size", multiple_of=scheme.multiple_of),
        intermediate_size=intermediate,
        num_experts=num_experts,
        top_k=config.integer("num_experts_per_tok", maximum=num_experts),
        names=(PUBLISHED, Names()),
        layers=tuple(f"{part}.layers.{{layer}}." for part in _PARTS),
        scheme=scheme,
        rule=lambda layer: rule,
        num_layers=num_layers,
        is_dense=lambda layer: layer in dense,
        activation="swigluoai",
        alpha=config.positive_number("swiglu_alpha", default=1.702),
        limit=limit,
        routed_scaling_factor=config.positive_number("routed_scaling_factor", default=2.0),
        shared_size=shared_size * num_shared,
        shared_limit=limit,
    )


def _dense_layers(config: Config, num_layers: int | None) -> set[int]:
    types = config.list_of("mlp_layer_types", str, num_layers)
    if types is not None:
        return {layer for layer, kind in enumerate(types) if kind == "dense"}
    flags = config.list_of("moe_layer_freq", int, num_layers) or ()
    return {layer for layer, flag in enumerate(flags) if not flag}
