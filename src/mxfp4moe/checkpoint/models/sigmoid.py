"""Types that route by sigmoids, most of them with a correction bias that DeepSeek-V3 has made common."""

from __future__ import annotations

from dataclasses import replace

from mxfp4moe.checkpoint._fields import Choice, Count, Flag, Number
from mxfp4moe.checkpoint._fused import FusedLayout
from mxfp4moe.checkpoint._moe_layers import LayerFlags, LayerNumbers, LayersFrom, LayerTypes
from mxfp4moe.checkpoint._names import Names
from mxfp4moe.checkpoint.model_type import (
    NUM_SHARED,
    RENORMALIZE,
    SILU_ALONE,
    Groups,
    ModelType,
    Routing,
    Shared,
)
from mxfp4moe.checkpoint.models.softmax import ALWAYS, BLOCK_SPARSE, INTERMEDIATE, QWEN_LAYERS, TEXT_LAYERS

BIAS = ("correction_bias",)


def noaux(
    factor: float,
    renormalize: bool = True,
    groups: tuple[int, int] = (1, 1),
    factor_name: str = "routed_scaling_factor",
) -> Routing:
    """The routing of DeepSeek-V3, with the defaults of a type."""
    return Routing(
        "topk_sigmoid",
        {
            "renormalize": Flag(RENORMALIZE, renormalize),
            "routed_scaling_factor": Number(factor_name, factor),
        },
        tensors=BIAS,
        groups=Groups(Count("n_group|num_expert_group", groups[0]), Count("topk_group", groups[1])),
    )


def first_dense(count: int, name: str = "first_k_dense_replace") -> tuple[LayerTypes, LayersFrom]:
    """So many dense layers come first, if no list says otherwise."""
    return LayerTypes(), LayersFrom(Count(name, count, minimum=0), step=Count("moe_layer_freq", 1))


def shared(default: int = 1) -> Shared:
    """Shared experts of the size of the others."""
    return Shared(Count(NUM_SHARED, default, minimum=0, maximum=1024))


def bias_at(*places: str, shared: str = Names.shared) -> tuple[Names, ...]:
    """Styles of names that differ in where the correction bias is."""
    return tuple(Names(shared=shared, tensors={"correction_bias": place}) for place in places)


IN_GATE = "gate.e_score_correction_bias"

DEEPSEEK_V3 = ModelType(
    ("deepseek_v3", "deepseek_v32", "kimi_k2", "kimi_k25"),
    noaux(2.5, groups=(8, 4)),
    section="text_config",
    layers=("model.layers.{layer}.", *TEXT_LAYERS),
    moe_layers=first_dense(3),
    # If the field is missing, DeepSeek's own code has no shared expert, and transformers has one.
    shared=replace(shared(), is_optional=True),
    constants={"topk_method": ("noaux_tc",), "use_grouped_topk": (True,)},
)
DOTS1 = replace(
    DEEPSEEK_V3,
    model_types=("dots1",),
    routing=noaux(1.0, renormalize=False),
    section="",
    moe_layers=first_dense(0),
    shared=replace(shared(0), is_optional=True),
    constants={**DEEPSEEK_V3.constants, "scoring_func": ("sigmoid", "noaux_tc")},
)
GLM4_MOE = replace(
    DEEPSEEK_V3,
    model_types=("glm4_moe", "glm4v_moe", "glm4v_moe_text"),
    routing=noaux(1.0),
    moe_layers=first_dense(1),
    shared=shared(),
)
GLM4_MOE_LITE = replace(GLM4_MOE, model_types=("glm4_moe_lite",), routing=noaux(1.8))
GLM_MOE_DSA = replace(GLM4_MOE, model_types=("glm_moe_dsa",), routing=noaux(2.5), moe_layers=first_dense(3))
SOLAR_OPEN = replace(GLM4_MOE, model_types=("solar_open",), moe_layers=first_dense(0))
EXAONE_MOE = replace(
    GLM4_MOE,
    model_types=("exaone_moe",),
    routing=noaux(2.5),
    names=bias_at("e_score_correction_bias", IN_GATE),
)
LIMIT = Number("swiglu_limit", 10.0)
GLM5_NEXT = replace(
    GLM_MOE_DSA,
    model_types=("glm5_next", "glm5_next_text"),
    activation=SILU_ALONE,
    limit=LIMIT,
    shared=replace(shared(), limit=LIMIT),
)
HY_V4 = replace(
    GLM5_NEXT,
    model_types=("hy_v4",),
    routing=noaux(2.827),
    moe_layers=first_dense(1),
    shared=shared(),  # which has no limit
)
BEAM = replace(
    GLM_MOE_DSA,
    model_types=("beam",),
    routing=replace(noaux(1.0, groups=(8, 4)), arguments={"renormalize": Flag(RENORMALIZE, True)}),
    routed_scaling_factor=Number("routed_scaling_factor", 2.5),
    shared=None,
)
BAILING = replace(
    GLM4_MOE,
    model_types=("bailing_hybrid", "bailing_moe", "bailing_moe_v2"),
    routing=Choice(
        "moe_router_enable_expert_bias",
        True,
        of={
            True: noaux(2.5, groups=(8, 4)),
            False: replace(noaux(2.5, groups=(8, 4)), tensors=(), unused=BIAS),
        },
    ),
    names=bias_at("gate.expert_bias", IN_GATE),
    moe_layers=first_dense(2),
    shared=Shared(
        Count(NUM_SHARED, 1, minimum=0, maximum=1024),
        Count("moe_shared_expert_intermediate_size", Count("moe_intermediate_size")),
    ),
)
SARVAM_MOE = replace(
    GLM4_MOE, model_types=("sarvam_moe",), routing=noaux(2.5), names=bias_at("gate.expert_bias", IN_GATE)
)
MIMO_V2_FLASH = replace(
    GLM4_MOE,
    model_types=("mimo_v2_flash",),
    moe_layers=(LayerTypes(), LayerFlags(), LayersFrom(1)),
    shared=None,
)

