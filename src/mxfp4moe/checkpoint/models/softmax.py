"""Types that route by a softmax, of the chosen logits or of all of them."""

from __future__ import annotations

from dataclasses import replace

from mxfp4moe.checkpoint._fields import Choice, Count, Flag, Number
from mxfp4moe.checkpoint._fused import FusedLayout
from mxfp4moe.checkpoint._moe_layers import LayersFrom, LayerTypes
from mxfp4moe.checkpoint._names import Names
from mxfp4moe.checkpoint.model_type import (
    ACTIVATIONS,
    NUM_SHARED,
    RENORMALIZE,
    SILU_ALONE,
    Groups,
    ModelType,
    Routing,
    Shared,
)

INTERMEDIATE = Count("intermediate_size")
BLOCK_SPARSE = Names("block_sparse_moe", matrices=("w1", "w3", "w2"))
"""The names of Mixtral, which many models have taken over."""
TEXT_LAYERS = (
    "model.language_model.layers.{layer}.",
    "language_model.model.layers.{layer}.",
    "model.layers.{layer}.",
)
"""Where a model for several kinds of input has its language model, and where that is if it is alone."""

ALWAYS = Routing("topk_softmax")
UNLESS = Routing("topk_softmax", {"renormalize": Flag(RENORMALIZE, True)})
IF = Routing("topk_softmax", {"renormalize": Flag(RENORMALIZE, False)})
"""Whether the weights are normalized: always; unless or if the configuration says so."""

MIXTRAL = ModelType(("mixtral",), ALWAYS, names=(BLOCK_SPARSE, Names()), intermediate_size=INTERMEDIATE)
MINIMAX = replace(MIXTRAL, model_types=("minimax",))
PHIMOE = replace(
    MIXTRAL,
    model_types=("phimoe",),
    routing=Routing("sparsemixer", {"jitter_eps": Number("router_jitter_noise", 0.01, minimum=0)}),
    names=(BLOCK_SPARSE, Names(router="router")),
    top_k=Count("num_experts_per_tok"),
    constants={"num_experts_per_tok": (2,)},  # transformers computes something else for another number
)
OLMOE = ModelType(("olmoe",), IF, intermediate_size=INTERMEDIATE)
FLEX_OLMO = replace(OLMOE, model_types=("flex_olmo",))
JAMBA = ModelType(
    ("jamba",),
    Routing("topk_softmax", {"renormalize": False}),
    names=(Names("feed_forward", router="router"),),
    intermediate_size=INTERMEDIATE,
    moe_layers=(
        LayersFrom(step=Count("expert_layer_period", 2), offset=Count("expert_layer_offset", 1, minimum=0)),
    ),
)

QWEN_LAYERS = LayersFrom(step=Count("decoder_sparse_step", 1), offset=-1, dense="mlp_only_layers")
QWEN3_MOE = ModelType(("qwen3_moe",), IF, moe_layers=(QWEN_LAYERS,))
QWEN3_VL_MOE = replace(
    QWEN3_MOE,
    model_types=("qwen3_vl_moe", "qwen3_vl_moe_text"),
    routing=Routing("topk_softmax", {"renormalize": True}),
    section="text_config",
    layers=TEXT_LAYERS,
    # The first layout is the published one, the second is what transformers saves.
    names=(Names(layouts=(FusedLayout(is_transposed=True), FusedLayout())),),
)
QWEN3_OMNI_MOE = replace(
    QWEN3_MOE,
    model_types=("qwen3_omni_moe", "qwen3_omni_moe_thinker", "qwen3_omni_moe_text"),
    routing=UNLESS,
    section="thinker_config.text_config",
    layers=("thinker.model.layers.{layer}.", "thinker.model.language_model.layers.{layer}.", *TEXT_LAYERS),
)
MELLUM = ModelType(("mellum",), UNLESS, moe_layers=(LayerTypes(), QWEN_LAYERS))

QWEN_SHARED = Names(shared="shared_expert")
QWEN2_MOE = replace(
    QWEN3_MOE,
    model_types=("qwen2_moe",),
    names=(QWEN_SHARED,),
    shared=Shared(1, Count("shared_expert_intermediate_size", 5632, minimum=0), is_gated=True),
)
QWEN3_NEXT = replace(
    QWEN2_MOE,
    model_types=("qwen3_next",),
    routing=UNLESS,
    shared=Shared(1, Count("shared_expert_intermediate_size", 512, minimum=0), is_gated=True),
)
QWEN3_5_MOE = replace(
    QWEN3_NEXT,
    model_types=("qwen3_5_moe", "qwen3_5_moe_text"),
    routing=ALWAYS,
    section="text_config",
    layers=TEXT_LAYERS,
)
LARA_MINI = replace(
    QWEN3_NEXT,
    model_types=("lara_mini",),
    shared=Shared(1, Count("shared_expert_intermediate_size", 512, minimum=0)),
)

