"""``mxfp4moe quantize`` of every model type: what is read back is what the quantizers make of the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from model_folders import NAMES, ModelFolder, load

import mxfp4moe as mx
from mxfp4moe import checkpoint
from mxfp4moe.checkpoint import models
from mxfp4moe.checkpoint.safetensors import SafetensorsFile
from mxfp4moe.cli import main

Array = np.ndarray[Any, Any]

# Each way in which types have their experts: a tensor for each matrix, gate and up in one, in turns,
# transposed, flat, three tensors of all experts, no gate, shared experts that the router weighs.
STYLES = (
    "qwen2_moe",
    "qwen3_5_moe",
    "gpt_oss",
    "llama4_text",
    "dbrx",
    "nemotron_h",
    "inkling_text",
    "granitemoe",
)
CASES = [
    *((name, format) for name in NAMES for format in ("mxfp4", "fp8_block")),
    *((name, format) for name in STYLES for format in ("mxfp8", "nvfp4", "int4", "int8")),
]
SUFFIXES = (".weight_packed", ".weight_scale", "_blocks", "_scales")


def quantized(weights: checkpoint.ExpertWeights, format: str) -> mx.PackedExperts:
    """The experts of a checkpoint in floats, each matrix quantized by the functions of the package."""
    arguments = {key: value for key, value in weights.arguments().items() if value is not None}
    size, w13 = weights.intermediate_size, arguments["w13"]
    if isinstance(w13, np.ndarray) and w13.shape[1] == 2 * size:
        is_interleaved = arguments.pop("gate_up_layout", None) == "interleaved"
        w13 = (w13[:, 0::2], w13[:, 1::2]) if is_interleaved else (w13[:, :size], w13[:, size:])
        if is_interleaved and "w13_bias" in arguments:
            bias = arguments["w13_bias"]
            arguments["w13_bias"] = np.concatenate([bias[:, 0::2], bias[:, 1::2]], axis=1)
    first = w13 if type(w13) is tuple else (w13,)
    shared_scales = [tensor_scale(*matrices) for matrices in zip(*first, strict=True)]
    parts = [[matrix_of(m, format, s) for m, s in zip(part, shared_scales, strict=True)] for part in first]
    values, scales = (tuple([pair[i] for pair in part] for part in parts) for i in (0, 1))
    arguments["w13"], arguments["w13_scales"] = (values, scales) if len(parts) > 1 else (values[0], scales[0])
    down_scales = [tensor_scale(matrix) for matrix in arguments["w2"]]
    down = [matrix_of(m, format, s) for m, s in zip(arguments["w2"], down_scales, strict=True)]
    arguments["w2"], arguments["w2_scales"] = ([pair[i] for pair in down] for i in (0, 1))
    options: dict[str, Any] = {"block_shape": (128, 128)} if format == "fp8_block" else {}
    if format == "nvfp4":
        of_w13 = np.array(shared_scales, np.float32)
        options["w13_tensor_scale"] = of_w13 if len(parts) == 1 else np.stack([of_w13, of_w13], axis=1)
        options["w2_tensor_scale"] = np.array(down_scales, np.float32)
    return mx.pack_experts(**arguments | options | {"format": format})


def tensor_scale(*matrices: Array) -> np.float32:
    """The scale that matrices share in NVFP4: that of the largest weight, as a reciprocal has it."""
    amax = max(float(abs(matrix.astype(np.float64)).max()) for matrix in matrices)
    one = np.float32(1)
    return one / (one / (np.float32(amax / (448 * 6)) if amax else one))


def matrix_of(matrix: Array, format: str, scale: np.float32) -> tuple[Array, ...]:
    weights = np.ascontiguousarray(matrix)
    match format:
        case "fp8_block":
            return mx.quantize_fp8_block(weights)
        case "nvfp4":
            return mx.quantize_nvfp4(weights, tensor_scale=scale)[:2]
        case "int4" | "int8":
            codes, scales, _ = (mx.quantize_int4 if format == "int4" else mx.quantize_int8)(weights)
            return codes, scales.astype(ml_dtypes.bfloat16)
    blocks, scales = (mx.quantize_mxfp4 if format == "mxfp4" else mx.quantize_mxfp8)(weights)
    return blocks, scales.view(np.uint8)  # as the files have them


def write(model: ModelFolder, path: Path) -> Path:
    """Write a folder; its tensors are of one layer, which the others with experts repeat."""
    if "hash_moe" in model.config.get("mlp_layer_types", ()):
        model = model._replace(config=model.config | {"mlp_layer_types": ["hash_moe"] * 2})
    numbers = checkpoint.open(model.write(path)).moe_layers
    tensors = dict(model.tensors)
    for number in numbers:
        for name, array in model.tensors.items():
            tensors.setdefault(name.replace(f".{model.layer}.", f".{number}.", 1), array)
    return model._replace(tensors=tensors).write(path)


def divides(name: str, format: str) -> bool:
    """Whether the format has the sizes of this folder: the rows of MXFP4 are in blocks of 32 weights."""
    return format != "mxfp4" or name not in ("jamba", "qwen3_vl_moe")


@pytest.mark.parametrize(("name", "format"), CASES)
def test_read_back_is_what_the_quantizers_make(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, format: str
) -> None:
    model = load(name)
    source, result = write(model, tmp_path / "a"), tmp_path / "b"
    status = main(["quantize", str(source), str(result), "--format", format])
    if not divides(name, format):
        assert "expected rows of a multiple of 32 weights" in capsys.readouterr().err
        return
    if (name, format) == ("gpt_oss", "fp8_block"):
        assert "'gpt_oss', which needs gpt-oss with mxfp4" in capsys.readouterr().err
        return
    assert status == 0
    plain, weights = (
        mx.MoELayer.from_checkpoint(source, model.layer),
        checkpoint.read_layer(source, model.layer),
    )
    assert isinstance(weights.experts, checkpoint.ExpertWeights)
    expected = mx.MoELayer(**plain.arguments() | {"experts": quantized(weights.experts, format)})
    got = mx.MoELayer.from_checkpoint(result, model.layer)
    assert got.experts.format == format
    assert name == "gpt_oss" or got == expected  # the rows of gpt-oss keep their order, gate and up in turns
    inputs = model.inputs(np.float32)
    assert got(**inputs).tobytes() == expected(**inputs).tobytes()


@pytest.mark.parametrize("name", [name for name in NAMES if divides(name, "mxfp4")])
def test_all_other_tensors_are_copied_unchanged(tmp_path: Path, name: str) -> None:
    model = load(name)
    tower = {"vision_tower.experts.0.up_proj.weight": np.full((3, 5), 0.5, np.float32)}
    folder = write(model._replace(tensors=model.tensors | tower), tmp_path / "a")
    assert main(["quantize", str(folder), str(tmp_path / "b")]) == 0
    before = dict(SafetensorsFile(folder / "model.safetensors").items())
    got = dict(SafetensorsFile(tmp_path / "b" / "model.safetensors").items())
    kept = {name: array.tobytes() for name, array in got.items() if not name.endswith(SUFFIXES)}
    # Names may change to the published ones, contents do not.
    assert set(kept.values()) <= {array.tobytes() for array in before.values()}
    assert kept.keys() >= tower.keys()
    # What is left over was quantized: it is experts, none of them shared unless the router weighs them.
    gone = [name for name, array in before.items() if array.tobytes() not in kept.values()]
    assert gone
    assert all("experts." in name or "_linear" in name or ".moe." in name for name in gone)


def test_a_layout_of_its_own_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model type that a user has registered with a reader of its experts, which no writer knows."""
    row = checkpoint.get_model_type("mixtral")
    monkeypatch.setitem(
        models.MODELS,
        "mixtral",
        replace(row, change=lambda model, config: replace(model, read_experts=print)),
    )
    folder = write(load("mixtral"), tmp_path / "a")
    assert main(["quantize", str(folder), str(tmp_path / "b")]) == 1
    assert "got 'mixtral', which has a layout of its own" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
