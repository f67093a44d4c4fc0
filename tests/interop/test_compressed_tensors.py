"""The package compressed-tensors reads what `mxfp4moe quantize` writes, and what it writes is read here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mxfp4moe as mx
from mxfp4moe.checkpoint.huggingface import HuggingFaceCheckpoint
from mxfp4moe.checkpoint.model_folder import ModelFolder
from mxfp4moe.checkpoint.safetensors import SafetensorsFile, save_file
from mxfp4moe.cli import main

torch = pytest.importorskip("torch", reason="the package torch is not installed")
compressed_tensors = pytest.importorskip(
    "compressed_tensors", reason="the package compressed-tensors is not installed"
)
from compressed_tensors.compressors import BaseCompressor  # noqa: E402
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme  # noqa: E402
from compressed_tensors.utils import match_name  # noqa: E402

BF16 = ml_dtypes.bfloat16
HIDDEN, INTERMEDIATE, EXPERTS = 256, 128, 2
CONFIG = {
    "model_type": "qwen3_moe",
    "hidden_size": HIDDEN,
    "moe_intermediate_size": INTERMEDIATE,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 1,
    "norm_topk_prob": True,
}
BLOCK = "model.layers.0.mlp"
SHAPES = {
    "gate_proj": (INTERMEDIATE, HIDDEN),
    "up_proj": (INTERMEDIATE, HIDDEN),
    "down_proj": (HIDDEN, INTERMEDIATE),
}
MATRICES = {f"{BLOCK}.experts.{e}.{part}": shape for e in range(EXPERTS) for part, shape in SHAPES.items()}


def write(folder: Path, tensors: dict[str, np.ndarray], **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    router = {f"{BLOCK}.gate.weight": np.ones((EXPERTS, HIDDEN), BF16)}
    save_file(folder / "model.safetensors", router | tensors)
    return folder


def as_torch(array: np.ndarray) -> Any:
    """A tensor of the same bits; NumPy has no bfloat16 and no float8 that torch takes."""
    views = {"bfloat16": (np.int16, torch.bfloat16), "float8_e4m3fn": (np.uint8, torch.float8_e4m3fn)}
    if array.dtype.name not in views:
        return torch.from_numpy(array.copy())
    plain, dtype = views[array.dtype.name]
    return torch.from_numpy(array.view(plain).copy()).view(dtype)


def as_numpy(tensor: Any) -> np.ndarray:
    views = {torch.bfloat16: (torch.int16, BF16), torch.float8_e4m3fn: (torch.uint8, ml_dtypes.float8_e4m3fn)}
    if tensor.dtype not in views:
        return np.asarray(tensor.contiguous().numpy())
    plain, dtype = views[tensor.dtype]
    return np.asarray(tensor.contiguous().view(plain).numpy().view(dtype))


def read(folder: Path, name: str) -> np.ndarray:
    """A matrix as this package reads it, in float32."""
    checkpoint = HuggingFaceCheckpoint(ModelFolder(folder))
    return checkpoint.scheme.of(name).read_floats(checkpoint.folder, name, MATRICES[name])


@pytest.mark.parametrize(
    "options", ["mxfp4", "mxfp8", "nvfp4", "int4", "int4 --group-size 128", "int4 --group-size -1", "int8",
                "int8 --group-size -1"],
)  # fmt: skip
def test_what_quantize_writes(tmp_path: Path, rng: np.random.Generator, options: str) -> None:
    tensors = {f"{name}.weight": rng.standard_normal(shape).astype(BF16) for name, shape in MATRICES.items()}
    source, result = write(tmp_path / "a", tensors), tmp_path / "b"
    assert main(["quantize", str(source), str(result), "--format", *options.split()]) == 0
    fields = json.loads((result / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(fields)
    (scheme,) = config.config_groups.values()
    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    written = dict(SafetensorsFile(result / "model.safetensors").items())
    for name in MATRICES:
        assert any(match_name(name, target) for target in scheme.targets)
        own = {
            n.removeprefix(f"{name}."): as_torch(a) for n, a in written.items() if n.startswith(f"{name}.")
        }
        assert set(own) <= {"weight", *compressor.compression_param_names(scheme)}
        got = as_numpy(compressor.decompress(own, scheme)["weight"]).astype(np.float64)
        expected = read(result, name).astype(np.float64)
        # Results there are bfloat16; NVFP4 divides scales in float32, multiplies, and rounds to bfloat16.
        roundings = 2.0**-8 + (4 * 2.0**-24 if options == "nvfp4" else 2.0**-24)
        assert (abs(got - expected) <= roundings * abs(expected)).all()
        if options != "nvfp4":
            assert np.array_equal(got, read(result, name).astype(BF16).astype(np.float64))
    assert f"{BLOCK}.gate" in config.ignore


INTEGER = {"type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    "int4": ("pack-quantized", {**INTEGER, "num_bits": 4}),
    "int4, groups of 128": ("pack-quantized", {**INTEGER, "num_bits": 4, "group_size": 128}),
    "int4, a row": ("pack-quantized", {**INTEGER, "num_bits": 4, "strategy": "channel", "group_size": None}),
    "int4, zero points": ("pack-quantized", {**INTEGER, "num_bits": 4, "symmetric": False}),
    "int8": ("pack-quantized", {**INTEGER, "num_bits": 8}),
    "int8, zero points": ("pack-quantized", {**INTEGER, "num_bits": 8, "symmetric": False}),
    "int8, codes": ("int-quantized", {**INTEGER, "num_bits": 8, "strategy": "channel", "group_size": None}),
    "fp8, a row": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    "mxfp8": (
        "mxfp8-quantized",
        {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
    ),
    "mxfp4": (
        "mxfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
    ),
    "nvfp4": (
        "nvfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16,
         "scale_dtype": "torch.float8_e4m3fn"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRITTEN)
def test_what_compressed_tensors_writes(tmp_path: Path, rng: np.random.Generator, case: str) -> None:
    format, weights = WRITTEN[case]
    group = {"targets": ["Linear"], "weights": weights, "format": format}
    scheme = QuantizationScheme.model_validate(group)
    compressor = BaseCompressor.get_value_from_registry(format)
    tensors: dict[str, np.ndarray] = {}
    expected: dict[str, np.ndarray] = {}
    for name, (rows, k) in MATRICES.items():
        groups = k // (weights.get("group_size") or k)
        scales = (rng.random((rows, groups)) * 0.2 + 0.05).astype(np.float32)
        if weights["type"] == "float" and case != "fp8, a row":
            scales = np.exp2(rng.integers(-3, 3, scales.shape)).astype(np.float32)
        state = {
            "weight": as_torch(rng.standard_normal((rows, k), np.float32)),
            "weight_scale": as_torch(scales),
        }
        if weights.get("symmetric") is False:
            low = -(2 ** (weights["num_bits"] - 1))
            state["weight_zero_point"] = as_torch(rng.integers(low, -low, scales.shape).astype(np.int8))
        if case == "nvfp4":
            state["weight_global_scale"] = torch.tensor([448.0 * 6 / 5])
        state = compressor.compress(state, scheme)
        tensors |= {f"{name}.{end}": as_numpy(tensor) for end, tensor in state.items()}
        expected[name] = as_numpy(compressor.decompress(state, scheme)["weight"].to(torch.float32))
    quantization = {
        "quant_method": "compressed-tensors",
        "format": format,
        "config_groups": {"group_0": group},
    }
    folder = write(tmp_path / "a", tensors, quantization_config=quantization)
    layer = mx.MoELayer.from_checkpoint(folder)
    assert layer.experts.num_experts == EXPERTS
    for name, theirs in expected.items():
        ours = read(folder, name)
        # They decode the 4 and 8 bit floats of NVFP4 and MXFP8 to bfloat16.
        bound = 2.0**-8 + 4 * 2.0**-24 if case in ("nvfp4", "mxfp4", "mxfp8") else 0
        assert (abs(theirs.astype(np.float64) - ours) <= bound * abs(ours.astype(np.float64))).all()