GRANITE_LINEAR = ("input_linear.weight", "output_linear.weight")
GRANITE = (
    Names(
        "block_sparse_moe",
        "router.layer",
        fused=GRANITE_LINEAR,
        shared="/shared_mlp",
        shared_fused=GRANITE_LINEAR,
    ),
    Names("block_sparse_moe", "router", shared="/shared_mlp", shared_fused=GRANITE_LINEAR),
)
GRANITEMOE = ModelType(("granitemoe",), ALWAYS, names=GRANITE, intermediate_size=INTERMEDIATE)
GRANITEMOESHARED = replace(
    GRANITEMOE,
    model_types=("granitemoeshared",),
    shared=Shared(1, Count("shared_intermediate_size", 0, minimum=0)),
)
GRANITEMOEHYBRID = replace(
    GRANITEMOE,
    model_types=("granitemoehybrid",),
    shared=Shared(1, Count("shared_intermediate_size", 1024, minimum=0)),
)
JETMOE = ModelType(
    ("jetmoe",),
    ALWAYS,
    names=(Names(router="router.layer", fused=GRANITE_LINEAR, tensors={"output_bias": "bias"}),),
    intermediate_size=INTERMEDIATE,
    activation=Choice("activation_function", "silu", of=ACTIVATIONS),
    tensors=("output_bias",),
)
ARIA = ModelType(
    ("aria_text", "aria"),
    ALWAYS,
    section="text_config",
    layers=("model.layers.{layer}.", "language_model.model.layers.{layer}.", *TEXT_LAYERS),
    names=tuple(
        Names(router="router", fused=fused, layouts=(FusedLayout(is_transposed=True),))
        for fused in (("experts.fc1.weight", "experts.fc2.weight"), Names().fused)
    ),
    intermediate_size=INTERMEDIATE,
    activation=SILU_ALONE,
    shared=Shared(Count(NUM_SHARED, 2, minimum=0, maximum=1024)),
)
HUNYUAN_V1_MOE = ModelType(
    ("hunyuan_v1_moe",),
    ALWAYS,
    names=(Names(router="gate.wg", shared="shared_mlp"),),
    intermediate_size=Count("moe_intermediate_size", INTERMEDIATE, per_layer=True),
    top_k=Count("moe_topk|num_experts_per_tok", per_layer=True),
    moe_layers=(LayersFrom(Count("moe_layer_num_skipped", 0, minimum=0)),),
    shared=Shared(
        Choice(
            "use_mixed_mlp_moe",
            True,
            of={True: Count("num_shared_expert", 1, minimum=0, maximum=1024, per_layer=True), False: 0},
        ),
        INTERMEDIATE,
    ),
)

