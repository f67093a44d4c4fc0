"""DeepSeek-V4 and V4-Flash: FP4 experts, FP8 shared expert, the first layers routed by token id."""

from __future__ import annotations

from dataclasses import replace

from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint._fields import Count, Number
from mxfp4moe.checkpoint._model import Model, Rule, TensorSpec
from mxfp4moe.checkpoint._moe_layers import LayersFrom, LayerTypes
from mxfp4moe.checkpoint._names import Names
from mxfp4moe.checkpoint.model_type import NUM_SHARED, ModelType, Routing, Shared
from mxfp4moe.checkpoint.schemes import Scheme, deepseek_fp4, find_scheme, fp8_block

_MATRICES = ("w1", "w3", "w2")
_LIMIT = Number("swiglu_limit", 10.0)


def _scheme(config: Config) -> Scheme:
    scheme = find_scheme(config, scale_name="scale")
    is_fp4 = config.choice("expert_dtype", ("fp4", "fp8", None), default=None) == "fp4"
    return deepseek_fp4.SCHEME if is_fp4 else scheme


def _change(model: Model, config: Config) -> Model:
    """Route the first layers by token id, and read the shared expert, whose weights are FP8."""
    vocab_size = config.integer("vocab_size") if "vocab_size" in config.fields else None
    by_score = model.rule(0)
    table = {"tid2eid": TensorSpec(("I64", "I32"), (vocab_size, model.top_k))}
    by_hash = Rule("hash_topk", by_score.arguments, table, unused=tuple(by_score.tensors))
    is_hash = _hash_layers(config)
    shared_scheme = find_scheme(config, scale_name="scale")
    if model.scheme is deepseek_fp4.SCHEME and not config.section("quantization_config").fields:
        shared_scheme = fp8_block.scheme((128, 128), "scale")
    return replace(
        model,
        storage_fields=("expert_dtype",),
        sizes_text=f"vocab_size = {vocab_size}",
        shared_scheme=shared_scheme,
        rule=lambda layer: by_hash if layer in is_hash else by_score,
    )


def _hash_layers(config: Config) -> set[int]:
    # A list of the kinds of layers overrides the number.
    number = config.integer("num_hash_layers", minimum=0, maximum=100_000, default=3)
    types = config.get("mlp_layer_types")
    if types is None:
        return set(range(number))
    return {layer for layer, kind in enumerate(types) if kind == "hash_moe"}


DEEPSEEK_V4 = ModelType(
    ("deepseek_v4",),
    Routing(
        "topk_sqrt_softplus",
        {"routed_scaling_factor": Number("routed_scaling_factor", 1.5)},
        tensors=("correction_bias",),
        unused=("tid2eid",),
    ),
    names=(
        Names("ffn", matrices=_MATRICES, shared_matrices=_MATRICES, tensors={"correction_bias": "gate.bias"}),
        Names(),
    ),
    layers=("layers.{layer}.", "model.layers.{layer}."),
    moe_layers=(LayerTypes(sparse=("hash_moe", "moe"), dense=()), LayersFrom()),
    limit=_LIMIT,
    shared=Shared(Count(NUM_SHARED, 1, minimum=0, maximum=1024), limit=_LIMIT),
    scheme=_scheme,
    change=_change,
)

MODEL_TYPES = (DEEPSEEK_V4,)
