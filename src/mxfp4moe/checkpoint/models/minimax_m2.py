"""MiniMax-M2: sigmoid routing with a correction bias, weights normalized."""

from __future__ import annotations

from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint._model import (
    Model,
    Names,
    Rule,
    TensorSpec,
    read_activation,
    read_num_experts,
    read_num_layers,
)
from mxfp4moe.checkpoint.schemes import FLOATS, find_scheme

MODEL_TYPES = ("minimax_m2",)

PUBLISHED = Names(
    "block_sparse_moe", ("w1", "w3", "w2"), routing={"correction_bias": "e_score_correction_bias"}
)
"""MiniMax-M3 has the same names. The correction bias stands beside the router, not in it."""
_TRANSFORMERS = Names(routing={"correction_bias": "e_score_correction_bias"})


def read_model(config: Config) -> Model:
    """Read the configuration of MiniMax-M2."""
    scheme = find_scheme(config)
    num_experts = read_num_experts(config, "num_local_experts")
    config.choice("scoring_func", ("sigmoid",), default="sigmoid")
    # The model has neither of these; a configuration that asks for one would be computed wrongly.
    config.choice("shared_intermediate_size", (0, None), default=0)
    config.choice("routed_scaling_factor", (1.0, 1, None), default=1.0)
    rule = correction_bias_rule(config, num_experts)
    return Model(
        hidden_size=config.integer("hidden_size", multiple_of=scheme.multiple_of),
        intermediate_size=config.integer("intermediate_size", multiple_of=scheme.multiple_of),
        num_experts=num_experts,
        top_k=config.integer("num_experts_per_tok", maximum=num_experts),
        names=(PUBLISHED, _TRANSFORMERS),
        scheme=scheme,
        rule=lambda layer: rule,
        num_layers=read_num_layers(config),
        activation=read_activation(config),
    )


def correction_bias_rule(config: Config, num_experts: int) -> Rule:
    """Sigmoid routing with a correction bias, unless the configuration has none."""
    if not config.boolean("use_routing_bias", default=True):
        return Rule("topk_sigmoid", unused=("correction_bias",))
    return Rule("topk_sigmoid", {}, {"correction_bias": TensorSpec(FLOATS, (num_experts,))})
