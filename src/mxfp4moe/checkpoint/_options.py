"""Fields of config.json that change what a MoE block computes in one model type or another.

A row names those that its type knows. The others must be missing, or say what is computed anyway: otherwise
they would be ignored, and the numbers would be wrong.
"""

from __future__ import annotations

from typing import Any

from mxfp4moe._json import shorten
from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint._model import Rule

_SCORES = {
    "topk_softmax": "softmax",
    "sparsemixer": "softmax",
    "topk_sigmoid": "sigmoid",
    "grouped_topk": "sigmoid",
    "topk_sqrt_softplus": "sqrtsoftplus",
    "hash_topk": "sqrtsoftplus",
}
"""How the fields of `_SCORING` call the scores of a routing function."""

_SCORING = (
    "scoring_func",
    "score_function",
    "score_func",
    "moe_router_activation_func",
    "moe_router_activation",
    "moe_router_score_function",
    "expert_selection_fn",
)
_RENORMALIZE = ("norm_topk_prob", "moe_renormalize", "norm_expert_weight")
_ACTIVATION = ("hidden_act", "hidden_activation", "activation_function", "mlp_hidden_act", "ffn_act_fn")
_NUMBERS_OF_NONE = (
    "n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts",
    "shared_expert_intermediate_size", "shared_intermediate_size", "moe_shared_expert_intermediate_size",
    "share_expert_dim", "moe_latent_size", "routed_expert_hidden_size", "moe_hidden_size",
    "moe_router_logit_softcapping", "zero_expert_num", "num_hash_layers", "swiglu_limit", "swiglu_limits",
    "swiglu_limits_shared", "swiglu_alpha", "moe_norm_min", "moe_normalize_expert_weights", "topk_method",
    "mlp_gate_softcap", "mlp_up_softcap", "shared_expert_combination_strategy", "expert_dtype",
    "activation_situ_beta", "activation_situ_linear_beta",
)  # fmt: skip
_FACTORS = (
    "routed_scaling_factor", "moe_routed_scaling_factor", "router_scaling_factor", "route_scale",
    "moe_router_scaling_factor", "n_group", "num_expert_group",
)  # fmt: skip
_SWITCHED_OFF = (
    "mlp_bias", "moe_bias", "router_bias", "apply_router_weight_on_input", "moe_apply_router_weight_on_input",
    "use_latent_moe", "latent_moe_use_norm", "shared_expert_gate",
)  # fmt: skip
_SWITCHED_ON = {
    "use_routing_bias": "correction_bias",
    "use_expert_bias": "correction_bias",
    "moe_router_enable_expert_bias": "correction_bias",
    "use_moe_router_bias": "correction_bias",
}
"""Flags that must be true where the layer has this tensor, and false where it has none."""


def check_options(config: Config, rule: Rule) -> None:
    """Raise for a field that would change what is computed and that was not asked for."""
    arguments = rule.arguments
    neutral: dict[str, tuple[Any, ...]] = dict.fromkeys(_SWITCHED_OFF, (False,))
    # Some configurations switch a number off by false.
    neutral |= dict.fromkeys(_NUMBERS_OF_NONE, (0, False, [], {}))
    neutral |= dict.fromkeys(_FACTORS, (1, False))
    neutral |= dict.fromkeys(_SCORING, (_SCORES.get(rule.name, arguments.get("scoring", "softmax")),))
    neutral |= dict.fromkeys(_RENORMALIZE, (arguments.get("renormalize", True),))
    neutral |= dict.fromkeys(_ACTIVATION, ("silu", "swish", {"name": "silu"}))
    neutral |= {name: (tensor in rule.tensors,) for name, tensor in _SWITCHED_ON.items()}
    for name, value in config.unread().items():
        choices = neutral.get(name)
        if choices is not None and not any(_is(value, choice) for choice in choices):
            raise config.error(name, repr(choices[0]), shorten(value))


def _is(value: Any, choice: Any) -> bool:
    if isinstance(value, list) and value and isinstance(choice, int):
        return all(item is None or _is(item, choice) for item in value)
    return isinstance(value, bool) == isinstance(choice, bool) and bool(value == choice)