AFMOE = ModelType(
    ("afmoe",),
    Routing("topk_sigmoid", {"routed_scaling_factor": Number("route_scale", 1.0)}, tensors=BIAS),
    names=(Names(router="router.gate", tensors={"correction_bias": "expert_bias"}),),
    moe_layers=(LayersFrom(Count("num_dense_layers", 1, minimum=0)),),
    shared=shared(2),
    constants={"route_norm": (True,)},
)
HY_V3 = replace(
    AFMOE,
    model_types=("hy_v3",),
    routing=Routing(
        "topk_sigmoid", {"routed_scaling_factor": Number("router_scaling_factor", 2.826)}, tensors=BIAS
    ),
    names=(
        Names(router="router.gate", shared="shared_mlp", tensors={"correction_bias": "expert_bias"}),
        *bias_at("e_score_correction_bias", IN_GATE),
    ),
    moe_layers=first_dense(1),
    shared=shared(),
)
M2_ROUTING = Choice(
    "use_routing_bias",
    True,
    of={
        True: Routing("topk_sigmoid", tensors=BIAS),
        False: Routing("topk_sigmoid", unused=BIAS),
    },
)
M2_NAMES = replace(BLOCK_SPARSE, tensors={"correction_bias": "e_score_correction_bias"})
"""The correction bias stands beside the router, not in it."""
MINIMAX_M2 = ModelType(
    ("minimax_m2",),
    M2_ROUTING,
    names=(M2_NAMES, *bias_at("e_score_correction_bias", IN_GATE)),
    intermediate_size=INTERMEDIATE,
)
M3_LIMIT = Number("swiglu_limit", 7.0)
MINIMAX_M3 = ModelType(
    ("minimax_m3_vl", "minimax_m3_vl_text"),
    M2_ROUTING,
    section="text_config",
    layers=("language_model.model.layers.{layer}.", *TEXT_LAYERS),
    names=(M2_NAMES, Names()),
    intermediate_size=INTERMEDIATE,
    moe_layers=(LayerTypes(), LayerFlags(), LayersFrom()),
    # silu is not what it computes, but what transformers writes.
    activation=Choice("hidden_act", "swigluoai", of=dict.fromkeys(("swigluoai", "silu"), "swigluoai")),
    alpha=Number("swiglu_alpha", 1.702),
    limit=M3_LIMIT,
    routed_scaling_factor=Number("routed_scaling_factor", 2.0),
    shared=Shared(
        Count("n_shared_experts", 1, minimum=0, maximum=1),
        Count("shared_intermediate_size", INTERMEDIATE),
        limit=M3_LIMIT,
    ),
)

