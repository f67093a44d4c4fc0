"""Types whose experts have no gate or another activation, or work on fewer numbers than a token has."""

from __future__ import annotations

from dataclasses import replace

from mxfp4moe.checkpoint._fields import Choice, Count, Number
from mxfp4moe.checkpoint._moe_layers import LayerNumbers, LayersFrom, LayerTypes
from mxfp4moe.checkpoint._names import Names
from mxfp4moe.checkpoint.model_type import ACTIVATIONS, ModelType, Routing, Shared
from mxfp4moe.checkpoint.models.sigmoid import BIAS, GLM4_MOE, noaux
from mxfp4moe.checkpoint.models.softmax import BLOCK_SPARSE, TEXT_LAYERS

_UP_DOWN = ("up_proj", "down_proj")

NEMOTRON_H = ModelType(
    ("nemotron_h",),
    noaux(1.0),
    layers=("backbone.layers.{layer}.", "model.layers.{layer}."),
    names=(
        Names(
            "mixer",
            matrices=_UP_DOWN,
            fused=("experts.up_proj", "experts.down_proj"),
            shared_matrices=_UP_DOWN,
            tensors={"latent_down": "fc1_latent_proj.weight", "latent_up": "fc2_latent_proj.weight"},
        ),
    ),
    moe_layers=(
        LayerTypes(
            "layers_block_type|layer_types",
            sparse=("moe",),
            dense=("mamba", "attention", "linear_attention", "full_attention", "mlp"),
        ),
        LayerTypes("hybrid_override_pattern", sparse=("E",), dense=("M", "*", "-")),
    ),
    is_gated=False,
    activation=Choice("mlp_hidden_act", "relu2", of={"relu2": "relu2"}),
    latent_size=Count("moe_latent_size", 0),
    tensors=("latent_down", "latent_up"),
    shared=Shared(
        Count("n_shared_experts", 1, minimum=0, maximum=1),
        Count("moe_shared_expert_intermediate_size", 7688),
    ),
)

_SITU_LIMIT = Choice(
    "hidden_act", "silu", of={"situ": Number("activation_situ_linear_beta", 25.0)}, otherwise=None
)
_LATENT_NORM = "latent_moe_use_norm"
KIMI_LINEAR = replace(
    GLM4_MOE,
    model_types=("kimi_linear", "kimi_k3", "kimi_k3_text"),
    routing=noaux(2.446),
    layers=("model.layers.{layer}.", "language_model.model.layers.{layer}.", *TEXT_LAYERS),
    names=tuple(
        replace(
            names,
            tensors={
                "latent_down": "routed_expert_down_proj.weight",
                "latent_norm": "routed_expert_norm.weight",
                "latent_up": "routed_expert_up_proj.weight",
            },
        )
        for names in (BLOCK_SPARSE, Names())
    ),
    activation=Choice("hidden_act", "silu", of={**ACTIVATIONS, "situ": "situ"}),
    alpha=Choice("hidden_act", "silu", of={"situ": Number("activation_situ_beta", 4.0)}, otherwise=None),
    limit=_SITU_LIMIT,
    shared=Shared(limit=_SITU_LIMIT),
    latent_size=Choice("use_latent_moe", True, of={True: Count("routed_expert_hidden_size", 0), False: 0}),
    tensors=Choice(
        _LATENT_NORM,
        False,
        of={True: ("latent_down", "latent_norm", "latent_up"), False: ("latent_down", "latent_up")},
    ),
    options={
        "latent_norm_eps": Choice(_LATENT_NORM, False, of={True: Number("rms_norm_eps", 1e-5), False: None})
    },
)

STEP3P5 = ModelType(
    ("step3p5", "step3p7", "step3p7_text"),
    Routing("topk_sigmoid", tensors=BIAS),
    section="text_config",
    layers=("model.layers.{layer}.", *TEXT_LAYERS),
    names=(
        Names(
            "moe",
            fused=("gate_proj.weight", "up_proj.weight", "down_proj.weight"),
            shared="/share_expert",
            tensors={"correction_bias": "router_bias"},
        ),
        Names(),
    ),
    moe_layers=(LayerTypes(), LayerNumbers("moe_layers_enum"), LayersFrom(3)),
    activation=Choice("hidden_act", "silu", of={"silu": "silu_clamp"}),
    limit=Number("swiglu_limits", None, zero=None, per_layer=True),
    routed_scaling_factor=Number("moe_router_scaling_factor", 1.0),
    shared=Shared(
        1,
        Count("share_expert_dim|share_expert_dims", 1280),
        limit=Number("swiglu_limits_shared", None, zero=None, per_layer=True),
    ),
    constants={"use_moe": (True,)},
)

MODEL_TYPES = (NEMOTRON_H, KIMI_LINEAR, STEP3P5)
