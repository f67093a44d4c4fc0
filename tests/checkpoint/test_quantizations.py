"""Layouts of other software, written from the same numbers: what is read, and what is refused."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import quantized_folders
from checkpoints import PARTS, Written, gpt_oss, mixtral, mixtral_weights, qwen3, qwen3_weights
from golden_layers import check_against_golden, dequantize
from problems import rel_l2
from quantized_storages import STORAGES, words

import mxfp4moe as mx
from mxfp4moe import checkpoint

# The bounds on a call, 2.0e-3 for float32 hidden states and 2.6e-3 for bfloat16, hold where rounding
# averages out. Here each sum has 128 terms: a fifth more.
BOUNDS = {np.float32: 2.4e-3, ml_dtypes.bfloat16: 3.0e-3}
MODELS: dict[str, tuple[Callable[..., Written], Callable[..., Any]]] = {
    "qwen3": (qwen3, qwen3_weights),
    "mixtral": (mixtral, mixtral_weights),
}


@pytest.mark.parametrize("name", quantized_folders.NAMES)
def test_folders_agree_with_an_independent_decoder(isa: str, tmp_path: Path, name: str) -> None:
    folder = quantized_folders.load(name)
    layer = mx.MoELayer.from_checkpoint(folder.write(tmp_path), folder.layer)
    for dtype, bound in BOUNDS.items():
        assert rel_l2(layer(folder.inputs(dtype)), folder.golden["expected"]) <= bound


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("storage", STORAGES)
def test_weights_are_read_exactly(tmp_path: Path, model: str, storage: str) -> None:
    make, weights = MODELS[model]
    written = make(STORAGES[storage])
    parts = checkpoint.read_layer(written.write(tmp_path), written.layer)
    got = dequantize(parts.experts)
    for part in PARTS:
        assert np.array_equal(got[part], weights()[1][part].values())


@pytest.mark.parametrize("storage", STORAGES)
def test_layer_is_the_golden_one(tmp_path: Path, storage: str) -> None:
    written = qwen3(STORAGES[storage])
    check_against_golden(mx.MoELayer.from_checkpoint(written.write(tmp_path), written.layer), written.golden)


# --- tensors ------------------------------------------------------------------------------------------------


def refuses(tmp_path: Path, written: Written, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(str(tmp_path)) + ".*" + message):
        checkpoint.read_layer(written.write(tmp_path), written.layer)


def tensors_of_one_expert(storage: str) -> list[str]:
    """The tensors that are needed; those of other experts are read by the same code."""
    names = qwen3(STORAGES[storage]).tensors
    return [n for n in names if not re.search(r"\.(?!1\.)\d+\.\w+_proj|_proj\.(?!1\.)\d|input|gate\.", n)]


EVERY_TENSOR = [(storage, name) for storage in STORAGES for name in tensors_of_one_expert(storage)]


@pytest.mark.parametrize(("storage", "name"), EVERY_TENSOR)
def test_wrong_tensors_are_named(tmp_path: Path, storage: str, name: str) -> None:
    written = qwen3(STORAGES[storage])
    array = written.tensors.pop(name)
    wanted = (
        ".*" if "proj" in name and re.search(r"gate\w*_proj(\.1)?(\.weight)?$", name) else re.escape(name)
    )
    if "gate_up_proj" not in name and "switch_mlp.gate" not in name:
        refuses(tmp_path / "missing", written, rf"expected a tensor {wanted}, got none among")
    twice = np.concatenate([array.reshape(-1, *array.shape[1:])] * 2)
    for other in (twice, array.astype(np.float64)):
        written.tensors[name] = other
        refuses(tmp_path / "other", written, rf"tensor {re.escape(name)}: expected .*, got \w+ \[")


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_scales_of_matrices_are_positive(tmp_path: Path, value: float) -> None:
    written = qwen3(STORAGES["modelopt nvfp4"])
    name = "model.layers.1.mlp.experts.2.up_proj.weight_scale_2"
    written.tensors[name] = np.array(value, np.float32)
    refuses(tmp_path, written, f"tensor {name}: expected a finite number above 0")


# --- configurations -----------------------------------------------------------------------------------------


def changed(storage: str, path: str, value: Any) -> Written:
    written = qwen3(STORAGES[storage])
    written.config["quantization_config"] = copy.deepcopy(written.config["quantization_config"])
    fields = written.config["quantization_config"]
    *sections, name = path.split("/")
    for section in sections:
        fields = fields[section]
    fields[name] = value
    return written


GROUP, QUARK = "config_groups/group_0/weights", "global_quant_config/weight"
WRONG: dict[str, tuple[str, str, Any, str]] = {
    "modelopt algorithm": ("modelopt nvfp4", "quant_algo", "W4A8_AWQ", "quant_algo: expected 'NVFP4', 'FP8'"),
    "modelopt bits": ("modelopt nvfp4", f"{GROUP}/num_bits", 8, "weights.num_bits: expected 4, got 8"),
    "modelopt groups": ("modelopt nvfp4", f"{GROUP}/group_size", 32, "group_size: expected 16, got 32"),
    "modelopt unknown": ("modelopt fp8", "rotation", True, "rotation: expected none"),
    "fp8 integers": ("compressed-tensors fp8 channel", f"{GROUP}/type", "int", "type: expected 'float'"),
    "fp8 bits": ("compressed-tensors fp8 tensor", f"{GROUP}/num_bits", 4, "num_bits: expected 8, got 4"),
    "fp8 groups": ("compressed-tensors fp8 tensor", f"{GROUP}/strategy", "group", "strategy: expected 'cha"),
    "fp8 other scales": (
        "compressed-tensors fp8 tensor",
        f"{GROUP}/strategy",
        "channel",
        r"weight_scale: expected .* \[96, 1\], got F32 \[1\]",
    ),
    "fp8 blocks": ("compressed-tensors fp8 block", f"{GROUP}/block_structure", [1, 48], r"got \[1, 48\]"),
    "fp8 transform": ("compressed-tensors fp8 channel", "transform_config", {"a": 1}, "transform_config: "),
    "mxfp8 groups": (
        "compressed-tensors mxfp8",
        f"{GROUP}/group_size",
        64,
        "group_size: expected 32, got 64",
    ),
    "quark columns": (
        "quark fp8 channel",
        "global_quant_config/weight/ch_axis",
        1,
        "ch_axis: expected 0, got 1",
    ),
    "quark groups": (
        "quark fp8 channel",
        "global_quant_config/weight/qscheme",
        "per_group",
        "qscheme: expected",
    ),
    "mlx bits": ("mlx mxfp4", "bits", 8, "quantization_config.bits: expected 4, got 8"),
    "mlx mode": ("mlx mxfp8", "mode", "mxfp6", "quantization_config.mode: expected 'affine', 'mxfp4'"),
    "mlx unknown": ("mlx nvfp4", "rotation", True, "quantization_config.rotation: expected none"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_configuration(tmp_path: Path, case: str) -> None:
    storage, path, value, message = WRONG[case]
    refuses(tmp_path, changed(storage, path, value), message)


def test_methods_without_a_reader_are_named(tmp_path: Path) -> None:
    written = changed("modelopt fp8", "quant_method", "bitsandbytes")
    refuses(tmp_path, written, "config.json: quantization_config: expected .*, got .*bitsandbytes")


# --- configurations in other places, and of several schemes -------------------------------------------------


@pytest.mark.parametrize("storage", ["modelopt nvfp4", "modelopt fp8"])
def test_quantization_in_a_file_of_its_own(tmp_path: Path, storage: str) -> None:
    written = qwen3(STORAGES[storage])
    algorithm = written.config.pop("quantization_config")["quant_algo"]
    own: dict[str, Any] = {"producer": {"name": "modelopt", "version": "0.29.0"}}
    own["quantization"] = {
        "quant_algo": algorithm,
        "kv_cache_quant_algo": "FP8",
        "exclude_modules": ["lm_head"],
    }
    written.write(tmp_path)
    path = tmp_path / "hf_quant_config.json"
    path.write_text(json.dumps(own))
    check_against_golden(mx.MoELayer.from_checkpoint(tmp_path, written.layer), written.golden)
    for change, message in (
        ({"quantization": own["quantization"] | {"rotation": 1}}, "quantization.rotation: expected none"),
        ({"quantization": own["quantization"] | {"quant_algo": "INT8"}}, "quantization.quant_algo: expected"),
        ({"producer": {"name": "another"}}, "quantization_config: expected .*modelopt"),
    ):
        path.write_text(json.dumps(own | change))
        with pytest.raises(ValueError, match=f"{re.escape(str(path))}: {message}"):
            checkpoint.read_layer(tmp_path, written.layer)
    path.write_text("{")
    with pytest.raises(ValueError, match=re.escape(str(path))):
        checkpoint.read_layer(tmp_path, written.layer)


def test_config_json_comes_before_the_file(tmp_path: Path) -> None:
    written = qwen3(STORAGES["modelopt fp8"])
    written.write(tmp_path)
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    check_against_golden(mx.MoELayer.from_checkpoint(tmp_path, written.layer), written.golden)


EXPERTS = "model.layers.1.mlp.experts"


@pytest.mark.parametrize(
    ("storage", "layers", "message"),
    [
        ("modelopt nvfp4", {EXPERTS: "NVFP4", "model.layers.1.self_attn.q_proj": "FP8"}, ""),
        ("modelopt fp8", {EXPERTS: "FP8", "model.layers.1.self_attn": "W4A8_AWQ"}, ""),
        ("modelopt fp8", {"model.layers": "NVFP4", EXPERTS: "FP8"}, ""),
        ("modelopt fp8", {EXPERTS: "NVFP4"}, "gate_proj.weight: expected U8"),
        (
            "modelopt fp8",
            {EXPERTS: "W4A8_AWQ", "lm_head": "FP8"},
            f"{EXPERTS}.quant_algo: expected NVFP4, FP8",
        ),
        ("modelopt fp8", {EXPERTS: "FP8", f"{EXPERTS}.1": "NVFP4"}, "experts of a layer that are all stored"),
        ("modelopt fp8", {"lm_head": "FP8"}, "gate_proj.weight: expected BF16"),
        ("modelopt fp8", {"lm_head": "INT8"}, "quantized_layers: expected layers in NVFP4, FP8"),
    ],
)
def test_modelopt_says_it_by_layer(
    tmp_path: Path, storage: str, layers: dict[str, str], message: str
) -> None:
    written = qwen3(STORAGES[storage])
    quantization = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}
    entries = {name: {"quant_algo": algorithm} for name, algorithm in layers.items()}
    written.config["quantization_config"] = quantization | {"quantized_layers": entries}
    if message:
        refuses(tmp_path, written, message)
    else:
        layer = mx.MoELayer.from_checkpoint(written.write(tmp_path), written.layer)
        check_against_golden(layer, written.golden)


FP8 = {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}}
INT8 = {"weight": {"dtype": "int8", "qscheme": "per_tensor"}}


@pytest.mark.parametrize(
    ("by_name", "by_class", "general", "message"),
    [
        ({"*mlp.experts*": FP8}, {}, INT8, "weight.dtype: expected 'fp4' or 'fp8_e4m3'"),
        ({"*mlp.experts*": FP8}, {}, None, ""),
        ({"*self_attn*": INT8, "*experts*": FP8}, {}, {}, ""),
        ({"*self_attn*": INT8}, {}, FP8, ""),
        ({"*gate_proj": INT8}, {}, FP8, r"layer_quant_config.\*gate_proj.weight.dtype: expected 'fp4' or"),
        ({"*gate_proj": None}, {}, FP8, ""),
        ({}, {"nn.Linear": FP8, "nn.Embedding": INT8}, {}, ""),
        ({"*up_proj": {}}, {}, FP8, "experts of a layer that are all stored alike"),
    ],
)
def test_quark_says_it_by_module(
    tmp_path: Path, by_name: dict[str, Any], by_class: dict[str, Any], general: Any, message: str
) -> None:
    written = qwen3(STORAGES["quark fp8 tensor"])
    written.config["quantization_config"] = {
        "quant_method": "quark",
        "global_quant_config": general,
        "layer_quant_config": by_name,
        "layer_type_quant_config": by_class,
    }
    if message:
        refuses(tmp_path, written, message)
    else:
        layer = mx.MoELayer.from_checkpoint(written.write(tmp_path), written.layer)
        check_against_golden(layer, written.golden)


def affine(matrix: np.ndarray, bits: int, group_size: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The tensors of a matrix in MLX's affine mode, and the numbers that they stand for in float64."""
    groups = matrix.astype(np.float64).reshape(len(matrix), -1, group_size)
    low, high = groups.min(axis=-1), groups.max(axis=-1)
    scales, biases = (
        a.astype(ml_dtypes.bfloat16) for a in (np.maximum(high - low, 1e-6) / (2**bits - 1), low)
    )
    s, b = (a.astype(np.float64)[..., None] for a in (scales, biases))
    codes = np.clip(np.rint((groups - b) / s), 0, 2**bits - 1).astype(np.uint8)
    packed = codes.reshape(len(matrix), -1)
    if bits == 4:
        packed = packed[:, 0::2] | packed[:, 1::2] << 4
    tensors = {"weight": packed.view("<u4"), "scales": scales, "biases": biases}
    return tensors, (codes * s + b).reshape(matrix.shape)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("same", [True, False])
