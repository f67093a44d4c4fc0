"""Inkling: shared experts that the router weighs, packed after the routed ones."""

from __future__ import annotations

from dataclasses import replace

from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint._fields import Count, Number
from mxfp4moe.checkpoint._fused import FusedLayout
from mxfp4moe.checkpoint._model import Model
from mxfp4moe.checkpoint._moe_layers import LayersFrom, LayerTypes
from mxfp4moe.checkpoint._names import GATE_UP_DOWN, Names
from mxfp4moe.checkpoint.model_type import NUM_SHARED, ModelType, Routing
from mxfp4moe.checkpoint.models.softmax import TEXT_LAYERS

_NUM_SHARED = Count(NUM_SHARED, 2, minimum=0, maximum=1024)


def _change(model: Model, config: Config) -> Model:
    num_shared = model.rule(0).arguments["num_shared_experts"]
    return replace(model, num_router_rows=model.num_experts + num_shared, num_weighted_shared=num_shared)


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
            shared_fused=("shared_w13_weight", "shared_w2_weight"),
            layouts=(FusedLayout(is_interleaved=True),),
            tensors={**_SCALE, "correction_bias": "gate.bias"},
        ),
        Names(shared_fused=GATE_UP_DOWN, tensors=_SCALE),
    ),
    intermediate_size=Count("moe_intermediate_size", Count("intermediate_size")),
    moe_layers=(LayerTypes(), LayersFrom(Count("dense_mlp_idx", 0, minimum=0))),
    constants={"shared_expert_sink": (True,)},
    change=_change,
)

MODEL_TYPES = (INKLING,)
