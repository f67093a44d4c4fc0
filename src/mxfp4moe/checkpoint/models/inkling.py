"""Inkling: shared experts that the router weighs, packed after the routed ones."""

from __future__ import annotations

from dataclasses import replace

from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint._fields import Count, Number
from mxfp4moe.checkpoint._fused import FusedLayout, read_fused
from mxfp4moe.checkpoint._model import Model
from mxfp4moe.checkpoint._moe_layers import LayersFrom, LayerTypes
from mxfp4moe.checkpoint._names import Block, Names
from mxfp4moe.checkpoint.model_folder import ModelFolder
from mxfp4moe.checkpoint.model_type import NUM_SHARED, ModelType, Routing
from mxfp4moe.checkpoint.models.softmax import TEXT_LAYERS
from mxfp4moe.checkpoint.schemes import plain
from mxfp4moe.experts.weights import ExpertWeights

_NUM_SHARED = Count(NUM_SHARED, 2, minimum=0, maximum=1024)
_PUBLISHED = ("shared_w13_weight", "shared_w2_weight")
_SHARED = ("gate_proj", "up_proj", "down_proj")


def _read_experts(folder: ModelFolder, block: Block, model: Model) -> ExpertWeights:
    groups = [model.read_fused(folder, block).matrices()]
    if num_shared := model.num_router_rows - model.num_experts:
        sizes = model.expert_sizes._replace(num_experts=num_shared)
        parts = _PUBLISHED if f"{block.shared}.{_PUBLISHED[0]}" in folder else _SHARED
        names = [f"{block.shared}.{part}" for part in parts]
        groups.append(read_fused(folder, names, sizes, block.names.layouts).matrices())
    gate, up, down = (
        [matrix for matrices in part for matrix in matrices] for part in zip(*groups, strict=True)
    )
    arrays = plain.with_scales({"w13": (gate, up), "w2": down})
    sizes = model.expert_sizes
    return ExpertWeights(
        "bf16", "plain floats, fused", (sizes.hidden, sizes.intermediate), arrays, plain.to_bfloat16
    )


def _change(model: Model, config: Config) -> Model:
    rows = model.num_experts + model.rule(0).arguments["num_shared_experts"]
    return replace(model, num_router_rows=rows, read_experts=_read_experts)


_SCALE = {"routed_scaling_factor": "gate.global_scale"}

INKLING = ModelType(
    ("inkling_text", "inkling_mm_model"),
    Routing(
        "select_experts",
        {
            "scoring": "sigmoid",
            "num_shared_experts": _NUM_SHARED,
            "routed_scaling_factor": Number("route_scale", 8.0),
        },
        tensors=("correction_bias", "routed_scaling_factor"),
    ),
    section="text_config",
    layers=("model.llm.layers.{layer}.", *TEXT_LAYERS),
    names=(
        Names(
            fused=("experts.w13_weight", "experts.w2_weight"),
            layouts=(FusedLayout(is_interleaved=True),),
            tensors={**_SCALE, "correction_bias": "gate.bias"},
        ),
        Names(tensors=_SCALE),
    ),
    intermediate_size=Count("moe_intermediate_size", Count("intermediate_size")),
    moe_layers=(LayerTypes(), LayersFrom(Count("dense_mlp_idx", 0, minimum=0))),
    constants={"shared_expert_sink": (True,)},
    change=_change,
)

MODEL_TYPES = (INKLING,)