def test_quantized_routers(tmp_path: Path, bits: int, group_size: int, same: bool) -> None:
    """By default MLX quantizes routers too: read as the numbers that they stand for, rounded to float32."""
    written = qwen3(STORAGES["mlx mxfp4"])
    router = "model.layers.1.mlp.gate"
    tensors, values = affine(written.tensors.pop(f"{router}.weight").astype(np.float32), bits, group_size)
    written.tensors.update({f"{router}.{name}": array for name, array in tensors.items()})
    quantization = written.config["quantization_config"]
    quantization[router] = {"group_size": group_size, "bits": bits} | ({"mode": "affine"} if same else {})
    if same:
        written.config["quantization"] = quantization
    read = checkpoint.read_layer(written.write(tmp_path), written.layer)
    assert np.array_equal(read.router_weight, values.astype(np.float32))
    assert read.router_weight.dtype == np.float32


def test_a_router_in_fp8(tmp_path: Path) -> None:
    written = qwen3(STORAGES["compressed-tensors fp8 channel"])
    written.config["quantization_config"] = written.config["quantization_config"] | {"ignore": []}
    router = "model.layers.1.mlp.gate"
    codes = np.random.default_rng(0).integers(1, 126, (16, 128)).astype(np.uint8)
    codes = codes.view(ml_dtypes.float8_e4m3fn)
    scales = np.linspace(0.1, 3, 16, dtype=np.float32)[:, None]
    written.tensors.update({f"{router}.weight": codes, f"{router}.weight_scale": scales})
    read = checkpoint.read_layer(written.write(tmp_path / "read"), written.layer)
    # The product of a float32 scale and a code of 4 bits is exact in float64, and rounded once.
    expected = (codes.astype(np.float64) * scales.astype(np.float64)).astype(np.float32)
    assert np.array_equal(read.router_weight, expected)
    written.config["quantization_config"]["ignore"] = ["re:.*gate$"]
    refuses(tmp_path / "ignored", written, f"tensor {router}.weight: expected BF16 or F16 or F32")


