"""The small checkpoints of model types as the GGUF files that llama.cpp's converter makes of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf_bytes import Value, gguf_bytes
from model_folders import ModelFolder, load

Config = dict[str, Any]
Keys = dict[str, Value]
Tensors = dict[str, "np.ndarray[Any, Any]"]

_PARTS = {"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down", "w2": "down"}
_SHARED = r"(?:shared_experts?|shared_mlp|share_expert)\."
_BLOCKS = r"(?:(?:mlp|block_sparse_moe|feed_forward|ffn|mixer|moe)\.)?"
_ROUTERS = ("gate", "router", "router.gate", "router.layer", "gate.wg", "router.proj")
_VECTORS = {
    "router.bias": "ffn_gate_inp.bias",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "shared_expert_gate": "ffn_gate_inp_shexp.weight",
    "gate.tid2eid": "ffn_gate_tid2eid.weight",
    "fc1_latent_proj": "ffn_latent_down.weight",
    "fc2_latent_proj": "ffn_latent_up.weight",
}
_BIAS = re.compile(r".*(?:e_score_correction_bias|expert_bias|router_bias)|gate\.bias")
_TRANSPOSED = ("qwen3_vl_moe", "llama4", "llama4_text", "gpt_oss")


def _first(config: Config, *names: str, default: Any = None) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), default)


def _routing(config: Config) -> Keys:
    """What converters write of models with a sigmoid, groups, a factor and shared experts."""
    keys: Keys = {
        "expert_shared_count": _first(config, "n_shared_experts", "num_shared_experts", default=1),
        "expert_weights_norm": _first(
            config, "norm_topk_prob", "moe_renormalize", "route_norm", default=True
        ),
        "leading_dense_block_count": _first(config, "first_k_dense_replace", "num_dense_layers", default=0),
    }
    factors = ("routed_scaling_factor", "route_scale", "router_scaling_factor")
    factors += ("moe_router_scaling_factor", "moe_routed_scaling_factor")
    factor = _first(config, *factors)
    if factor is not None:
        keys["expert_weights_scale"] = float(factor)
    groups = _first(config, "n_group", "num_expert_group")
    if groups:
        keys |= {"expert_group_count": groups, "expert_group_used_count": config["topk_group"]}
    return keys


def _and(*more: Keys) -> Callable[[Config], Keys]:
    return lambda config: _routing(config) | {key: value for keys in more for key, value in keys.items()}


def _only(keys: Keys | None = None) -> Callable[[Config], Keys]:
    return lambda config: keys or {}


def _limits(*names: str, **keys: Value) -> Callable[[Config], Keys]:
    def both(config: Config) -> Keys:
        limits = [float(config["swiglu_limit"])] * config["num_hidden_layers"]
        return _routing(config) | {f"swiglu_clamp_{name}": limits for name in names} | keys

    return both


_SOFTMAX: Keys = {"expert_gating_func": 1}
_SIGMOID: Keys = {"expert_gating_func": 2}
_LENGTH: Keys = {"expert_shared_feed_forward_length": 48}

TYPES: dict[str, tuple[str, Callable[[Config], Keys]]] = {
    "afmoe": ("afmoe", _routing),
    "bailing_hybrid": ("bailingmoe3", _and(_SIGMOID)),
    "bailing_moe": ("bailingmoe2", _and(_SIGMOID)),
    "cohere2_moe": ("cohere2moe", _only({**_SOFTMAX, "expert_weights_norm": True})),
    "dbrx": ("dbrx", _only()),
    "deepseek_v2": ("deepseek2", _and(_SOFTMAX)),
    "deepseek_v3": ("deepseek2", _and(_SIGMOID)),
    "deepseek_v4": ("deepseek4", _limits("exp", "shexp", expert_gating_func=4, hash_layer_count=0)),
    "deepseek_v4_hash": ("deepseek4", _limits("exp", expert_gating_func=4, hash_layer_count=1)),
    "dots1": ("dots1", _and(_SIGMOID)),
    "ernie4_5_moe": ("ernie4_5-moe", _only({"expert_shared_count": 2, "interleave_moe_layer_step": 1})),
    "exaone_moe": ("exaone-moe", _and(_SIGMOID)),
    "gemma4": ("gemma4", lambda config: {"attention.layer_norm_rms_epsilon": config["rms_norm_eps"]}),
    "glm4_moe": ("glm4moe", _routing),
    "glm4_moe_lite": ("deepseek2", _and(_SIGMOID)),
    "glm4v_moe": ("glm4moe", _routing),
    "glm5_next": ("glm5-next", _limits("exp", "shexp")),
    "glm_moe_dsa": ("glm-dsa", _routing),
    "gpt_oss": ("gpt-oss", _only()),
    "granitemoe": ("granitemoe", _only()),
    "granitemoehybrid": ("granitehybrid", _only(_LENGTH)),
    "granitemoeshared": ("granitemoe", _only(_LENGTH)),
    "hunyuan_v1_moe": ("hunyuan-moe", _only()),
    "hy_v3": ("hy_v3", _routing),
    "hy_v4": ("hy_v4", _limits("exp")),
    "jamba": ("jamba", _only()),
    "kimi_k25": ("deepseek2", _and(_SIGMOID)),
    "kimi_linear": ("kimi-linear", _and(_SIGMOID)),
    "laguna": ("laguna", _routing),
    "lfm2_moe": ("lfm2moe", _only(_SIGMOID)),
    "llama4": ("llama4", _only({"interleave_moe_layer_step": 1})),
    "llama4_text": ("llama4", _only({"interleave_moe_layer_step": 1})),
    "mellum": ("mellum", _only()),
    "mimo_v2_flash": ("mimo2", _only(_SIGMOID)),
    "minimax": ("minimax-01", _only()),
    "minimax_m2": ("minimax-m2", _only(_SIGMOID)),
    "mistral4": ("mistral4", _routing),
    "mixtral": ("llama", _only()),
    "nemotron_h": ("nemotron_h_moe", _routing),
    "olmoe": ("olmoe", _only()),
    "qwen2_moe": ("qwen2moe", _only(_LENGTH)),
    "qwen3_5_moe": ("qwen35moe", _only(_LENGTH)),
    "qwen3_moe": ("qwen3moe", _only()),
    "qwen3_next": ("qwen3next", _only(_LENGTH)),
    "qwen3_omni_moe": ("qwen3vlmoe", _only()),
    "qwen3_vl_moe": ("qwen3vlmoe", _only()),
    "solar_open": ("glm4moe", _routing),
    "step3p5": ("step35", _and({"moe_every_n_layers": 1})),
    "step3p7": ("step35", _routing),
}
"""The architecture of each type, and the keys that a configuration becomes.