DEEPSEEK_V2_ROUTING = Routing(
    "select_experts",
    {
        "select_by": "logit",
        "renormalize": False,  # transformers does not read norm_topk_prob, and other code has its own meaning
        "routed_scaling_factor": Number("routed_scaling_factor", 1.0),
    },
)
DEEPSEEK_V2 = ModelType(
    ("deepseek_v2",),
    Choice(
        "topk_method",
        "greedy",
        of={
            "greedy": DEEPSEEK_V2_ROUTING,
            "group_limited_greedy": replace(
                DEEPSEEK_V2_ROUTING,
                groups=Groups(function="select_experts", arguments={"group_score": "max"}),
            ),
        },
    ),
    section="language_config",
    layers=("model.layers.{layer}.", "language.model.layers.{layer}."),
    moe_layers=(LayersFrom(Count("first_k_dense_replace", 0, minimum=0), step=Count("moe_layer_freq", 1)),),
    shared=Shared(Count(NUM_SHARED, 2, minimum=0, maximum=1024)),
)
MISTRAL4 = ModelType(
    ("mistral4",),
    Routing(
        "select_experts",
        {
            "renormalize": Flag(RENORMALIZE, True),
            "routed_scaling_factor": Number("routed_scaling_factor", 1.0),
        },
        groups=Groups(function="select_experts", arguments={"masked_groups": "zero"}),
    ),
    layers=("model.layers.{layer}.", *TEXT_LAYERS),
    moe_layers=(LayersFrom(Count("first_k_dense_replace", 0, minimum=0)),),
    shared=Shared(),
)
ERNIE4_5_MOE = ModelType(
    ("ernie4_5_moe",),
    Routing(
        "select_experts",
        {"norm_epsilon": 0.0, "norm_floor": Number("moe_norm_min", 1e-12, minimum=0)},
        tensors=("correction_bias",),
    ),
    names=tuple(
        Names(tensors={"correction_bias": f"{place}moe_statics.e_score_correction_bias"})
        for place in ("", "gate.")
    ),
    moe_layers=(
        LayersFrom(
            Count("moe_layer_start_index", 1, minimum=0),
            Count("moe_layer_end_index", -1, minimum=-1),
            Count("moe_layer_interval", 1),
            offset=-1,
        ),
    ),
    shared=Shared(Count(NUM_SHARED, 2, minimum=0, maximum=1024)),
    constants={"use_bias": (False,)},
)
DBRX_ROUTING = Routing("select_experts", {"select_by": "logit", "norm_epsilon": 0.0})
DBRX = ModelType(
    ("dbrx",),
    Choice(
        "ffn_config.moe_normalize_expert_weights",
        1.0,
        null=None,
        of={None: replace(DBRX_ROUTING, arguments={"select_by": "logit", "renormalize": False})},
        otherwise=replace(
            DBRX_ROUTING,
            arguments={
                **DBRX_ROUTING.arguments,
                "norm_order": Number("ffn_config.moe_normalize_expert_weights", 1.0, minimum=1),
            },
        ),
    ),
    layers=("transformer.blocks.{layer}.",),
    names=(
        Names(
            "ffn",
            "router.layer",
            fused=("experts.mlp.w1", "experts.mlp.v1", "experts.mlp.w2"),
            layouts=(FusedLayout(is_down_transposed=True, is_flat=True),),
        ),
    ),
    hidden_size=Count("d_model|ffn_config.hidden_size"),
    intermediate_size=Count("ffn_config.ffn_hidden_size"),
    num_experts=Count("ffn_config.moe_num_experts", maximum=65_536),
    top_k=Count("ffn_config.moe_top_k"),
    num_layers=Count("n_layers", None, maximum=100_000),
    activation=Choice("ffn_config.ffn_act_fn.name", "silu", of=ACTIVATIONS),
)
LONGCAT_FLASH = ModelType(
    ("longcat_flash",),
    Routing(
        "select_experts",
        {"renormalize": False, "routed_scaling_factor": Number("routed_scaling_factor", 6.0)},
        tensors=("correction_bias",),
    ),
    names=(
        Names(
            router="router.classifier",
            # Transformers has rows for zero experts in one of the fused tensors.
            layouts=(FusedLayout(), FusedLayout(has_zero_experts=True)),
            tensors={"correction_bias": "router.e_score_correction_bias"},
        ),
    ),
    intermediate_size=Count("expert_ffn_hidden_size|moe_intermediate_size"),
    num_layers=Count("num_layers", None, maximum=100_000),
    num_zero_experts=Count("zero_expert_num", 256, minimum=0, maximum=65_536),
    constants={"zero_expert_type": ("identity",)},
)
GEMMA4 = ModelType(
    ("gemma4", "gemma4_text", "gemma4_unified"),
    Routing("select_experts", {"select_by": "logit", "norm_epsilon": 0.0}, tensors=("expert_scale",)),
    section="text_config",
    layers=TEXT_LAYERS,
    names=(
        Names(
            "",
            "router.proj",
            tensors={"expert_scale": "router.per_expert_scale", "router_scale": "router.scale"},
        ),
    ),
    moe_layers=(LayersFrom(first=Choice("enable_moe_block", False, of={True: 0, False: 100_000})),),
    activation=Choice("hidden_activation", "gelu_pytorch_tanh", of=ACTIVATIONS),
    tensors=("router_scale",),
    options={"separate_router_input": True, "router_norm_eps": Number("rms_norm_eps", 1e-6)},
)

MODEL_TYPES = (
    MIXTRAL, MINIMAX, PHIMOE, OLMOE, FLEX_OLMO, JAMBA, QWEN3_MOE, QWEN3_VL_MOE, QWEN3_OMNI_MOE, MELLUM,
    QWEN2_MOE, QWEN3_NEXT, QWEN3_5_MOE, LARA_MINI, GRANITEMOE, GRANITEMOESHARED, GRANITEMOEHYBRID, JETMOE,
    ARIA, HUNYUAN_V1_MOE, DEEPSEEK_V2, MISTRAL4, ERNIE4_5_MOE, DBRX, LONGCAT_FLASH, GEMMA4,
)  # fmt: skip