def test_what_mlx_says_twice_is_the_same(tmp_path: Path) -> None:
    written = qwen3(STORAGES["mlx mxfp4"])
    written.config["quantization"] = written.config["quantization_config"] | {"bits": 8}
    refuses(tmp_path, written, "config.json: quantization: expected the same as quantization_config")


def test_mlx_under_its_own_name_alone(tmp_path: Path) -> None:
    written = qwen3(STORAGES["mlx mxfp4"])
    written.config["quantization"] = written.config.pop("quantization_config")
    layer = mx.MoELayer.from_checkpoint(written.write(tmp_path), written.layer)
    check_against_golden(layer, written.golden)


@pytest.mark.parametrize("mode", [False, {"group_size": 64, "bits": 6}, {"group_size": 32, "bits": 8}])
def test_mlx_says_it_by_module(tmp_path: Path, mode: Any) -> None:
    """What modules outside the block are does not matter; those of the experts are as it says."""
    written = qwen3(STORAGES["mlx mxfp4"])
    quantization = written.config["quantization_config"]
    quantization["model.layers.1.self_attn.q_proj"] = mode
    checkpoint.read_layer(written.write(tmp_path / "other"), written.layer)
    quantization["model.layers.1.mlp.switch_mlp.up_proj"] = mode
    refuses(tmp_path / "experts", written, "")


