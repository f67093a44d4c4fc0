"""``mxfp4moe quantize`` to the formats of compressed-tensors: tensors, configurations, options, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bfloat16_models import BF16, EXPERTS, HIDDEN, INTERMEDIATE, LAYERS, Tensors, write_model

import mxfp4moe as mx
from mxfp4moe.checkpoint.safetensors import SafetensorsFile, save_file
from mxfp4moe.cli import main

ONE = np.float32(1)


def words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes without a sign [N, K] in words of 32 bits, the lowest first."""
    each = codes.reshape(len(codes), -1, 32 // bits).astype(np.uint32)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    return np.bitwise_or.reduce(each << shifts, axis=-1).view(np.int32)


def int4(w: np.ndarray, size: int | None = 32) -> Tensors:
    codes, scales, _ = mx.quantize_int4(w, group_size=size)
    unpacked = np.stack([codes & 15, codes >> 4], axis=-1).reshape(w.shape)
    shape = np.array(w.shape, np.int64)
    return {"weight_packed": words(unpacked, 4), "weight_scale": scales.astype(BF16), "weight_shape": shape}


def int8(w: np.ndarray, size: int | None = 32) -> Tensors:
    codes, scales, _ = mx.quantize_int8(w, group_size=size)
    unsigned = codes.astype(np.int16) + 128
    shape = np.array(w.shape, np.int64)
    return {"weight_packed": words(unsigned, 8), "weight_scale": scales.astype(BF16), "weight_shape": shape}


def mxfp8(w: np.ndarray) -> Tensors:
    values, scales = mx.quantize_mxfp8(w)
    return {"weight": values, "weight_scale": scales.view(np.uint8)}


def nvfp4(w: np.ndarray, *others: np.ndarray) -> Tensors:
    amax = max(float(abs(each.astype(np.float64)).max()) for each in (w, *others))
    global_scale = ONE / np.float32(amax / (448 * 6))
    blocks, scales, _ = mx.quantize_nvfp4(w, tensor_scale=ONE / global_scale)
    return {"weight_packed": blocks, "weight_scale": scales, "weight_global_scale": global_scale.reshape(1)}


BITS = {"symmetric": True, "dynamic": False}
FLOATS = {**BITS, "type": "float"}
INTEGERS = {**BITS, "type": "int", "strategy": "group", "group_size": 32}
FORMATS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "int4": (int4, "pack-quantized", {**INTEGERS, "num_bits": 4}),
    "int8": (int8, "pack-quantized", {**INTEGERS, "num_bits": 8}),
    "mxfp8": (
        mxfp8,
        "mxfp8-quantized",
        FLOATS | {"num_bits": 8, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
    ),
    "nvfp4": (
        nvfp4,
        "nvfp4-pack-quantized",
        FLOATS
        | {"num_bits": 4, "strategy": "tensor_group", "group_size": 16}
        | dict.fromkeys(("scale_dtype", "zp_dtype"), "torch.float8_e4m3fn"),
    ),
}


def read_all(folder: Path) -> Tensors:
    files = map(SafetensorsFile, sorted(folder.glob("*.safetensors")))
    return {name: array for file in files for name, array in file.items()}


def quantize(tmp_path: Path, *options: str, status: int = 0) -> Path:
    assert main(["quantize", str(tmp_path / "a"), str(tmp_path / "b"), *options]) == status
    return tmp_path / "b"


def config_of(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def others_of(name: str, source: Tensors) -> tuple[np.ndarray, ...]:
    """Gate for up, up for gate, none for down."""
    other = {"gate_proj": "up_proj", "up_proj": "gate_proj"}.get(name.rpartition(".")[2])
    return () if other is None else (source[f"{name.rpartition('.')[0]}.{other}.weight"],)


@pytest.mark.parametrize("format", FORMATS)
def test_tensors_and_configuration(tmp_path: Path, rng: np.random.Generator, format: str) -> None:
    make, name_of_format, weights = FORMATS[format]
    (tmp_path / "a").mkdir()
    source = write_model(tmp_path / "a", rng, "qwen3_moe")
    result = quantize(tmp_path, "--format", format)
    got, count = read_all(result), 0
    for name, w in source.items():
        module = name.removesuffix(".weight")
        if ".experts." not in name:
            assert got.pop(name).tobytes() == w.tobytes()
            continue
        others = others_of(module, source) if format == "nvfp4" else ()
        for end, expected in make(w, *others).items():
            array = got.pop(f"{module}.{end}")
            assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
            assert array.tobytes() == expected.tobytes()
        count += 1
    assert (got, count) == ({}, 3 * EXPERTS * LAYERS)
    config = config_of(result)
    group = config["config_groups"]["group_0"]
    assert config["quant_method"] == "compressed-tensors"
    assert config["format"] == group["format"] == name_of_format
    assert group["weights"] == weights
    assert group["input_activations"] is None
    layer = mx.MoELayer.from_checkpoint(result, 1)
    assert layer.experts.format == format
    if format != "nvfp4":  # whose gate and up share a scale in files alone
        (quantized,) = mx.load_layers(tmp_path / "a", [1], quantize=format)  # type: ignore[arg-type]
        x = rng.standard_normal((5, HIDDEN), np.float32)
        assert layer(x).tobytes() == quantized(x).tobytes()


def test_gate_and_up_share_a_tensor_scale(tmp_path: Path, rng: np.random.Generator) -> None:
    """The larger one, also where a matrix is all zeros."""
    (tmp_path / "a").mkdir()
    write_model(tmp_path / "a", rng, "qwen3_moe")
    path = tmp_path / "a" / "model-00001-of-00003.safetensors"
    tensors = {name: array.copy() for name, array in SafetensorsFile(path).items()}
    block = "model.layers.0.mlp.experts"
    tensors[f"{block}.0.gate_proj.weight"] *= 8
    tensors[f"{block}.1.up_proj.weight"] *= 0
    tensors[f"{block}.1.gate_proj.weight"] *= 1e-5
    for part in ("gate_proj", "up_proj"):
        tensors[f"{block}.2.{part}.weight"] *= 0
    path.unlink()
    save_file(path, tensors)
    got = read_all(quantize(tmp_path, "--format", "nvfp4"))
    for expert in range(EXPERTS):
        gate, up = (got[f"{block}.{expert}.{part}.weight_global_scale"] for part in ("gate_proj", "up_proj"))
        amax = max(
            float(abs(tensors[f"{block}.{expert}.{part}.weight"].astype(np.float64)).max())
            for part in ("gate_proj", "up_proj")
        )
        assert gate == up == (ONE if amax == 0 else ONE / np.float32(amax / 2688))
    experts = mx.MoELayer.from_checkpoint(tmp_path / "b", 0).experts.unpack()
    assert experts.w13_tensor_scale is not None
    assert (experts.w13_tensor_scale[:, 0] == experts.w13_tensor_scale[:, 1]).all()


@pytest.mark.parametrize("format", ["int4", "int8"])
@pytest.mark.parametrize(("option", "size"), [("-1", None), ("32", 32)])
def test_group_sizes(
    tmp_path: Path, rng: np.random.Generator, format: str, option: str, size: int | None
) -> None:
    (tmp_path / "a").mkdir()
    source = write_model(tmp_path / "a", rng, "qwen3_moe", fused=True)
    result = quantize(tmp_path, "--format", format, "--group-size", option)
    got = read_all(result)
    down = source["model.layers.1.mlp.experts.down_proj"][2]
    for end, expected in FORMATS[format][0](down, size).items():
        assert np.array_equal(got[f"model.layers.1.mlp.experts.2.down_proj.{end}"], expected)
    weights = config_of(result)["config_groups"]["group_0"]["weights"]
    assert (weights["strategy"], weights["group_size"]) == ("group" if size else "channel", size)
    info = mx.checkpoint.open(result).describe_layer(1)
    assert info.format == format


def test_gpt_oss_matrix_by_matrix(tmp_path: Path, rng: np.random.Generator) -> None:
    """Its rows of gate and up are taken apart, and so are the biases."""
    (tmp_path / "a").mkdir()
    source = write_model(tmp_path / "a", rng, "gpt_oss")
    result = quantize(tmp_path, "--format", "int4")
    got, block = read_all(result), "model.layers.1.mlp.experts"
    both, bias = source[f"{block}.gate_up_proj"][2], source[f"{block}.gate_up_proj_bias"][2]
    for part, offset in (("gate_proj", 0), ("up_proj", 1)):
        for end, expected in int4(np.ascontiguousarray(both[:, offset::2].T)).items():
            assert np.array_equal(got[f"{block}.2.{part}.{end}"], expected)
        assert np.array_equal(got[f"{block}.2.{part}.bias"], bias[offset::2])
    assert np.array_equal(got[f"{block}.2.down_proj.bias"], source[f"{block}.down_proj_bias"][2])
    x = rng.standard_normal((5, HIDDEN), np.float32)
    layer, expected = (
        mx.MoELayer.from_checkpoint(result, 1),
        mx.MoELayer.from_checkpoint(tmp_path / "a", 1, quantize="int4"),
    )
    assert np.array_equal(layer(x), expected(x))
    assert layer.activation == "swigluoai"


@pytest.mark.parametrize("model_type", ["qwen3_moe", "gpt_oss"])
def test_mxfp4_in_the_layout_of_compressed_tensors(
    tmp_path: Path, rng: np.random.Generator, model_type: str
) -> None:
    (tmp_path / "a").mkdir()
    write_model(tmp_path / "a", rng, model_type)
    result = quantize(tmp_path, "--layout", "compressed-tensors")
    assert config_of(result)["format"] == "mxfp4-pack-quantized"
    layers = (
        mx.MoELayer.from_checkpoint(result),
        mx.MoELayer.from_checkpoint(tmp_path / "a", quantize="mxfp4"),
    )
    x = rng.standard_normal((5, HIDDEN), np.float32)
    assert np.array_equal(*(layer(x) for layer in layers))


WRONG = {
    "--format nvfp4 --group-size 32": "--group-size: expected none but with --format int4 or int8, got 32",
    "--format int4 --scale-rule ceil": "--scale-rule: expected none but with --format mxfp4 or mxfp8, got ",
    "--format int4 --group-size 64": "expected rows of a multiple of 64 weights, got 32",
    "--format int8 --layout gpt-oss": "which needs compressed-tensors",
}


@pytest.mark.parametrize("options", WRONG)
def test_options_that_do_not_fit(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str], options: str
) -> None:
    assert INTERMEDIATE == 32
    (tmp_path / "a").mkdir()
    write_model(tmp_path / "a", rng, "qwen3_moe")
    quantize(tmp_path, *options.split(), status=1)
    assert WRONG[options] in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("value", ["0", "16", "-2", "48"])
def test_wrong_group_sizes(capsys: pytest.CaptureFixture[str], value: str) -> None:
    with pytest.raises(SystemExit):
        main(["quantize", "a", "b", "--format", "int4", "--group-size", value])
    expected = f"expected a multiple of 32, or -1 for a whole row, got {value}"
    assert f"argument --group-size: {expected}" in capsys.readouterr().err


def test_folders_beside_the_weights(tmp_path: Path, rng: np.random.Generator) -> None:
    a = tmp_path / "a"
    a.mkdir()
    write_model(a, rng, "qwen3_moe")
    for name in (
        "generation_config.json",
        "chat_template.jinja",
        "extra/deep/notes.txt",
        "additional/tool.jinja",
    ):
        (a / name).parent.mkdir(parents=True, exist_ok=True)
        (a / name).write_text(name)
    for name in ("original/params.json", "original/old/consolidated.pth", ".cache/x"):
        (a / name).parent.mkdir(parents=True, exist_ok=True)
        (a / name).write_text("not copied")
    (a / "link").symlink_to(a / "extra")
    (a / "loop").symlink_to(a)
    b = quantize(tmp_path, "--format", "int4")
    found = {str(path.relative_to(b)) for path in b.rglob("*") if path.is_file()}
    copied = {
        "generation_config.json",
        "chat_template.jinja",
        "extra/deep/notes.txt",
        "additional/tool.jinja",
    }
    assert copied <= found
    assert not {
        name for name in found if name.startswith(("original", ".cache", "link", "loop", "merges.bin"))
    }
    assert all((b / name).read_text() == name for name in copied)