LAGUNA = ModelType(
    ("laguna",),
    Routing(
        "select_experts",
        {"scoring": "sigmoid", "logit_softcap": Number("moe_router_logit_softcapping", None, zero=None)},
        tensors=BIAS,
    ),
    names=(
        Names(shared="shared_expert", tensors={"correction_bias": "experts.e_score_correction_bias"}),
        Names(),
    ),
    moe_layers=(LayerTypes(), LayersFrom(1)),
    routed_scaling_factor=Number("moe_routed_scaling_factor", 1.0),
    shared=Shared(1, Count("shared_expert_intermediate_size", 512, minimum=0)),
)
LFM2_ROUTING = Routing(
    "select_experts",
    {
        "scoring": "sigmoid",
        "renormalize": Flag(RENORMALIZE, True),
        "norm_epsilon": 1e-6,
        "routed_scaling_factor": Number("routed_scaling_factor", 1.0),
    },
)
LFM2_MOE = ModelType(
    ("lfm2_moe",),
    Choice(
        "use_expert_bias",
        True,
        of={True: replace(LFM2_ROUTING, tensors=BIAS), False: replace(LFM2_ROUTING, unused=BIAS)},
    ),
    names=(Names("feed_forward", matrices=("w1", "w3", "w2"), tensors={"correction_bias": "expert_bias"}),),
    moe_layers=(LayersFrom(Count("num_dense_layers", 2, minimum=0)),),
    activation="silu",
)
FLINT = ModelType(
    ("flint",),
    Routing("topk_sigmoid", {"renormalize": Flag(RENORMALIZE, True)}),
    names=(Names(shared="shared_expert"),),
    moe_layers=(replace(QWEN_LAYERS, dense_default=(0, 1)),),
    shared=Shared(1, Count("shared_expert_intermediate_size", 1024, minimum=0)),
)

BY_LOGIT = Routing("select_experts", {"scoring": "sigmoid", "select_by": "logit"})
KOLIBRI1 = ModelType(
    ("kolibri1",),
    replace(
        BY_LOGIT,
        arguments={**BY_LOGIT.arguments, "renormalize": Flag(RENORMALIZE, False)},
        tensors=BIAS,
    ),
    names=bias_at("/moe.router.expert_bias", IN_GATE),
    shared=Shared(1, Count("shared_expert_intermediate_size", 512, minimum=0)),
)
COHERE2_MOE = ModelType(
    ("cohere2_moe",),
    Choice(
        "expert_selection_fn",
        "softmax",
        of={
            "softmax": ALWAYS,
            "sigmoid": replace(
                BY_LOGIT,
                arguments={
                    **BY_LOGIT.arguments,
                    "renormalize": Flag(RENORMALIZE, True),
                    "norm_epsilon": 0.0,
                },
            ),
        },
    ),
    intermediate_size=INTERMEDIATE,
    moe_layers=first_dense(0),
    shared=Shared(
        Count(NUM_SHARED, 0, minimum=0, maximum=1024),
        average=Choice("shared_expert_combination_strategy", "average", of={"average": True, "sum": False}),
    ),
    constants={"norm_topk_prob": (True, False)},  # a softmax is normalized in any case
)
LLAMA4 = ModelType(
    ("llama4_text", "llama4"),
    replace(BY_LOGIT, arguments={**BY_LOGIT.arguments, "renormalize": False}),
    section="text_config",
    layers=("model.layers.{layer}.", "language_model.model.layers.{layer}.", *TEXT_LAYERS),
    names=(
        Names("feed_forward", "router", shared="shared_expert", layouts=(FusedLayout(is_transposed=True),)),
    ),
    intermediate_size=INTERMEDIATE,
    moe_layers=(
        LayerNumbers("moe_layers"),
        LayersFrom(step=Count("interleave_moe_layer_step", 1), offset=-1),
    ),
    shared=Shared(1),
    options={"apply_router_weight_on_input": True},
)

MODEL_TYPES = (
    DEEPSEEK_V3, DOTS1, GLM4_MOE, GLM4_MOE_LITE, GLM_MOE_DSA, SOLAR_OPEN, EXAONE_MOE, GLM5_NEXT, HY_V4, BEAM,
    BAILING, SARVAM_MOE, MIMO_V2_FLASH, AFMOE, HY_V3, MINIMAX_M2, MINIMAX_M3, LAGUNA, LFM2_MOE,
    FLINT, KOLIBRI1, COHERE2_MOE, LLAMA4,
)  # fmt: skip
