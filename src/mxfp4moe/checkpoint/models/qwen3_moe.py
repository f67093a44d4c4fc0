"""Qwen3-MoE and Qwen3-VL-MoE: softmax over all experts, then the largest."""

from __future__ import annotations

from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint._fused import FusedLayout
from mxfp4moe.checkpoint._model import (
    Model,
    Names,
    Rule,
    language_model,
    read_activation,
    read_num_experts,
    read_num_layers,
)
from mxfp4moe.checkpoint.schemes import find_scheme

_VISION_LANGUAGE = ("qwen3_vl_moe", "qwen3_vl_moe_text")
MODEL_TYPES = ("qwen3_moe", *_VISION_LANGUAGE)


def read_model(config: Config) -> Model:
    """Read the configuration of Qwen3-MoE or Qwen3-VL-MoE."""
    is_vision_language = config.string("model_type") in _VISION_LANGUAGE
    config, quantized = language_model(config) if is_vision_language else (config, config)
    scheme = find_scheme(quantized)
    num_experts = read_num_experts(config, "num_experts", "num_local_experts")
    renormalize = config.boolean("norm_topk_prob", default=is_vision_language)
    if is_vision_language and not renormalize:
        raise config.error("norm_topk_prob", "true, as Qwen3-VL-MoE computes", "false")
    rule = Rule("topk_softmax", {"renormalize": renormalize})
    step = config.integer("decoder_sparse_step", default=1)
    dense = set(config.list_of("mlp_only_layers", int) or ())
    return Model(
        hidden_size=config.integer("hidden_size", multiple_of=scheme.multiple_of),
        intermediate_size=config.integer("moe_intermediate_size", multiple_of=scheme.multiple_of),
        num_experts=num_experts,
        top_k=config.integer("num_experts_per_tok", maximum=num_experts),
        names=(Names(),),
        layers=("model.language_model.layers.{layer}.", "model.layers.{layer}.")[not is_vision_language :],
        # The first layout is the published one of Qwen3-VL-MoE, the second is what transformers saves.
        fused_layouts=(FusedLayout(is_transposed=True), FusedLayout())[not is_vision_language :],
        scheme=scheme,
        rule=lambda layer: rule,
        num_layers=read_num_layers(config),
        is_dense=lambda layer: layer in dense or (layer + 1) % step != 0,
        activation=read_activation(config),
    )