Left out are Phi-3.5-MoE and MiniMax-M3, whose small checkpoints have a tolerance and a limit that GGUF files
do not hold, and Cohere2-MoE with the sum of both, which the converter refuses.
"""


def write(path: Path, name: str) -> ModelFolder:
    """Write the GGUF file of the type `name`; return its checkpoint."""
    folder, (architecture, keys_of) = load(name), TYPES[name]
    block, config = f"blk.{folder.layer}", dict(folder.config)
    for section in ("thinker_config", "text_config"):
        config |= config.get(section, {})
    tensors = _tensors(folder, block, folder.config["model_type"])
    num_experts, hidden = tensors[f"{block}.ffn_gate_inp.weight"].shape
    keys: Keys = {
        "block_count": config.get("num_hidden_layers", folder.layer + 1),
        "embedding_length": hidden,
        "expert_count": num_experts,
        "expert_used_count": folder.golden["topk_ids"].shape[1],
        "expert_feed_forward_length": tensors[f"{block}.ffn_down_exps.weight"].shape[-1],
        **keys_of(config),
    }
    values = {f"{architecture}.{key}": value for key, value in keys.items()}
    path.write_bytes(gguf_bytes({"general.architecture": architecture, **values}, tensors))
    return folder


def _tensors(folder: ModelFolder, block: str, model_type: str) -> Tensors:
    found: Tensors = {}
    experts: dict[str, dict[int, np.ndarray[Any, Any]]] = {}
    for name, array in folder.tensors.items():
        inner = re.fullmatch(rf".*(?:layers|blocks)\.{folder.layer}\.{_BLOCKS}(.*?)(?:\.weight)?", name)
        if inner is None:
            continue
        expert = re.fullmatch(r"experts\.(\d+)\.(\w+)", inner[1])
        if expert is not None:
            experts.setdefault(_PARTS[expert[2]], {})[int(expert[1])] = array
        else:
            found |= _converted(inner[1], array, model_type)
    for part, matrices in experts.items():
        found[f"ffn_{part}_exps.weight"] = np.stack([matrices[expert] for expert in range(len(matrices))])
    return {f"{block}.{name}": np.ascontiguousarray(array) for name, array in found.items()}


def _converted(name: str, array: np.ndarray[Any, Any], model_type: str) -> Tensors:
    """The tensors that one of the block becomes; none for norms and what is beside."""
    if re.match(_SHARED, name):
        return _matrices(re.sub(_SHARED, "", name), array, "shexp")
    if name in _ROUTERS:
        return {"ffn_gate_inp.weight": array.astype(np.float32)}
    if name in _VECTORS:
        return {_VECTORS[name]: array.astype(np.int32 if array.dtype == np.int64 else np.float32)}
    if _BIAS.fullmatch(name):
        key = "exp_probs_b" if model_type == "hy_v3" else "exp_probs_b.bias"
        return {key: array.reshape(-1).astype(np.float32)}
    if name.startswith("experts.mlp."):  # of DBRX, all matrices one below the other
        key = {"w1": "gate", "v1": "up", "w2": "down"}[name.removeprefix("experts.mlp.")]
        each = array.reshape(8, -1, array.shape[-1])
        return {f"ffn_{key}_exps.weight": each.swapaxes(1, 2) if key == "down" else each}
    if array.ndim == 3 or name.endswith("_proj_bias"):
        if model_type in _TRANSPOSED and array.ndim == 3:
            array = array.swapaxes(1, 2)
        if model_type == "gpt_oss" and "gate_up" in name:
            array = np.concatenate([array[:, 0::2], array[:, 1::2]], axis=1)
        return _matrices(name.removeprefix("experts."), array, "exps")
    return {f"ffn_{_PARTS[name]}.weight": array} if name in _PARTS else {}


def _matrices(name: str, array: np.ndarray[Any, Any], suffix: str) -> Tensors:
    """The matrices of all experts, or of the shared one, with gate and up in two tensors."""
    kind = "bias" if name.endswith("_bias") else "weight"
    name = name.removesuffix("_bias")
    if name in ("gate_up_proj", "input_linear"):
        gate, up = np.split(array, 2, axis=0 if suffix == "shexp" else 1)
        return {f"ffn_gate_{suffix}.{kind}": gate, f"ffn_up_{suffix}.{kind}": up}
    return {f"ffn_{_PARTS.get(name, 'down')}_{suffix}.{kind}": array}