@pytest.mark.parametrize("part", ["gate_proj", "up_proj", "down_proj"])
def test_a_scale_of_a_matrix_beside_scales_of_rows(tmp_path: Path, part: str) -> None:
    written, other = (qwen3(STORAGES[f"compressed-tensors fp8 {kind}"]) for kind in ("channel", "tensor"))
    groups = {}
    for name, each, targets in (("group_0", written, ["Linear"]), ("group_1", other, [f"re:.*{part}"])):
        group = each.config["quantization_config"]["config_groups"]["group_0"]
        groups[name] = group | {"targets": targets}
    quantization = {**written.config["quantization_config"], "config_groups": groups}
    tensors = written.tensors | {name: a for name, a in other.tensors.items() if part in name}
    written = written._replace(config=written.config | {"quantization_config": quantization}, tensors=tensors)
    layer = mx.MoELayer.from_checkpoint(written.write(tmp_path), written.layer)
    assert layer.experts.spec.block_shape == (1, None)
    check_against_golden(layer, written.golden)


@pytest.mark.parametrize("storage", ["compressed-tensors fp8 channel", "modelopt nvfp4", "quark fp8 tensor"])
def test_layers_in_floats_and_experts_that_are_not_alike(tmp_path: Path, storage: str) -> None:
    written = qwen3(STORAGES[storage])
    floats = qwen3("bfloat16").tensors
    plain = {name: a for name, a in written.tensors.items() if ".experts." not in name} | floats
    layer = mx.MoELayer.from_checkpoint(written._replace(tensors=plain).write(tmp_path / "a"), 1)
    assert layer.experts.format == "bf16"
    one = {name: a for name, a in written.tensors.items() if ".experts.3." not in name}
    one |= {name: a for name, a in floats.items() if ".experts.3." in name}
    refuses(
        tmp_path / "b", written._replace(tensors=one), "that are all stored alike, got .* and plain floats"
    )


