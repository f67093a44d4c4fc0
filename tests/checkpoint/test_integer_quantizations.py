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
from problems import bfloat16, rel_l2

import mxfp4moe as mx
from mxfp4moe import checkpoint
from mxfp4moe.checkpoint._experts import read_matrix
from mxfp4moe.checkpoint.model_folder import ModelFolder
from mxfp4moe.checkpoint.schemes import find_scheme
from mxfp4moe.errors import PackedFormatError

FIRST = f"{BLOCK}.experts.0.gate_proj"


def check_values(
    experts: checkpoint.ExpertWeights, expected: dict[str, np.ndarray], down_order: np.ndarray
) -> None:
    """Rows of gate and up stand in the order of the columns of down, their columns in `w13_columns`."""
    got = dequantize(experts)
    columns = experts.arguments().get("w13_columns")
    for part, values in expected.items():
        moved = values
        if part != "down":
            moved = np.take_along_axis(moved, down_order[:, :, None], axis=1)
            moved = moved if columns is None else np.take_along_axis(moved, columns[:, None], axis=2)
        else:
            moved = np.take_along_axis(moved, down_order[:, None], axis=2)
        assert np.array_equal(got[part], moved)


@pytest.mark.parametrize("sizes", [(4, 128, 192), (3, 192, 64)])
@pytest.mark.parametrize("name", CASES)
def test_weights_are_read_exactly(tmp_path: Path, name: str, sizes: tuple[int, int, int]) -> None:
    case = CASES[name]
    model, weights = written(case, sizes)
    experts = checkpoint.read_layer(model.write(tmp_path)).experts
    arguments = experts.arguments()
    check_values(experts, {part: ints.values() for part, ints in weights.items()}, weights["down"].order)
    assert ("w13_columns" in arguments) == case.ordered
    assert ("w13_offsets" in arguments) == ("w2_offsets" in arguments) == (case.option == "biases")
    assert experts.format == ("int8" if "int" in name else f"int{case.bits}")
    assert arguments["w2_scales"][0].dtype == case.scale_dtype  # 16 bits stay 16 bits
    assert ("w2_zero_points" in arguments) == (not case.symmetric)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].ordered])
def test_layers_with_an_order_of_activations(isa: str, tmp_path: Path, name: str) -> None:
    """The result is that of matrices with their columns in place, in any batch, out of packed files too."""
    model, weights = written(CASES[name])
    layer = mx.MoELayer.from_checkpoint(model.write(tmp_path))
    values = {part: ints.values() for part, ints in weights.items()}
    plain = mx.reference.ExpertArrays(
        np.concatenate([values["gate"], values["up"]], axis=1), None, values["down"], None, format="bf16"
    )
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((37, 128), np.float32)
    slots = (
        np.full((37, 2), 0.5, np.float32),
        rng.permuted(np.tile(np.arange(4, dtype=np.int32), (37, 1)), axis=1)[:, :2],
    )
    got = mx.fused_experts(hidden, layer.experts, *slots)
    expected = mx.reference.fused_experts_float64(hidden, plain, *slots)
    assert rel_l2(got, expected) < 2 * 2**-8 / 3**0.5
    for rows in (slice(0, 1), slice(5, 22)):
        part = mx.fused_experts(hidden[rows], layer.experts, *(array[rows] for array in slots))
        assert np.array_equal(part, got[rows])
    assert mx.pack_experts(**layer.experts.arguments()) == layer.experts
    layer.experts.save(tmp_path / "experts.packed")
    assert mx.PackedExperts.open(tmp_path / "experts.packed", verify=True) == layer.experts
    for dtype in (np.float16, bfloat16):
        rounded = hidden.astype(dtype)
        wide = mx.fused_experts(rounded.astype(np.float32), layer.experts, *slots)
        out = np.empty_like(wide)
        mx.fused_experts(rounded, layer.experts, *slots, out=out)
        assert np.array_equal(out, wide)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].ordered])
