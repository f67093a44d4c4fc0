"""Checkpoints under the names that transformers 5 writes are read as those that are published."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import BFLOAT16, MODELS, PARTS, Tensors, Written, minimax_m2, qwen3, qwen3_weights
from golden_layers import check_against_golden, dequantize

import mxfp4moe as mx
from mxfp4moe import checkpoint
from mxfp4moe.checkpoint import ExpertWeights, LayerDescription


def bfloat16(weights: ExpertWeights) -> dict[str, np.ndarray]:
    """The matrices of all experts, which bfloat16 holds exactly."""
    matrices = dequantize(weights)
    assert all(np.array_equal(m, m.astype(BFLOAT16).astype(np.float32)) for m in matrices.values())
    return {part: m.astype(BFLOAT16) for part, m in matrices.items()}


def fused(experts: str, matrices: dict[str, np.ndarray], transposed: bool = False) -> Tensors:
    gate_up = np.concatenate([matrices["gate"], matrices["up"]], axis=1)
    tensors = {f"{experts}.gate_up_proj": gate_up, f"{experts}.down_proj": matrices["down"]}
    if transposed:
        return {name: np.ascontiguousarray(a.transpose(0, 2, 1)) for name, a in tensors.items()}
    return tensors


def renamed(block: str, parts: LayerDescription, correction_bias: str) -> Tensors:
    """A block as transformers 5 keeps it in memory, and saves it if not told to convert it back."""
    tensors = fused(f"{block}.experts", bfloat16(parts.experts))
    tensors[f"{block}.gate.weight"] = parts.router_weight
    for argument, name in (("correction_bias", correction_bias), ("tid2eid", "gate.tid2eid")):
        if argument in parts.routing_arguments:
            tensors[f"{block}.{name}"] = parts.routing_arguments[argument]
    if parts.shared_experts is not None:
        gate, up, down = (m[0] for m in bfloat16(parts.shared_experts).values())
        shared = f"{block}.shared_experts"
        if parts.activation == "swigluoai":  # MiniMax-M3
            tensors[f"{shared}.gate_up_proj.weight"] = np.concatenate([gate, up])
        else:
            tensors |= {f"{shared}.gate_proj.weight": gate, f"{shared}.up_proj.weight": up}
        tensors[f"{shared}.down_proj.weight"] = down
    return tensors


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    return dict(config["text_config"])


def layers_by_name(config: dict[str, Any]) -> dict[str, Any]:
    """As transformers writes which layers have which router; the last of them is not by hash."""
    kinds = ["hash_moe"] * 3 + ["moe"] * (config["num_hidden_layers"] - 3)
    return {**{k: v for k, v in config.items() if k != "num_hash_layers"}, "mlp_layer_types": kinds}


def by_score(written: Written) -> Written:
    """DeepSeek-V4 with the router of its later layers."""
    tensors = dict(written.tensors)
    del tensors["layers.2.ffn.gate.tid2eid"]
    tensors["layers.2.ffn.gate.bias"] = np.linspace(-1, 1, written.config["n_routed_experts"]).astype("f4")
    return written._replace(config={**written.config, "num_hash_layers": 0}, tensors=tensors, golden={})


IN_THE_GATE, BESIDE_IT = "gate.e_score_correction_bias", "e_score_correction_bias"
STYLES: dict[str, tuple[Callable[[], Written], Callable[[dict[str, Any]], dict[str, Any]], str, str]] = {
    "minimax-m2": (minimax_m2, dict, "model", BESIDE_IT),
    "minimax-m3": (MODELS["minimax-m3"], dict, "model.language_model", IN_THE_GATE),
    "minimax-m3 text": (MODELS["minimax-m3"], text_config, "model", IN_THE_GATE),
    "deepseek-v4 by hash": (MODELS["deepseek-v4"], layers_by_name, "model", IN_THE_GATE),
    "deepseek-v4 by score": (lambda: by_score(MODELS["deepseek-v4"]()), dict, "model", IN_THE_GATE),
}


@pytest.mark.parametrize("case", STYLES)
def test_names_of_transformers(tmp_path: Path, case: str) -> None:
    make, edit, prefix, correction_bias = STYLES[case]
    published = make()
    layer = published.layer
    parts = checkpoint.read_layer(published.write(tmp_path / "published"), layer)
    config = edit({k: v for k, v in published.config.items() if k != "quantization_config"})
    tensors = renamed(f"{prefix}.layers.{layer}.mlp", parts, correction_bias)
    folder = Written(config, tensors, layer, published.golden).write(tmp_path / "transformers")
    got = checkpoint.read_layer(folder, layer)
    assert np.array_equal(got.router_weight, parts.router_weight)
    assert got.routing == parts.routing
    assert got.routing_arguments.keys() == parts.routing_arguments.keys()
    for name, value in parts.routing_arguments.items():
        assert np.array_equal(got.routing_arguments[name], value)
    pairs = [(got.experts, parts.experts)]
    if parts.shared_experts is not None:
        assert got.shared_experts is not None
        pairs.append((got.shared_experts, parts.shared_experts))
    for ours, theirs in pairs:
        assert ours.format == "bf16"
        a, b = dequantize(ours), dequantize(theirs)
        assert all(np.array_equal(a[part], b[part]) for part in PARTS)
    if case in ("minimax-m3", "minimax-m3 text", "deepseek-v4 by hash"):  # the others have no golden result
        check_against_golden(mx.MoELayer.from_checkpoint(folder, layer), published.golden)


# --- types whose fused tensors come in two layouts ----------------------------------------------------------


def qwen3_vl(
    matrices: dict[str, np.ndarray], transposed: bool, is_text: bool = False, **fields: Any
) -> tuple[dict[str, Any], Tensors]:
    """Layer 1 of Qwen3-VL-MoE, and its configuration, without a golden result."""
    experts, intermediate, hidden = matrices["gate"].shape
    text = {
        "model_type": "qwen3_vl_moe_text",
        "hidden_size": hidden,
        "moe_intermediate_size": intermediate,
        "intermediate_size": 3 * intermediate,
        "num_experts": experts,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "hidden_act": "silu",
        **fields,
    }
    block = f"model.{'' if is_text else 'language_model.'}layers.1.mlp"
    tensors = fused(f"{block}.experts", matrices, transposed)
    tensors[f"{block}.gate.weight"] = np.eye(experts, hidden, dtype=np.float32).astype(BFLOAT16)
    return text if is_text else {"model_type": "qwen3_vl_moe", "text_config": text}, tensors


def random_matrices(rng: np.random.Generator, hidden: int, intermediate: int) -> dict[str, np.ndarray]:
    shapes = {"gate": (intermediate, hidden), "up": (intermediate, hidden), "down": (hidden, intermediate)}
    return {part: rng.standard_normal((3, *shape)).astype(BFLOAT16) for part, shape in shapes.items()}


# With the first sizes gate_up_proj has the same shape in both layouts, with the second ones down_proj.
@pytest.mark.parametrize("sizes", [(128, 64), (64, 64), (64, 128), (96, 32)])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("is_text", [False, True])
def test_both_shapes_decide(
    tmp_path: Path, rng: np.random.Generator, sizes: tuple[int, int], transposed: bool, is_text: bool
) -> None:
    matrices = random_matrices(rng, *sizes)
    config, tensors = qwen3_vl(matrices, transposed, is_text)
    parts = checkpoint.read_layer(Written(config, tensors, 1, {}).write(tmp_path), 1)
    got = dequantize(parts.experts)
    assert all(np.array_equal(got[part], matrices[part].astype(np.float32)) for part in PARTS)
    assert parts.routing_arguments == {"renormalize": True}


def test_the_layout_fits_the_configuration(tmp_path: Path, rng: np.random.Generator) -> None:
    matrices = random_matrices(rng, 128, 64)
    rows, columns = (qwen3_vl(matrices, transposed)[1] for transposed in (False, True))
    config, _ = qwen3_vl(matrices, True)
    experts = "model.language_model.layers.1.mlp.experts"
    name = f"{experts}.down_proj"
    config["text_config"]["moe_intermediate_size"] = 32
    message = (
        f"tensors {experts}.gate_up_proj and {name}: expected [3, 128, 64] and [3, 32, 128] or "
        "[3, 64, 128] and [3, 128, 32], got [3, 128, 128] and "
    )
    for tensors, shape in ((rows, "[3, 128, 64]"), (columns, "[3, 64, 128]")):
        folder = Written(config, tensors, 1, {}).write(tmp_path)
        with pytest.raises(ValueError, match=re.escape(message + shape)):
            checkpoint.read_layer(folder, 1)


def test_one_layout_is_never_taken_for_the_other(tmp_path: Path) -> None:
    """The transposed tensors of one type are refused in another, which has no such checkpoints."""
    _, weights = qwen3_weights()
    matrices = {part: w.values().astype(BFLOAT16) for part, w in weights.items()}
    written = qwen3("fused")
    written.tensors.update(fused("model.layers.1.mlp.experts", matrices, transposed=True))
    with pytest.raises(ValueError, match=r"experts.gate_up_proj: expected BF16 or F16 or F32 \[.*, got BF16"):
        checkpoint.read_layer(written.write(tmp_path), 1)


def test_weights_that_are_not_normalized_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    config, tensors = qwen3_vl(random_matrices(rng, 64, 32), True, norm_topk_prob=False)
    with pytest.raises(ValueError, match="text_config.norm_topk_prob: expected True, got False"):
        checkpoint.read_layer(Written(config, tensors, 1, {}).write(tmp_path), 1)


# --- float16 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["mxfp4", "floats"])
def test_gpt_oss_in_float16(tmp_path: Path, storage: str) -> None:
    written = MODELS["gpt-oss" if storage == "mxfp4" else "gpt-oss bfloat16"]()
    for name, array in written.tensors.items():
        if array.dtype == BFLOAT16:
            half = array.astype(np.float16)
            assert np.array_equal(half.astype(np.float32), array.astype(np.float32))
            written.tensors[name] = half
    layer = mx.MoELayer.from_checkpoint(written.write(tmp_path), written.layer)
    check_against_golden(layer, written.golden)
