"""DeepSeek-V4 and V4-Flash: FP4 experts, FP8 shared expert, the first layers routed by token id."""

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
from mxfp4moe.checkpoint.schemes import FLOATS, deepseek_fp4, find_scheme, fp8_block

MODEL_TYPES = ("deepseek_v4",)

_MATRICES = ("w1", "w3", "w2")
_PUBLISHED = Names(
    "ffn", _MATRICES, _MATRICES, routing={"correction_bias": "gate.bias", "tid2eid": "gate.tid2eid"}
)


def read_model(config: Config) -> Model:
    """Read the configuration of DeepSeek-V4."""
    scheme = shared_scheme = find_scheme(config, scale_name="scale")
    if config.choice("expert_dtype", ("fp4", "fp8", None), default=None) == "fp4":
        scheme = deepseek_fp4.SCHEME
        if not config.section("quantization_config").fields:
            shared_scheme = fp8_block.scheme((128, 128), "scale")
    num_experts = read_num_experts(config, "n_routed_experts")
    config.choice("scoring_func", ("sqrtsoftplus",), default="sqrtsoftplus")
    config.choice("norm_topk_prob", (True,), default=True)
    num_layers = read_num_layers(config)
    top_k = config.integer("num_experts_per_tok", maximum=num_experts)
    intermediate = config.integer("moe_intermediate_size", multiple_of=scheme.multiple_of)
    limit = config.positive_number("swiglu_limit", default=10.0)
    vocab_size = config.integer("vocab_size") if "vocab_size" in config.fields else None
    scale = {"routed_scaling_factor": config.positive_number("routed_scaling_factor", default=1.5)}
    bias = {"correction_bias": TensorSpec(FLOATS, (num_experts,))}
    table = {"tid2eid": TensorSpec(("I64", "I32"), (vocab_size, top_k))}
    by_score = Rule("topk_sqrt_softplus", scale, bias, unused=tuple(table))
    by_hash = Rule("hash_topk", scale, table, unused=tuple(bias))
    is_hash = _hash_layers(config, num_layers)
    return Model(
        hidden_size=config.integer("hidden_size", multiple_of=scheme.multiple_of),
        intermediate_size=intermediate,
        num_experts=num_experts,
        top_k=top_k,
        names=(_PUBLISHED, Names()),
        layers=("layers.{layer}.", "model.layers.{layer}."),
        storage_fields=("expert_dtype",),
        scheme=scheme,
        rule=lambda layer: by_hash if layer in is_hash else by_score,
        num_layers=num_layers,
        activation=read_activation(config),
        limit=limit,
        shared_size=intermediate * config.integer("n_shared_experts", minimum=0, maximum=1024, default=1),
        shared_scheme=shared_scheme,
        shared_limit=limit,
    )


def _hash_layers(config: Config, num_layers: int | None) -> set[int]:
    types = config.list_of("mlp_layer_types", str, num_layers)
    if types is None:
        return set(range(config.integer("num_hash_layers", minimum=0, maximum=100_000, default=3)))
    wrong = next((kind for kind in types if kind not in ("hash_moe", "moe")), None)
    if wrong is not None:
        raise config.error("mlp_layer_types", "'hash_moe' or 'moe' for each layer", repr(wrong))
    return {layer for layer, kind in enumerate(types) if kind == "hash_moe"}