# --- gpt-oss, whose experts have biases ---------------------------------------------------------------------


def of_quark(name: str, blocks: np.ndarray, scales: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    """A matrix of each expert; gate and up rows alternate."""
    codes = blocks.reshape(*blocks.shape[:2], -1)
    arrays = {"weight": codes, "weight_scale": scales, "bias": bias}
    return {
        f"experts.{e}.{name}.{suffix}": array[e]
        for suffix, array in arrays.items()
        for e in range(len(array))
    }


def of_mlx(name: str, blocks: np.ndarray, scales: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    """Gate and up apart, each with the matrices of all experts."""
    codes = words(blocks.reshape(*blocks.shape[:2], -1))
    parts = {"gate_proj": np.s_[:, 0::2], "up_proj": np.s_[:, 1::2]}
    parts = parts if name == "gate_up_proj" else {name: np.s_[:]}
    return {
        f"experts.{part}.{suffix}": np.ascontiguousarray(array[rows])
        for part, rows in parts.items()
        for suffix, array in (("weight", codes), ("scales", scales), ("bias", bias))
    }


def of_compressed(name: str, *arrays: np.ndarray) -> dict[str, np.ndarray]:
    """A matrix of each expert; gate and up apart."""
    names = {"weight": "weight_packed", "scales": "weight_scale", "bias": "bias"}
    result = {}
    for stacked, array in of_mlx(name, *arrays).items():
        _, part, suffix = stacked.split(".")
        array = array.view(np.uint8) if suffix == "weight" else array
        result |= {f"experts.{e}.{part}.{names[suffix]}": array[e] for e in range(len(array))}
    return result


GPT_OSS: dict[str, tuple[Callable[..., dict[str, np.ndarray]], dict[str, Any]]] = {
    "quark": (
        of_quark,
        {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4", "group_size": 32}}},
    ),
    "mlx": (of_mlx, {"group_size": 32, "bits": 4, "mode": "mxfp4"}),
    "compressed-tensors": (
        of_compressed,
        {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"},
    ),
}


def gpt_oss_of(kind: str) -> Written:
    written, (store, quantization) = gpt_oss(), GPT_OSS[kind]
    block = "model.layers.7.mlp"
    for name in ("gate_up_proj", "down_proj"):
        suffixes = ("blocks", "scales", "bias")
        arrays = (written.tensors.pop(f"{block}.experts.{name}_{suffix}") for suffix in suffixes)
        written.tensors.update({f"{block}.{key}": a for key, a in store(name, *arrays).items()})
    written.config["quantization_config"] = quantization
    return written


@pytest.mark.parametrize("kind", GPT_OSS)
def test_gpt_oss_of_other_software(isa: str, tmp_path: Path, kind: str) -> None:
    written = gpt_oss_of(kind)
    layer = mx.MoELayer.from_checkpoint(written.write(tmp_path / "a"), written.layer)
    check_against_golden(layer, written.golden)
    for name in [name for name in written.tensors if name.endswith("up_proj.bias") or "1.down_proj" in name]:
        array = written.tensors.pop(name)
        refuses(tmp_path / "b", written, rf"expected a tensor {re.escape(name)}, got none")
        written.tensors[name] = array
