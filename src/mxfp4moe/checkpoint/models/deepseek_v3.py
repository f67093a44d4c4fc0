"""DeepSeek-V3, R1, V3.2 and Kimi-K2: sigmoid routing with a correction bias, in groups; a shared expert."""

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

MODEL_TYPES = ("deepseek_v3", "deepseek_v32", "kimi_k2")


def read_model(config: Config) -> Model:
    """Read the configuration of DeepSeek-V3 and models made like it."""
    scheme = find_scheme(config)
    num_experts = read_num_experts(config, "n_routed_experts")
    top_k = config.integer("num_experts_per_tok", maximum=num_experts)
    intermediate = config.integer("moe_intermediate_size", multiple_of=scheme.multiple_of)
    config.choice("topk_method", ("noaux_tc",), default="noaux_tc")
    config.choice("scoring_func", ("sigmoid",), default="sigmoid")
    first_moe = config.integer("first_k_dense_replace", minimum=0, default=0)
    frequency = config.integer("moe_layer_freq", default=1)
    rule = _routing(config, num_experts, top_k)
    return Model(
        hidden_size=config.integer("hidden_size", multiple_of=scheme.multiple_of),
        intermediate_size=intermediate,
        num_experts=num_experts,
        top_k=top_k,
        names=(Names(),),
        scheme=scheme,
        rule=lambda layer: rule,
        num_layers=read_num_layers(config),
        is_dense=lambda layer: layer < first_moe or layer % frequency != 0,
        activation=read_activation(config),
        shared_size=intermediate * config.integer("n_shared_experts", minimum=0, maximum=1024, default=1),
        # If the field is missing, DeepSeek's own code has no shared expert, and transformers has one.
        shared_is_optional=config.get("n_shared_experts") is None,
    )


def _routing(config: Config, num_experts: int, top_k: int) -> Rule:
    arguments = {
        "renormalize": config.boolean("norm_topk_prob", default=True),
        "routed_scaling_factor": config.positive_number("routed_scaling_factor", default=2.5),
    }
    bias = {"correction_bias": TensorSpec(FLOATS, (num_experts,))}
    num_groups = config.integer("n_group", maximum=num_experts, default=1)
    if num_experts % num_groups:
        raise config.error("n_group", f"a divisor of n_routed_experts = {num_experts}", str(num_groups))
    if num_groups == 1:
        return Rule("topk_sigmoid", arguments, bias)
    kept = config.integer("topk_group", maximum=num_groups)
    if top_k > kept * (num_experts // num_groups):
        expected = f"at least {top_k} experts (num_experts_per_tok) in the groups that are kept"
        raise config.error("topk_group", expected, f"{kept} groups of {num_experts // num_groups}")
    return Rule("grouped_topk", {"num_groups": num_groups, "topk_group": kept, **arguments}, bias)