def test_wrong_orders_of_activations(tmp_path: Path, name: str) -> None:
    model, _ = written(CASES[name])
    suffix = "g_idx" if name.startswith("gptq") else "weight_g_idx"
    tensor = f"{BLOCK}.experts.2.up_proj.{suffix}"
    good = model.tensors[tensor]
    last = int(good.max())
    for wrong, message in (
        (np.roll(good, 1), "the same order of activations in .*experts.2.gate_proj and .*experts.2.up_proj"),
        (np.where(good == 0, last, good), f"tensor {tensor}: expected each of 0 to {last} .* times"),
        (good - 1, f"tensor {tensor}: expected each of 0 to {last}"),
    ):
        changed = model._replace(tensors=model.tensors | {tensor: wrong.astype(good.dtype)})
        with pytest.raises(ValueError, match=message):
            mx.MoELayer.from_checkpoint(changed.write(tmp_path))
    folder = ModelFolder(model.write(tmp_path))
    with pytest.raises(ValueError, match="no activation order.* in a matrix beside the experts"):
        read_matrix(folder, f"{BLOCK}.experts.1.down_proj", (128, 192), find_scheme(folder.config))


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].ordered])
def test_orders_that_are_missing(tmp_path: Path, name: str) -> None:
    """Where the configuration says that columns are ordered, all experts have an order, or none has."""
    model, _ = written(CASES[name])
    quantization = model.config["quantization_config"]
    if "gptq" in name:
        quantization["desc_act"] = True
    else:
        quantization["config_groups"]["group_0"]["weights"]["actorder"] = "group"
    checkpoint.read_layer(model.write(tmp_path / "all"))
    lost = next(name for name in model.tensors if re.search(r"1\.down_proj\.(weight_)?g_idx$", name))
    del model.tensors[lost]
    refuses(tmp_path / "lost", model, f"expected a tensor {lost}, as other experts have, got none")
    for name in [name for name in model.tensors if re.search(r"down_proj\.(weight_)?g_idx$", name)]:
        del model.tensors[name]
    checkpoint.read_layer(model.write(tmp_path / "none"))  # in the order of its own


def test_wrong_columns(tmp_path: Path) -> None:
    model, _ = written(CASES["gptq, ordered"])
    experts = mx.MoELayer.from_checkpoint(model.write(tmp_path)).experts
    given = experts.arguments()
    columns = given["w13_columns"]
    for wrong, error, message in (
        (columns.astype(np.float32), TypeError, "w13_columns: expected an array of int32 or int64"),
        (columns[:, :5], ValueError, r"w13_columns: expected shape \(4, 128\)"),
        (np.where(columns == 3, 4, columns), ValueError, "w13_columns: expected a permutation of 0 to 127"),
    ):
        with pytest.raises(error, match=message):
            mx.pack_experts(**given | {"w13_columns": wrong})
    data = np.array(experts.data)
    begin = next(begin for name, begin, _ in experts._storage.parts() if name == "w13_columns")
    data[begin : begin + 4] = np.array([128], "<i4").view(np.uint8)
    with pytest.raises(
        PackedFormatError, match=r"changed: w13_columns: expected values in \[0, 127\], got 128"
    ):
        mx.PackedExperts._from_json(experts.spec.to_json(), data, "changed")


@pytest.mark.parametrize("name", ["ct 4 bits, zeros", "gptq v2, 8 bits, zeros", "awq", "ct int, zeros"])
def test_matrices_that_stand_alone(tmp_path: Path, name: str) -> None:
    """Matrices outside of experts, as projections, give what pack_linear takes.

    Their products by unit vectors are the weights.
    """
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
    optional = ("weight_shape", "g_idx", "weight_g_idx") + (
        ("weight_zero_point",) if CASES[name].symmetric else ()
    )
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
def test_groups_of_columns(tmp_path: Path, name: str) -> None:
    """An ascending order is none; one expert, and down alone, may have one."""
    model, _ = written(CASES[name])
    tensor = f"{BLOCK}.experts.2.down_proj." + ("g_idx" if name == "gptq" else "weight_g_idx")
    groups = np.arange(192, dtype=np.int32) // 32
    model.tensors[tensor] = groups
    plain = checkpoint.read_layer(model.write(tmp_path / "ascending")).experts
    groups[[3, 40]] = groups[[40, 3]]
    ordered = checkpoint.read_layer(model.write(tmp_path / "other")).experts
    assert "w13_columns" not in ordered.arguments()
    rows = np.argsort(groups, kind="stable")
    for expert in range(4):
        before, after = (each.arguments()["w13"][1][expert] for each in (plain, ordered))
        assert np.array_equal(after, before[rows] if expert == 2 else before)
    groups[3] = 0
    model.tensors[tensor] = groups
    refuses(tmp_path / "wrong", model, f"{tensor}: expected each of 0 to 5 32 times, got group 0 at")


