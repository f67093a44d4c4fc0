"""What each architecture computes where the metadata of a file say nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from mxfp4moe.experts.activation import Activation

Presence = Literal["never", "maybe", "always"]
"""Whether files have something."""

SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN, SQRT_SOFTPLUS = 1, 2, 3, 4  # expert_gating_func


def _arguments(**values: Any) -> Mapping[str, Any]:
    return MappingProxyType(values)


@dataclass(frozen=True)
class Latent:
    """Names of the tensors around experts that work on fewer numbers than a hidden state has."""

    down: str
    up: str
    norm: str = ""


@dataclass(frozen=True)
class Architecture:
    """A mixture-of-experts layer of llama.cpp: what its graph has built in, and its defaults of metadata."""

    models: str
    """Models that are published with it."""
    gating: int | None = SOFTMAX
    """expert_gating_func; None where it must be in the file."""
    renormalize: bool = True
    """expert_weights_norm."""
    selection: Mapping[str, Any] = field(default_factory=_arguments)
    """Arguments of `select_experts` that this architecture has and others do not."""
    gatings: tuple[int, ...] = (SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN)
    """The values that expert_gating_func may have."""
    softmax: int = SOFTMAX
    """What softmax in expert_gating_func stands for."""
    softmax_group_score: str = "top2_sum"
    """What the groups of experts are chosen by where scores are softmax."""
    bias: Presence = "never"
    """A correction bias, exp_probs_b."""
    has_softmax_bias: bool = False
    """Whether there may be one where scores are softmax."""
    routing: str = ""
    """A routing function of its own, of which `selection` are the arguments."""
    top_k: int | None = None
    """The number of chosen experts, where the routing is defined for one number alone."""
    is_gated: bool = True
    activation: Activation = "silu"
    limit: float | None = None
    clamped: Activation | None = None
    """The activation of layers with a limit in swiglu_clamp_exp; None: there is no such key."""
    is_shared_clamped: bool = False
    """Whether limits are those of the shared expert too, where swiglu_clamp_shexp is missing."""
    has_situ_keys: bool = False
    """Whether alpha and limit are the keys activation.situ_beta and activation.situ_linear_beta."""
    has_biases: bool = False
    shared: Presence = "never"
    """A shared expert; where there always is one, expert_shared_count may say that there is none."""
    has_shared_gate: bool = False
    is_average: bool = False
    """Whether the result is half the sum of the routed experts and the shared one."""
    fused_shared: str = "gate_up"
    """What stands for gate and up in the name of a tensor of the shared expert that holds both."""
    apply_router_weight_on_input: bool = False
    has_router_norm: bool = False
    """Whether the router reads an array of its own, normalizes it, and scales it by ffn_gate_inp.scale."""
    latent: Latent | None = None
    beside: tuple[str, ...] = ()
    """Tensors of the block that belong to what is computed beside the experts."""


_DENSE = ("ffn_gate", "ffn_up", "ffn_down")

_PLAIN = Architecture("")
_SHARED = replace(_PLAIN, shared="always")
_MAYBE_SHARED = replace(_PLAIN, shared="maybe")
_SHARED_GATE = replace(_SHARED, has_shared_gate=True)
_NOT_NORMALIZED = replace(_PLAIN, renormalize=False)
# These have expert_weights_norm in their files.
_DEEPSEEK = replace(_SHARED, renormalize=False)
_SIGMOID = replace(_DEEPSEEK, gating=SIGMOID)
_ANY_GATING = replace(_DEEPSEEK, gating=None)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "afmoe": replace(_SIGMOID, models="Trinity (AFMoE)", bias="always"),
        "arctic": replace(_PLAIN, models="Snowflake Arctic", beside=(*_DENSE, "ffn_norm_exps")),
        "bailingmoe": replace(_DEEPSEEK, models="Ling"),
        "bailingmoe2": replace(_ANY_GATING, models="Ling-2, Ring-2", bias="maybe"),
        "bailingmoe3": replace(_ANY_GATING, models="Ling-3", clamped="silu_clamp", bias="always"),
        "cohere2moe": replace(
            _SIGMOID,
            models="Cohere2-MoE",
            selection=_arguments(select_by="logit"),
            softmax=SOFTMAX_OF_CHOSEN,
            is_average=True,
            shared="maybe",
        ),
        "dbrx": replace(_PLAIN, models="DBRX"),
        "deepseek": replace(_DEEPSEEK, models="DeepSeek-MoE"),
        "deepseek2": replace(
            _DEEPSEEK,
            models="DeepSeek-V2, V3, R1, Kimi-K2, GLM-4.7-Flash",
            softmax_group_score="max",
            bias="maybe",
        ),
        "deepseek2-ocr": replace(_DEEPSEEK, models="DeepSeek-OCR"),
        "deepseek32": replace(_ANY_GATING, models="DeepSeek-V3.2", bias="maybe"),
        "deepseek4": replace(
            _ANY_GATING,
            models="DeepSeek-V4",
            gatings=(SQRT_SOFTPLUS,),
            clamped="silu",
            is_shared_clamped=True,
            bias="always",
        ),
        "dots1": replace(_ANY_GATING, models="dots.llm1", bias="maybe"),
        "dots3note": replace(_ANY_GATING, models="dots.note", bias="always"),
        "ernie4_5-moe": replace(
            _MAYBE_SHARED,
            models="ERNIE-4.5",
            selection=_arguments(norm_epsilon=0.0, norm_floor=1e-12),
            has_softmax_bias=True,
            bias="maybe",
        ),
        "exaone-moe": replace(_ANY_GATING, models="K-EXAONE", bias="maybe"),
        "gemma4": replace(
            _PLAIN, models="Gemma-4", activation="gelu_tanh", has_router_norm=True, beside=_DENSE
        ),
        "glm-dsa": replace(_SIGMOID, models="GLM-5", bias="maybe"),
        "glm4moe": replace(_SIGMOID, models="GLM-4.5, 4.6, 4.7, Solar-Open", bias="always"),
        "glm5-next": replace(
            _SIGMOID, models="GLM-5-Next", clamped="silu", is_shared_clamped=True, bias="always"
        ),
        "gpt-oss": replace(
            _PLAIN,
            models="gpt-oss",
            gating=SOFTMAX_OF_CHOSEN,
            activation="swigluoai",
            limit=7.0,
            has_biases=True,
        ),
        "granite_swa": replace(_MAYBE_SHARED, models="Granite with sliding windows", fused_shared="up"),
        "granitehybrid": replace(_MAYBE_SHARED, models="Granite-4 hybrid"),
        "granitemoe": replace(_MAYBE_SHARED, models="Granite-3 MoE"),
        "hunyuan-moe": replace(_SHARED, models="Hunyuan-A13B"),
        "hy_v3": replace(_SIGMOID, models="Hy3", bias="maybe"),
        "hy_v4": replace(_SIGMOID, models="Hy4", clamped="silu", bias="maybe"),
        "jamba": replace(_NOT_NORMALIZED, models="Jamba"),
        "kimi-k3": replace(
            _ANY_GATING,
            models="Kimi-K3",
            activation="situ",
            has_situ_keys=True,
            latent=Latent("ffn_routed_down", "ffn_routed_up", "ffn_routed_norm"),
            beside=("ffn_res_score",),
            bias="always",
        ),
        "kimi-linear": replace(_SHARED, models="Kimi-Linear", gating=None, bias="always"),
        "laguna": replace(_SIGMOID, models="Laguna", bias="always"),
        "lfm2moe": replace(
            _PLAIN, models="LFM2-MoE", gating=None, selection=_arguments(norm_epsilon=1e-6), bias="always"
        ),
        "llada-moe": replace(_NOT_NORMALIZED, models="LLaDA-MoE"),
        "llama": replace(_MAYBE_SHARED, models="Mixtral"),
        "llama4": replace(
            _SIGMOID,
            models="Llama-4",
            selection=_arguments(select_by="logit"),
            apply_router_weight_on_input=True,
        ),
        "maple": replace(_PLAIN, models="Maple", clamped="silu"),
        "mellum": replace(_PLAIN, models="Mellum"),
        "mimo2": replace(_PLAIN, models="MiMo-V2", gating=SIGMOID, bias="maybe"),
        "minimax-01": replace(_PLAIN, models="MiniMax-01"),
        "minimax-m2": replace(_PLAIN, models="MiniMax-M2", gating=None, bias="always"),
        "minimax-m3": replace(
            _ANY_GATING, models="MiniMax-M3", activation="swigluoai", limit=7.0, bias="always"
        ),
        "mistral3": replace(_MAYBE_SHARED, models="Mistral-3"),
        "mistral4": replace(_DEEPSEEK, models="Mistral-4", bias="maybe"),
        "nemotron_h_moe": replace(
            _SIGMOID,
            models="Nemotron-3",
            is_gated=False,
            activation="relu2",
            latent=Latent("ffn_latent_down", "ffn_latent_up"),
            bias="always",
        ),
        "olmoe": replace(_NOT_NORMALIZED, models="OLMoE"),
        "phimoe": replace(
            _PLAIN,
            models="Phi-3.5-MoE",
            routing="sparsemixer",
            selection=_arguments(jitter_eps=0.01),
            top_k=2,
        ),
        "qwen2moe": replace(_SHARED_GATE, models="Qwen1.5-MoE, Qwen2-MoE", renormalize=False),
        "qwen35moe": replace(_SHARED_GATE, models="Qwen3.5, Qwen3.6"),
        "qwen3moe": replace(_PLAIN, models="Qwen3-MoE"),
        "qwen3next": replace(_SHARED_GATE, models="Qwen3-Next"),
        "qwen3vlmoe": replace(_PLAIN, models="Qwen3-VL-MoE, Qwen3-Omni"),
        "rnd1": replace(_PLAIN, models="RND1"),
        "step35": replace(_SIGMOID, models="Step-3.5", clamped="silu_clamp", bias="maybe"),
    }
)
"""By ``general.architecture``."""
