"""Integer layouts of other software: what is read, and what is refused."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import PARTS, Written
from golden_layers import dequantize
from integer_storages import BLOCK, CASES, written

import mxfp4moe as mx
from mxfp4moe import checkpoint
from mxfp4moe.checkpoint._experts import read_matrix
from mxfp4moe.checkpoint.model_folder import ModelFolder
from mxfp4moe.checkpoint.schemes import find_scheme

FIRST = f"{BLOCK}.experts.0.gate_proj"


@pytest.mark.parametrize("sizes", [(4, 128, 192), (3, 192, 64)])
@pytest.mark.parametrize("name", CASES)
def test_weights_are_read_exactly(tmp_path: Path, name: str, sizes: tuple[int, int, int]) -> None:
    case = CASES[name]
    model, weights = written(case, sizes)
    experts = checkpoint.read_layer(model.write(tmp_path)).experts
    got = dequantize(experts)
    for part in PARTS:
        assert np.array_equal(got[part], weights[part].values())
    arguments = experts.arguments()
    assert experts.format == ("int8" if "int" in name else f"int{case.bits}")
    assert arguments["w2_scales"][0].dtype == case.scale_dtype  # 16 bits stay 16 bits
    assert ("w2_zero_points" in arguments) == (not case.symmetric)


@pytest.mark.parametrize("name", ["ct 4 bits, zeros", "gptq v2, 8 bits, zeros", "awq", "ct int, zeros"])
def test_matrices_that_stand_alone(tmp_path: Path, name: str) -> None:
    """Of projections, say: what pack_linear takes, with the products by unit vectors as the weights."""
    model, weights = written(CASES[name])
    folder = ModelFolder(model.write(tmp_path))
    scheme = find_scheme(folder.config)
    arguments = read_matrix(folder, f"{BLOCK}.experts.1.down_proj", (128, 192), scheme)
    matrix = mx.pack_linear(**arguments)
    assert np.array_equal(matrix(np.eye(192, dtype=np.float32)).T, weights["down"].values()[1])


# --- what is wrong ------------------------------------------------------------------------------------------


def refuses(tmp_path: Path, model: Written, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(str(tmp_path)) + ".*" + message):
        checkpoint.read_layer(model.write(tmp_path))


def needed(name: str) -> list[str]:
    """The tensors of one matrix that must be there."""
    optional = ("weight_shape", "g_idx") + (("weight_zero_point",) if CASES[name].symmetric else ())
    prefixes = (f"{BLOCK}.experts.1.up_proj.", f"{BLOCK}.switch_mlp.up_proj.")
    return [n for n in written(CASES[name])[0].tensors if n.startswith(prefixes) and not n.endswith(optional)]


@pytest.mark.parametrize(("name", "tensor"), [(name, tensor) for name in CASES for tensor in needed(name)])
def test_wrong_tensors_are_named(tmp_path: Path, name: str, tensor: str) -> None:
    model, _ = written(CASES[name])
    array = model.tensors.pop(tensor)
    refuses(tmp_path / "missing", model, f"expected a tensor {re.escape(tensor)}, got none among")
    for other in (np.concatenate([array, array]), array.astype(np.float64)):
        model.tensors[tensor] = other
        refuses(tmp_path / "other", model, rf"tensor {re.escape(tensor)}: expected .*, got \w+ \[")


@pytest.mark.parametrize("name", ["gptq", "ct 4 bits"])
def test_activation_orders_are_refused(tmp_path: Path, name: str) -> None:
    model, _ = written(CASES[name])
    tensor = f"{BLOCK}.experts.2.down_proj." + ("g_idx" if name == "gptq" else "weight_g_idx")
    order = np.arange(192, dtype=np.int32) // 32
    model.tensors[tensor] = order
    checkpoint.read_layer(model.write(tmp_path / "ascending"))
    order[[3, 40]] = order[[40, 3]]
    refuses(tmp_path / "other", model, f"{tensor}: expected groups of 32 neighbours .*, got group 1 at 3")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("scale", "bias", "got"),
    [
        (1.0, -2.5, "-2.5 with a scale of 1"),  # no integer
        (1.0, 1.0, "1 with a scale of 1"),
        (1.0, -256.0, "-256 with a scale of 1"),
        (0.0, 1.0, "1 with a scale of 0"),
        (np.nan, 0.0, "0 with a scale of nan"),
        (1.0, np.inf, "inf with a scale of 1"),
    ],
)
def test_biases_that_are_no_zero_points(
    tmp_path: Path, bits: int, scale: float, bias: float, got: str
) -> None:
    model, _ = written(CASES["mlx" if bits == 4 else "mlx 8 bits"])
    for name, value in (("scales", scale), ("biases", bias)):
        array = model.tensors[f"{BLOCK}.switch_mlp.down_proj.{name}"].copy()
        array[2, 5, 1] = value
        model.tensors[f"{BLOCK}.switch_mlp.down_proj.{name}"] = array
    message = rf"down_proj.biases: expected biases that are an integer .*, got {got} at \(5, 1\)"
    refuses(tmp_path, model, message)


def test_scales_and_biases_of_zero_are_zeros(tmp_path: Path) -> None:
    model, weights = written(CASES["mlx"])
    for name in ("scales", "biases"):
        array = model.tensors[f"{BLOCK}.switch_mlp.up_proj.{name}"].copy()
        array[1, 7, 0] = 0
        model.tensors[f"{BLOCK}.switch_mlp.up_proj.{name}"] = array
    expected = weights["up"].values()
    expected[1, 7, :64] = 0
    got = dequantize(checkpoint.read_layer(model.write(tmp_path)).experts)["up"]
    assert np.array_equal(got, expected)


def changed(name: str, path: str, value: Any) -> Written:
    model, _ = written(CASES[name])
    fields = model.config["quantization_config"]
    *sections, last = path.split("/")
    for section in sections:
        fields = fields[section]
    fields[last] = value
    return model


GROUP = "config_groups/group_0/weights"
WRONG: dict[str, tuple[str, str, Any, str]] = {
    "ct bits": ("ct 4 bits", f"{GROUP}/num_bits", 3, "num_bits: expected 4 or 8, got 3"),
    "ct other bits": ("ct 4 bits", f"{GROUP}/num_bits", 8, r"weight_packed: expected I32 \[192, 32\], got"),
    "ct type": ("ct 8 bits", f"{GROUP}/type", "float", "type: expected 'int', got 'float'"),
    "ct group": ("ct 4 bits", f"{GROUP}/group_size", 48, "group_size: expected a multiple of 32, got 48"),
    "ct no group": (
        "ct 4 bits",
        f"{GROUP}/group_size",
        None,
        "expected a multiple of 32, got -1",
    ),
    "ct other group": ("ct 4 bits", f"{GROUP}/group_size", 64, r"weight_scale: expected .* \[192, 2\], got"),
    "ct group of more than a row": ("ct 4 bits", f"{GROUP}/group_size", 128, "multiples? of 128"),
    "ct strategy": (
        "ct int",
        f"{GROUP}/strategy",
        "token",
        "strategy: expected 'group', 'channel'",
    ),
    "ct symmetry": (
        "ct 4 bits",
        f"{GROUP}/symmetric",
        False,
        f"tensor {FIRST}.weight_zero_point, got",
    ),
    "ct asymmetry": ("ct 4 bits, zeros", f"{GROUP}/symmetric", True, "weight_zero_point', which may change"),
    "gptq bits": ("gptq", "bits", 3, "bits: expected 4 or 8, got 3"),
    "gptq version": (
        "gptq",
        "checkpoint_format",
        "marlin",
        "_format: expected 'gptq' or 'gptq_v2'",
    ),
    "gptq two versions": ("gptq", "format", "gptq_v2", "format: expected 'gptq', as checkpoint_format says"),
    "gptq group": ("gptq", "group_size", 0, "group_size: expected a multiple of 32, or -1 for a whole row"),
    "gptq flag": ("gptq", "sym", 1, "sym: expected true or false, got 1"),
    "gptq unknown": ("gptq", "rotation", "hadamard", "rotation: expected none"),
    "gptq pattern": ("gptq", "dynamic", {"+:(a*)*": {}}, "dynamic.*: expected a regular expression"),
    "awq bits": ("awq", "bits", 8, "bits: expected 4, got 8"),
    "awq version": ("awq", "version", "gemv", "version: expected 'gemm' or 'GEMM', got 'gemv'"),
    "awq zeros": ("awq", "zero_point", False, "zero_point: expected True, got False"),
    "auto-round packing": (
        "auto-round auto_round",
        "packing_format",
        "auto_round:llm_compressor",
        "packing_format: expected 'auto_round:auto_gptq', 'auto_round'",
    ),
    "auto-round type": ("auto-round auto_round", "data_type", "mx_fp", "data_type: expected 'int'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_configuration(tmp_path: Path, case: str) -> None:
    name, path, value, message = WRONG[case]
    refuses(tmp_path, changed(name, path, value), message)


# --- other modules, other schemes ---------------------------------------------------------------------------

OTHERS: dict[str, tuple[str, str, Any, str]] = {
    "gptq, attention of 3 bits": ("gptq", "dynamic", {r"+:.*self_attn": {"bits": 3}}, ""),
    "gptq, experts of other bits": (
        "gptq",
        "dynamic",
        {r"+:.*up_proj": {"bits": 8}},
        r"up_proj.qweight: expected I32 \[32",
    ),
    "gptq, experts as the rule says": ("gptq", "dynamic", {r".*experts": {"bits": 4, "group_size": 32}}, ""),
    "gptq, the first rule": ("gptq", "dynamic", {r".*experts": {"bits": 4}, r".*up": {"bits": 8}}, ""),
    "gptq, other groups": ("gptq", "dynamic", {r".*experts": {"group_size": 64}}, r"expected I32 \[2, 24\]"),
    "gptq, unknown": ("gptq", "dynamic", {r".*experts": {"rotation": 1}}, "rotation: expected none"),
    "auto-round, by name": (
        "auto-round auto_round",
        "extra_config",
        {f"{BLOCK}.experts.1.up_proj": {"bits": 8}},
        r"experts.1.up_proj.qweight: expected I32 \[32",
    ),
    "auto-round, by pattern": (
        "auto-round auto_round",
        "extra_config",
        {r".*self_attn.*": {"bits": 2, "data_type": "mx_fp"}, r"experts\.\d+": {"group_size": 32}},
        "",
    ),
    "auto-round, floats": (
        "auto-round auto_round",
        "extra_config",
        {r".*experts.*": {"bits": 16}},
        f"expected a tensor {FIRST}.weight, got none",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_modules_of_their_own(tmp_path: Path, case: str) -> None:
    name, path, value, message = OTHERS[case]
    model = changed(name, path, value)
    if message:
        refuses(tmp_path, model, message)
    else:
        checkpoint.read_layer(model.write(tmp_path))


def of_two(first: str, second: str, is_second: str) -> tuple[Written, dict[str, np.ndarray]]:
    """A layer of which the matrices that the pattern fits are stored as `second`, and its weights."""
    (model, weights), (other, other_weights) = written(CASES[first]), written(CASES[second])
    groups = {}
    for name, each, targets in (("group_0", model, ["Linear"]), ("group_1", other, [f"re:.*{is_second}"])):
        group = each.config["quantization_config"]["config_groups"]["group_0"]
        groups[name] = group | {"targets": targets}
    model.config["quantization_config"] |= {"format": "mixed-precision", "config_groups": groups}
    for name in [name for name in model.tensors if re.match(rf".*{is_second}", name)]:
        del model.tensors[name]
    model.tensors.update({n: a for n, a in other.tensors.items() if re.match(rf".*{is_second}", n)})
    values = {part: ints.values().copy() for part, ints in weights.items()}
    for part, expert in itertools.product(PARTS, range(len(values["gate"]))):
        if re.match(rf".*{is_second}", f"{BLOCK}.experts.{expert}.{part}_proj"):
            values[part][expert] = other_weights[part].values()[expert]
    return model, values


@pytest.mark.parametrize("is_second", ["down_proj", "up_proj", r"experts\.2"])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("ct 4 bits", "ct 4 bits, 64"),
        ("ct 4 bits, channel", "ct 4 bits, zeros"),
        ("ct 4 bits, zeros", "ct 4 bits, channel, zeros"),
        ("ct 8 bits", "ct int"),
        ("ct int, zeros", "ct int, flat"),
    ],
)
def test_layouts_of_one_format(tmp_path: Path, first: str, second: str, is_second: str) -> None:
    """Other groups, dtypes of scales and zero points are made alike."""
    model, values = of_two(first, second, is_second)
    experts = checkpoint.read_layer(model.write(tmp_path)).experts
    got = dequantize(experts)
    for part in PARTS:
        assert np.array_equal(got[part], values[part])


@pytest.mark.parametrize("is_second", ["down_proj", "up_proj", r"experts\.1"])
@pytest.mark.parametrize(
    ("first", "second"),
    [("ct 4 bits", "ct 8 bits"), ("ct int, zeros", "ct 4 bits, zeros"), ("ct 8 bits, zeros", "ct 4 bits")],
)
def test_four_bits_beside_eight(tmp_path: Path, first: str, second: str, is_second: str) -> None:
    """Integers of 4 bits become integers of 8 bits."""
    model, values = of_two(first, second, is_second)
    experts = checkpoint.read_layer(model.write(tmp_path)).experts
    assert experts.format == "int8"
    got = dequantize(experts)
    for part in PARTS:
        assert np.array_equal(got[part], values[part])


@pytest.mark.parametrize("part", PARTS)
def test_mxfp4_beside_integers(tmp_path: Path, part: str) -> None:
    """Every code and every scale of MXFP4 is an integer of 8 bits times a bfloat16 number."""
    model, weights = written(CASES["ct 4 bits, zeros"])
    values = {each: ints.values() for each, ints in weights.items()}
    shape = values[part].shape
    rng = np.random.default_rng(0)
    codes = rng.integers(256, size=(*shape[:2], shape[2] // 2)).astype(np.uint8)
    finite = [*range(253), 255]  # and NaN; with larger scales a weight is infinite
    scales = np.resize(np.array(finite, np.uint8), (*shape[:2], shape[2] // 32))
    for name in [name for name in model.tensors if f"{part}_proj" in name]:
        del model.tensors[name]
    for expert in range(len(codes)):
        name = f"{BLOCK}.experts.{expert}.{part}_proj"
        model.tensors.update({f"{name}.weight_packed": codes[expert], f"{name}.weight_scale": scales[expert]})
    quantization = model.config["quantization_config"]
    mxfp4 = {"format": "mxfp4-pack-quantized", "targets": [f"re:.*{part}_proj"], "weights": {"num_bits": 4}}
    quantization["config_groups"]["group_1"] = mxfp4
    quantization["format"] = "mixed-precision"
    experts = checkpoint.read_layer(model.write(tmp_path)).experts
    values[part] = mx.dequantize_mxfp4(codes, scales)
    got = dequantize(experts)
    for each in PARTS:
        assert np.array_equal(got[each], values[each], equal_nan=True)


@pytest.mark.parametrize("name", ["ct 4 bits, zeros", "gptq", "awq", "ct int"])
def test_experts_that_are_not_alike(tmp_path: Path, name: str) -> None:
    model, weights = written(CASES[name])
    prefix = f"{BLOCK}.experts.3."
    for tensor in [tensor for tensor in model.tensors if tensor.startswith(prefix)]:
        del model.tensors[tensor]
    for part in PARTS:
        model.tensors[f"{prefix}{part}_proj.weight"] = weights[part].values()[3]
    refuses(tmp_path, model, "that are all stored alike, got .* and plain floats for")