SIGNALING_NAN = np.array([0x7F81], np.uint16).view(bfloat16)[0]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("scale", "bias"),
    [
        (1.0, -2.5),
        (1.0, 1.0),
        (1.0, -256.0),
        (0.0, 1.0),
        (np.nan, 0.0),
        (1.0, np.inf),
        (SIGNALING_NAN, 0.0),
        (1.0, SIGNALING_NAN),
    ],
)
def test_biases_that_are_no_zero_points(tmp_path: Path, bits: int, scale: float, bias: float) -> None:
    """One of them is enough: all matrices of down then have offsets, those of gate and up zero points."""
    model, weights = written(CASES["mlx" if bits == 4 else "mlx 8 bits"])
    for name, value in (("scales", scale), ("biases", bias)):
        array = model.tensors[f"{BLOCK}.switch_mlp.down_proj.{name}"].copy()
        array[2, 5, 1] = value
        model.tensors[f"{BLOCK}.switch_mlp.down_proj.{name}"] = array
    experts = checkpoint.read_layer(model.write(tmp_path)).experts
    arguments = experts.arguments()
    assert arguments["w2_offsets"][0].dtype == arguments["w2_scales"][0].dtype == bfloat16
    assert "w2_zero_points" not in arguments
    assert "w13_offsets" not in arguments
    expected = weights["down"].values()
    with np.errstate(invalid="ignore"):
        expected[2, 5, 64:128] = weights["down"].codes[2, 5, 64:128] * np.float32(scale) + np.float32(bias)
    assert np.array_equal(dequantize(experts)["down"], expected, equal_nan=True)


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
    "awq zeros": ("awq", "zero_point", False, rf"{FIRST}.qzeros: expected 8 for each group"),
    "awq symmetry": ("awq", "sym", True, "sym: expected False, got True"),
    "awq order": ("awq", "desc_act", True, "desc_act: expected False, got True"),
    "awq format": ("awq", "checkpoint_format", "gemv_fast", "format: expected 'gemm', got 'gemv_fast'"),
    "awq method": ("awq", "method", "gptq", "method: expected 'awq', got 'gptq'"),
    "gptq words": ("gptq", "pack_dtype", "int16", "pack_dtype: expected 'int32', got 'int16'"),
    "gptq floats": ("gptq", "data_type", "mx_fp", "data_type: expected 'int', got 'mx_fp'"),
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


def test_groups_that_the_general_size_is_no_multiple_of(tmp_path: Path) -> None:
    """Sizes are checked for each matrix, in the scheme that is its own."""
    model, weights = written(CASES["gptq"], (4, 96, 160))
    model.config["quantization_config"] |= {
        "group_size": 128,
        "dynamic": {r"-:.*gate$": {}, r"+:.*experts": {"group_size": 32}},
    }
    got = dequantize(checkpoint.read_layer(model.write(tmp_path)).experts)
    for part, ints in weights.items():
        assert np.array_equal(got[part], ints.values())
    del model.config["quantization_config"]["dynamic"]
    refuses(tmp_path, model, "hidden_size: expected .* multiple of 128, got 96")


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
    is_apart = is_second == "down_proj"  # w13 and w2 may be of two formats
    assert experts.format == (("int4", "int8") if "4" in first else ("int8", "int4")) if is_apart else "int8"
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
