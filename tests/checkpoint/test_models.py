"""Golden layers, written as the checkpoints of each source and read back."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import (
    E8M0,
    MODELS,
    PARTS,
    STORAGES,
    Written,
    mixtral,
    mixtral_weights,
    qwen3,
    qwen3_weights,
)
from golden_layers import check_against_golden, dequantize
from problems import rel_l2

import mxfp4moe as mx
from mxfp4moe import checkpoint
from mxfp4moe.checkpoint import LayerDescription


@pytest.mark.parametrize("name", MODELS)
def test_golden_checkpoint(isa: str, tmp_path: Path, name: str) -> None:
    written = MODELS[name]()
    layer = mx.MoELayer.from_checkpoint(written.write(tmp_path), written.layer)
    check_against_golden(layer, written.golden)


@pytest.mark.parametrize("name", ["deepseek-v3", "qwen3 compressed-tensors mxfp4"])
def test_golden_checkpoint_in_several_files(tmp_path: Path, name: str) -> None:
    written = MODELS[name]()
    layer = mx.MoELayer.from_checkpoint(written.write(tmp_path, num_files=5), written.layer)
    check_against_golden(layer, written.golden)


def rename_block(written: Written) -> None:
    """The names that models have inside a class with a head."""
    for name in list(written.tensors):
        written.tensors[f"model.{name}"] = written.tensors.pop(name)


def store_scales_as_bytes(written: Written) -> None:
    written.tensors.update({n: a.view(np.uint8) for n, a in written.tensors.items() if a.dtype == E8M0})


def name_shared_scales_as_usual(written: Written) -> None:
    for name in [name for name in written.tensors if re.search(r"shared_experts.*\.scale$", name)]:
        written.tensors[f"{name.removesuffix('scale')}weight_scale_inv"] = written.tensors.pop(name)


def name_formats_by_group(written: Written) -> None:
    quantization = written.config["quantization_config"]
    groups = {"group_0": {"format": "float-quantized"}, "group_1": {"format": quantization["format"]}}
    written.config["quantization_config"] = {
        **quantization,
        "format": "mixed-precision",
        "config_groups": groups,
    }


def leave_out_shared_size(written: Written) -> None:
    del written.config["text_config"]["shared_intermediate_size"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("deepseek-v4", rename_block),
        ("deepseek-v4", store_scales_as_bytes),
        ("deepseek-v4", name_shared_scales_as_usual),
        ("qwen3 compressed-tensors mxfp4", name_formats_by_group),
        ("qwen3 compressed-tensors nvfp4", name_formats_by_group),
        ("minimax-m3", leave_out_shared_size),
    ],
)
def test_golden_checkpoint_written_otherwise(
    tmp_path: Path, name: str, change: Callable[[Written], None]
) -> None:
    written = MODELS[name]()
    change(written)
    layer = mx.MoELayer.from_checkpoint(written.write(tmp_path), written.layer)
    check_against_golden(layer, written.golden)


@pytest.mark.parametrize("name", ["qwen3 bfloat16", "qwen3 fused", "mixtral float16", "gpt-oss bfloat16"])
def test_floats_quantized_while_loaded(tmp_path: Path, name: str) -> None:
    # The golden weights are MXFP4 values, which quantizing with the default rule gives back.
    written = MODELS[name]()
    layer = mx.MoELayer.from_checkpoint(written.write(tmp_path), written.layer, quantize="mxfp4")
    assert layer.experts.format == "mxfp4"
    check_against_golden(layer, written.golden)


QUANTIZERS: dict[str, Any] = {
    "mxfp4": mx.quantize_mxfp4,
    "mxfp8": mx.quantize_mxfp8,
    "fp8_block": lambda w: mx.quantize_fp8_block(w, block_shape=(128, 128)),
    "nvfp4": mx.quantize_nvfp4,
}


@pytest.mark.parametrize("kind", QUANTIZERS)
@pytest.mark.parametrize("storage", ["bfloat16", "float32", "fused"])
def test_quantizing_is_quantizing_each_matrix(tmp_path: Path, kind: str, storage: str) -> None:
    written = qwen3(storage)
    layer = mx.MoELayer.from_checkpoint(written.write(tmp_path), written.layer, quantize=kind)
    _, weights = qwen3_weights()
    gate, up, down = (QUANTIZERS[kind](weights[part].values()) for part in PARTS)
    options: dict[str, Any] = {"block_shape": (128, 128)} if kind == "fp8_block" else {}
    if kind == "nvfp4":
        options = {"w13_tensor_scale": np.stack([gate[2], up[2]], axis=-1), "w2_tensor_scale": down[2]}
    matrices = (gate[0], up[0]), (gate[1], up[1]), down[0], down[1]
    assert layer.experts == mx.pack_experts(*matrices, format=kind, **options)


# --- what is read, number by number -------------------------------------------------------------------------


@pytest.mark.parametrize("model", [qwen3, mixtral])
@pytest.mark.parametrize("storage", STORAGES)
def test_weights_are_read_exactly(tmp_path: Path, model: Any, storage: str) -> None:
    written = model(storage)
    parts = checkpoint.read_layer(written.write(tmp_path), written.layer)
    _, expected = qwen3_weights() if model is qwen3 else mixtral_weights()
    got = dequantize(parts.experts)
    for part in PARTS:
        assert np.array_equal(got[part], expected[part].values())


# --- what it computes, without kernels ----------------------------------------------------------------------


def expert(parts: LayerDescription, matrices: dict[str, np.ndarray], index: int, x: np.ndarray) -> np.ndarray:
    """One expert of MXFP4, FP8 or float weights without biases, in float64."""
    shared = len(matrices["gate"]) == 1
    limit = parts.shared_limit if shared else parts.limit
    gate, up = x @ matrices["gate"][index].T, x @ matrices["up"][index].T
    if limit is not None:
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    if parts.activation == "silu":
        hidden = gate / (1 + np.exp(-gate)) * up
    else:
        assert parts.activation == "swigluoai"
        hidden = gate / (1 + np.exp(-(parts.alpha or 1.702) * gate)) * (up + 1)
    return np.asarray(hidden @ matrices["down"][index].T)


@pytest.mark.parametrize("name", [n for n in MODELS if not n.startswith("gpt-oss")])
def test_parts_give_the_golden_result_in_float64(tmp_path: Path, name: str) -> None:
    written = MODELS[name]()
    golden = written.golden
    parts = checkpoint.read_layer(written.write(tmp_path), written.layer)
    hidden_states = golden["hidden_states"].astype(np.float64)
    logits = (hidden_states @ parts.router_weight.astype(np.float64).T).astype(np.float32)
    second = golden["input_ids"] if parts.routing == "hash_topk" else parts.top_k
    weights, ids = getattr(mx, parts.routing)(logits, second, **parts.routing_arguments)
    matrices = {part: m.astype(np.float64) for part, m in dequantize(parts.experts).items()}
    result = np.zeros_like(hidden_states)
    for token, slot in np.ndindex(ids.shape):
        x = hidden_states[token]
        result[token] += weights[token, slot] * expert(parts, matrices, ids[token, slot], x)
    result *= parts.routed_scaling_factor
    if parts.shared_experts is not None:
        matrices = {part: m.astype(np.float64) for part, m in dequantize(parts.shared_experts).items()}
        result += expert(parts, matrices, 0, hidden_states)
    # The golden result is float32 arithmetic in three products of at most 256 terms, and so are its logits.
    assert rel_l2(result, golden["expected"]) <= 3 * np.sqrt(256) * 2.0**-24 + 2.0**-20
