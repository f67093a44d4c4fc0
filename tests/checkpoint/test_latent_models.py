"""Kimi-K3 and Nemotron-3 Super by their published configurations, against plain float64 arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from problems import rel_l2

import mxfp4moe as mx
from mxfp4moe.checkpoint.safetensors import save_file

HIDDEN, LATENT, INTERMEDIATE, EXPERTS, TOP_K, TOKENS = 96, 64, 32, 8, 3, 16
EPS = 1e-5
# Each of the sums has few terms, and hidden states are rounded before and after the latent experts.
BOUND = 4.5e-3
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

KIMI_K3: dict[str, Any] = {
    "model_type": "kimi_k3",
    "architectures": ["KimiK3ForConditionalGeneration"],
    "vision_config": {"hidden_size": 1152, "model_type": "kimi_k3_vision"},
    "text_config": {
        "model_type": "kimi_linear",
        "activation_situ_beta": 4.0,
        "activation_situ_linear_beta": 25.0,
        "first_k_dense_replace": 1,
        "hidden_act": "situ",
        "hidden_size": HIDDEN,
        "intermediate_size": 4 * INTERMEDIATE,
        "latent_moe_use_norm": True,
        "moe_intermediate_size": INTERMEDIATE,
        "moe_layer_freq": 1,
        "moe_renormalize": True,
        "moe_router_activation_func": "sigmoid",
        "num_expert_group": 1,
        "num_experts": EXPERTS,
        "num_experts_per_token": TOP_K,
        "num_hidden_layers": 2,
        "num_nextn_predict_layers": 0,
        "num_shared_experts": 2,
        "rms_norm_eps": EPS,
        "routed_expert_hidden_size": LATENT,
        "routed_scaling_factor": 2.5,
        "topk_group": 1,
        "use_grouped_topk": True,
    },
}
NEMOTRON_3: dict[str, Any] = {
    "model_type": "nemotron_h",
    "hidden_size": HIDDEN,
    "intermediate_size": 4 * INTERMEDIATE,
    "layers_block_type": ["mamba", "moe"],
    "mamba_hidden_act": "silu",
    "mlp_bias": False,
    "mlp_hidden_act": "relu2",
    "moe_intermediate_size": INTERMEDIATE,
    "moe_latent_size": LATENT,
    "moe_shared_expert_intermediate_size": 2 * INTERMEDIATE,
    "mtp_layers_block_type": ["attention", "moe"],
    "n_group": 1,
    "n_groups": 8,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_experts_per_tok": TOP_K,
    "num_hidden_layers": 2,
    "num_nextn_predict_layers": 2,
    "routed_scaling_factor": 2.5,
    "topk_group": 1,
    "use_bias": False,
}
NAMES = {
    "kimi_k3": {
        "block": "language_model.model.layers.1.block_sparse_moe.",
        "experts": ("w1", "w3", "w2"),
        "shared": ("gate_proj", "up_proj", "down_proj"),
        "latent": ("routed_expert_down_proj", "routed_expert_up_proj"),
    },
    "nemotron_h": {
        "block": "backbone.layers.1.mixer.",
        "experts": ("up_proj", "down_proj"),
        "shared": ("up_proj", "down_proj"),
        "latent": ("fc1_latent_proj", "fc2_latent_proj"),
    },
}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def mlp(matrices: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    """SiTU of gate and up, or the square of what is above 0 of up; then down."""
    *first, down = (matrix.astype(np.float64) for matrix in matrices)
    if len(first) == 1:
        return np.asarray(np.maximum(x @ first[0].T, 0) ** 2 @ down.T)
    gate, up = (x @ matrix.T for matrix in first)
    return np.asarray((4 * np.tanh(gate / 4) * sigmoid(gate) * 25 * np.tanh(up / 25)) @ down.T)


class Problem:
    """A layer with random weights as its tensors, and what it computes."""

    def __init__(self, config: dict[str, Any], rng: np.random.Generator) -> None:
        self.config, self.names = json.loads(json.dumps(config)), NAMES[config["model_type"]]
        self.block = str(self.names["block"])
        scale = 8.0 if len(self.names["experts"]) == 3 else 1.0  # so that the caps of SiTU count

        def draw(*shape: int) -> np.ndarray:
            return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(BFLOAT16)

        gated = len(self.names["experts"]) == 3
        shapes = [(INTERMEDIATE, LATENT)] * (1 + gated) + [(LATENT, INTERMEDIATE)]
        factors = [scale] * (1 + gated) + [1.0]
        self.experts = [
            [(f * draw(*shape)).astype(BFLOAT16) for f, shape in zip(factors, shapes, strict=True)]
            for _ in range(EXPERTS)
        ]
        size = 2 * INTERMEDIATE
        self.shared = [draw(size, HIDDEN) for _ in range(1 + gated)] + [draw(HIDDEN, size)]
        self.router, self.bias = draw(EXPERTS, HIDDEN), rng.standard_normal(EXPERTS).astype(np.float32) / 4
        self.down, self.up, self.norm = (
            draw(LATENT, HIDDEN),
            draw(HIDDEN, LATENT),
            draw(LATENT) + BFLOAT16.type(1),
        )
        self.hidden_states = rng.standard_normal((TOKENS, HIDDEN)).astype(BFLOAT16).astype(np.float32)

    def tensors(self) -> dict[str, np.ndarray]:
        down, up = self.names["latent"]
        result = {
            "gate.weight": self.router,
            "gate.e_score_correction_bias": self.bias,
            f"{down}.weight": self.down,
            f"{up}.weight": self.up,
        }
        if "text_config" in self.config:
            result["routed_expert_norm.weight"] = self.norm
        for number, expert in enumerate(self.experts):
            names = self.names["experts"]
            result |= {f"experts.{number}.{n}.weight": m for n, m in zip(names, expert, strict=True)}
        names = self.names["shared"]
        result |= {f"shared_experts.{n}.weight": m for n, m in zip(names, self.shared, strict=True)}
        return {f"{self.block}{name}": array for name, array in result.items()}

    def expected(self) -> np.ndarray:
        x = self.hidden_states.astype(np.float64)
        scores = sigmoid(x @ self.router.astype(np.float64).T)
        ids = np.argsort(-(scores + self.bias), axis=1, kind="stable")[:, :TOP_K]
        weights = np.take_along_axis(scores, ids, axis=1)
        weights = 2.5 * weights / weights.sum(axis=1, keepdims=True)
        latent = x @ self.down.astype(np.float64).T
        routed = np.zeros_like(latent)
        for token, slot in np.ndindex(ids.shape):
            routed[token] += weights[token, slot] * mlp(self.experts[ids[token, slot]], latent[token])
        if "text_config" in self.config:
            routed /= np.sqrt((routed**2).mean(axis=1, keepdims=True) + EPS)
            routed *= self.norm.astype(np.float64)
        return np.asarray(routed @ self.up.astype(np.float64).T + mlp(self.shared, x))

    def write(self, folder: Path, tensors: dict[str, np.ndarray]) -> Path:
        (folder / "config.json").write_text(json.dumps(self.config))
        save_file(folder / "model.safetensors", tensors)
        return folder


@pytest.mark.parametrize("config", [KIMI_K3, NEMOTRON_3], ids=lambda config: config["model_type"])
def test_latent_model(isa: str, tmp_path: Path, rng: np.random.Generator, config: dict[str, Any]) -> None:
    problem = Problem(config, rng)
    folder = problem.write(tmp_path, problem.tensors())
    assert mx.checkpoint.open(folder).moe_layers == (1,)
    layer = mx.MoELayer.from_checkpoint(folder, layer=1)
    assert rel_l2(layer(problem.hidden_states), problem.expected()) <= BOUND


def test_kimi_k3_in_mxfp4(tmp_path: Path, rng: np.random.Generator) -> None:
    """Published in compressed-tensors: the routed experts alone are quantized."""
    problem = Problem(KIMI_K3, rng)
    tensors = problem.tensors()
    for number, expert in enumerate(problem.experts):
        for i, (name, matrix) in enumerate(zip(("w1", "w3", "w2"), expert, strict=True)):
            codes, scales = mx.quantize_mxfp4(matrix.astype(np.float32))
            problem.experts[number][i] = mx.dequantize_mxfp4(codes, scales)
            full = f"{problem.block}experts.{number}.{name}"
            del tensors[f"{full}.weight"]
            tensors |= {f"{full}.weight_packed": codes, f"{full}.weight_scale": scales}
    problem.config["text_config"]["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "mxfp4-pack-quantized",
        "ignore": ["lm_head", "re:.*shared_experts.*", "re:.*self_attn.*", "re:.*latent.*"],
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "float", "group_size": 32}}
        },
    }
    layer = mx.MoELayer.from_checkpoint(problem.write(tmp_path, tensors), layer=1)
    assert layer.experts.format == "mxfp4"
    assert layer.shared_experts is not None and layer.shared_experts.format == "bf16"
    assert rel_l2(layer(problem.hidden_states), problem.expected()) <= BOUND


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"latent_moe_use_norm": False}, "routed_expert_norm"),
        ({"routed_expert_hidden_size": 32}, "routed_expert_hidden_size"),
        ({"use_latent_moe": False}, "routed_expert_hidden_size|use_latent_moe"),
        ({"hidden_act": "silu"}, "activation_situ_beta"),
        ({"moe_router_activation_func": "softmax"}, "moe_router_activation_func"),
    ],
)
def test_contradictions_are_refused(
    tmp_path: Path, rng: np.random.Generator, changes: dict[str, Any], field: str
) -> None:
    problem = Problem(KIMI_K3, rng)
    problem.config["text_config"] |= changes
    folder = problem.write(tmp_path, problem.tensors())
    with pytest.raises(ValueError, match=field):
        mx.MoELayer.from_checkpoint(folder, layer=1)
