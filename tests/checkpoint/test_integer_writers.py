"""Integer layouts as several programs write them: their configurations, zero points, biases of zeros."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import PARTS
from golden_layers import dequantize
from integer_storages import BLOCK, CASES, written

import mxfp4moe as mx
from mxfp4moe import checkpoint

# What GPTQModel and AutoRound write beside the members that all writers have.
WRITERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gptqmodel": (
        "gptq, zeros",
        {"method": "gptq", "format": "gptq", "pack_dtype": "int32", "lm_head": False, "hyb_act": False},
    ),
    "gptqmodel, awq": (
        "awq",
        {
            "method": "awq",
            "format": "gemm",
            "checkpoint_format": "gemm",
            "pack_dtype": "int32",
            "desc_act": False,
            "sym": False,
            "lm_head": False,
            "meta": {"quantizer": ["gptqmodel:5.0"]},
        },
    ),
    "auto-round, gptq": ("gptq", {"data_type": "int", "provider": "auto-round", "autoround_version": "0.9"}),
    "auto-round, awq": ("awq", {"data_type": "int", "provider": "auto-round", "sym": False, "iters": 200}),
    "auto-round": (
        "auto-round auto_round",
        {
            "supported_types": ["Linear"],
            "static_kv_dtype": "fp8",
            "act_bits": 16,
            "enable_minmax_tuning": True,
        },
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_configurations_of_other_writers(tmp_path: Path, name: str) -> None:
    stored, members = WRITERS[name]
    model, weights = written(CASES[stored])
    model.config["quantization_config"] |= members
    got = dequantize(checkpoint.read_layer(model.write(tmp_path)).experts)
    for part, ints in weights.items():
        assert np.array_equal(got[part], ints.values())


def test_awq_without_zero_points(tmp_path: Path) -> None:
    """They are stored all the same."""
    model, weights = written(CASES["awq"]._replace(symmetric=True))
    model.config["quantization_config"] |= {"zero_point": False, "sym": True}
    experts = checkpoint.read_layer(model.write(tmp_path)).experts
    assert "w13_zero_points" not in experts.arguments()
    got = dequantize(experts)
    for part, ints in weights.items():
        assert np.array_equal(got[part], ints.values())


@pytest.mark.parametrize("name", ["gptq, ordered", "awq", "ct 4 bits", "ct int"])
def test_biases_of_zeros(tmp_path: Path, name: str) -> None:
    """AutoGPTQ stores them for models that have none; others would change the result."""
    model, _ = written(CASES[name])
    expected = checkpoint.read_layer(model.write(tmp_path / "without")).experts.arguments()
    for expert, (part, rows) in itertools.product(range(4), zip(PARTS, (192, 192, 128), strict=True)):
        model.tensors[f"{BLOCK}.experts.{expert}.{part}_proj.bias"] = np.zeros(rows, np.float16)
    got = checkpoint.read_layer(model.write(tmp_path / "with")).experts.arguments()
    assert mx.pack_experts(**got) == mx.pack_experts(**expected)
    bias = f"{BLOCK}.experts.2.down_proj.bias"
    for value in (-1.0, 2.0**-24, np.nan):
        model.tensors[bias] = np.zeros(128, np.float16)
        model.tensors[bias][127] = value
        with pytest.raises(
            ValueError, match=f"{bias}: expected no bias but zeros, as this model type has none"
        ):
            checkpoint.read_layer(model.write(tmp_path / "other"))
    model.tensors[bias] = np.zeros(127, np.float16)
    with pytest.raises(ValueError, match=rf"{bias}: expected .* \[128\], got F16 \[127\]"):
        checkpoint.read_layer(model.write(tmp_path / "other"))


@pytest.mark.parametrize("dotted", [True, False])
@pytest.mark.parametrize("name", ["ct 4 bits", "ct 4 bits, zeros", "ct 8 bits, channel", "ct int, zeros"])
def test_experts_in_one_tensor(tmp_path: Path, name: str, dotted: bool) -> None:
    model, weights = written(CASES[name])
    ends = {tensor.rpartition(".")[2] for tensor in model.tensors if ".experts." in tensor}
    for end in ends:
        of_part = {
            part: np.stack([model.tensors.pop(f"{BLOCK}.experts.{e}.{part}_proj.{end}") for e in range(4)])
            for part in PARTS
        }
        suffix = f".{end}" if dotted else "" if end == "weight" else end.replace("weight", "", 1)
        gate_up = np.concatenate([of_part["gate"], of_part["up"]], axis=1)
        model.tensors[f"{BLOCK}.experts.gate_up_proj{suffix}"] = gate_up
        model.tensors[f"{BLOCK}.experts.down_proj{suffix}"] = of_part["down"]
    got = dequantize(checkpoint.read_layer(model.write(tmp_path)).experts)
    for part, ints in weights.items():
        assert np.array_equal(got[part], ints.values())
