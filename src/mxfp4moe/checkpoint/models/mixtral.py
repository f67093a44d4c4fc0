"""Mixtral: the largest logits, softmax over them."""

from __future__ import annotations

from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint._model import Model, Names, Rule, read_activation, read_num_experts, read_num_layers
from mxfp4moe.checkpoint.schemes import find_scheme

MODEL_TYPES = ("mixtral",)


def read_model(config: Config) -> Model:
    """Read the configuration of Mixtral."""
    scheme = find_scheme(config)
    num_experts = read_num_experts(config, "num_local_experts")
    return Model(
        hidden_size=config.integer("hidden_size", multiple_of=scheme.multiple_of),
        intermediate_size=config.integer("intermediate_size", multiple_of=scheme.multiple_of),
        num_experts=num_experts,
        top_k=config.integer("num_experts_per_tok", maximum=num_experts),
        names=(Names("block_sparse_moe", ("w1", "w3", "w2")), Names()),
        scheme=scheme,
        rule=lambda layer: Rule("topk_softmax"),
        num_layers=read_num_layers(config),
        activation=read_activation(config),
    )
