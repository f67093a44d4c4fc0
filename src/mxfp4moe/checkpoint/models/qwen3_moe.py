"""Qwen3-MoE: softmax over all experts, then the largest."""

from __future__ import annotations

from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint._model import Model, Names, Rule, read_activation, read_num_experts, read_num_layers
from mxfp4moe.checkpoint.schemes import find_scheme

MODEL_TYPES = ("qwen3_moe",)


def read_model(config: Config) -> Model:
    """Read the configuration of Qwen3-MoE."""
    scheme = find_scheme(config)
    num_experts = read_num_experts(config, "num_experts", "num_local_experts")
    rule = Rule("topk_softmax", {"renormalize": config.boolean("norm_topk_prob", default=False)})
    step = config.integer("decoder_sparse_step", default=1)
    dense = set(config.list_of("mlp_only_layers", int) or ())
    return Model(
        hidden_size=config.integer("hidden_size", multiple_of=scheme.multiple_of),
        intermediate_size=config.integer("moe_intermediate_size", multiple_of=scheme.multiple_of),
        num_experts=num_experts,
        top_k=config.integer("num_experts_per_tok", maximum=num_experts),
        names=(Names("model.layers.{layer}.mlp"),),
        scheme=scheme,
        rule=lambda layer: rule,
        num_layers=read_num_layers(config),
        is_dense=lambda layer: layer in dense or (layer + 1) % step != 0,
        activation=read_activation(config),
    )
