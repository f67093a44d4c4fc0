"""Small bfloat16 checkpoints of several model families, as real folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mxfp4moe.checkpoint.safetensors import save_file

HIDDEN, INTERMEDIATE, EXPERTS, TOP_K, LAYERS, VOCABULARY = 64, 32, 3, 2, 2, 11
BF16 = np.dtype(ml_dtypes.bfloat16)

Tensors = dict[str, "np.ndarray[Any, Any]"]

CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_experts": EXPERTS,
        "moe_intermediate_size": INTERMEDIATE,
        "intermediate_size": 4 * INTERMEDIATE,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "mixtral": {
        "architectures": ["MixtralForCausalLM"],
        "num_local_experts": EXPERTS,
        "intermediate_size": INTERMEDIATE,
    },
    "gpt_oss": {
        "architectures": ["GptOssForCausalLM"],
        "num_local_experts": EXPERTS,
        "intermediate_size": INTERMEDIATE,
        "swiglu_limit": 7.0,
    },
}


def write_model(folder: Path, rng: np.random.Generator, model_type: str, fused: bool = False) -> Tensors:
    """Write a sharded bfloat16 checkpoint with a tokenizer into `folder`; return its tensors."""
    layers = [_layer(f"model.layers.{layer}", rng, model_type, fused) for layer in range(LAYERS)]
    ends = {
        "model.embed_tokens.weight": _normal(rng, VOCABULARY, HIDDEN),
        "model.norm.weight": np.ones(HIDDEN, BF16),
        "lm_head.weight": _normal(rng, VOCABULARY, HIDDEN),
        "odd.bytes": rng.integers(0, 256, 3, np.uint8),
    }
    shards = [*layers, ends]
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, tensors in zip(names, shards, strict=True):
        save_file(folder / name, tensors, {"format": "pt"})
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    size = sum(array.nbytes for shard in shards for array in shard.values())
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": size}, "weight_map": weight_map},
    )
    config = {
        "model_type": model_type,
        "hidden_size": HIDDEN,
        "num_experts_per_tok": TOP_K,
        "num_hidden_layers": LAYERS,
        "vocab_size": VOCABULARY,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    }
    write_json(folder / "config.json", config | CONFIGS[model_type])
    (folder / "tokenizer.json").write_text('{"tokens": ["ä", "b"]}', encoding="utf-8")
    (folder / "merges.bin").write_bytes(b"weights of another format")
    (folder / "original").mkdir()
    return {name: array for shard in shards for name, array in shard.items()}


def _layer(prefix: str, rng: np.random.Generator, model_type: str, fused: bool) -> Tensors:
    mlp = f"{prefix}.{'block_sparse_moe' if model_type == 'mixtral' and not fused else 'mlp'}"
    names = ("w1", "w3", "w2") if model_type == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    result = {
        f"{prefix}.input_layernorm.weight": np.ones(HIDDEN, BF16),
        f"{prefix}.self_attn.q_proj.weight": _normal(rng, HIDDEN, HIDDEN),
        f"{mlp}.{'router' if model_type == 'gpt_oss' else 'gate'}.weight": _normal(rng, EXPERTS, HIDDEN),
    }
    if model_type == "gpt_oss":
        return result | {
            f"{mlp}.router.bias": _normal(rng, EXPERTS),
            f"{mlp}.experts.gate_up_proj": _normal(rng, EXPERTS, HIDDEN, 2 * INTERMEDIATE),
            f"{mlp}.experts.gate_up_proj_bias": _normal(rng, EXPERTS, 2 * INTERMEDIATE),
            f"{mlp}.experts.down_proj": _normal(rng, EXPERTS, INTERMEDIATE, HIDDEN),
            f"{mlp}.experts.down_proj_bias": _normal(rng, EXPERTS, HIDDEN),
        }
    if fused:
        return result | {
            f"{mlp}.experts.gate_up_proj": _normal(rng, EXPERTS, 2 * INTERMEDIATE, HIDDEN),
            f"{mlp}.experts.down_proj": _normal(rng, EXPERTS, HIDDEN, INTERMEDIATE),
        }
    shapes = ((INTERMEDIATE, HIDDEN), (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE))
    for expert in range(EXPERTS):
        for name, shape in zip(names, shapes, strict=True):
            result[f"{mlp}.experts.{expert}.{name}.weight"] = _normal(rng, *shape)
    return result


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, Any]:
    return rng.standard_normal(shape, np.float32).astype(BF16)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
