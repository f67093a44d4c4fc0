"""The golden mixture-of-experts blocks of tests/data as problems."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
from paths import DATA
from problems import Problem, pack_nibbles

from mxfp4moe.reference import ExpertArrays

NAMES = ("gptoss", "qwen3_mxfp4", "mixtral_gguf", "deepseek_v4")


class Golden(NamedTuple):
    problem: Problem  # hidden states in float32
    options: dict[str, Any]  # of fused_experts
    expected: np.ndarray
    router_logits: np.ndarray
    renormalize: bool | None  # of topk_softmax; None: another routing


def load(name: str) -> Golden:
    with np.load(next(DATA.glob(f"{name}*.npz"))) as file:
        data = dict(file)
    arrays, renormalize = {
        "gptoss": _gptoss,
        "qwen3_mxfp4": _qwen3,
        "mixtral_gguf": _mixtral,
        "deepseek_v4": _deepseek_v4,
    }[name](data)
    config = json.loads(str(data["config"]))
    options: dict[str, Any] = {}
    if name == "gptoss":
        options = {"activation": "swigluoai", "alpha": config["alpha"], "limit": config["limit"]}
    if name == "deepseek_v4":
        options = {"limit": config["swiglu_limit"]}
    expected = data.get("expected_routed_only", data["expected"])
    problem = Problem(data["hidden_states"], arrays, data["topk_weights"], data["topk_ids"])
    return Golden(problem, options, expected, data["router_logits"], renormalize)


def _gptoss(data: dict[str, np.ndarray]) -> tuple[ExpertArrays, bool]:
    blocks = [data[f"{name}_proj_blocks"] for name in ("gate_up", "down")]
    w13, w2 = (b.reshape(*b.shape[:2], -1) for b in blocks)
    scales = data["gate_up_proj_scales"], data["down_proj_scales"]
    biases = data["gate_up_proj_bias"], data["down_proj_bias"]
    return ExpertArrays(w13, scales[0], w2, scales[1], *biases, "interleaved"), True


def _qwen3(data: dict[str, np.ndarray]) -> tuple[ExpertArrays, bool]:
    blocks = [data[f"{name}_proj_weight_packed"] for name in ("gate", "up", "down")]
    scales = [data[f"{name}_proj_weight_scale"] for name in ("gate", "up", "down")]
    return _concatenated(blocks, scales), False


def _mixtral(data: dict[str, np.ndarray]) -> tuple[ExpertArrays, bool]:
    blocks, scales = zip(
        *(_split_gguf(data[f"{name}_gguf_mxfp4"]) for name in ("w1", "w3", "w2")), strict=True
    )
    return _concatenated(blocks, scales), True


def _deepseek_v4(data: dict[str, np.ndarray]) -> tuple[ExpertArrays, None]:
    blocks = [data[f"experts_{name}_weight"].view(np.uint8) for name in ("w1", "w3", "w2")]
    scales = [data[f"experts_{name}_scale"] for name in ("w1", "w3", "w2")]
    return _concatenated(blocks, scales), None


def _concatenated(blocks: Any, scales: Any) -> ExpertArrays:
    gate, up, down = blocks
    w13_scales = np.concatenate(scales[:2], axis=1)
    return ExpertArrays(np.concatenate([gate, up], axis=1), w13_scales, down, scales[2])


def _split_gguf(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blocks with the even k in the low nibble, and scales, of GGUF's 17-byte blocks."""
    blocks = data.reshape(*data.shape[:-1], -1, 17)
    quants = blocks[..., 1:]
    codes = np.concatenate([quants & 15, quants >> 4], axis=-1)  # byte j: elements j and j + 16
    return pack_nibbles(codes.reshape(*data.shape[:-1], -1)), blocks[..., 0]
