"""`pack_linear`, and a PackedLinear in memory, files and pickles: what comes out is what went in."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from matrices import MATRICES, random_matrix
from packed_bytes import with_table
from problems import assert_same_bits, bfloat16, masked, objects

import mxfp4moe as mx
from mxfp4moe.linear import packing

QUANTIZERS = {
    "mxfp4": mx.quantize_mxfp4,
    "mxfp8": mx.quantize_mxfp8,
    "nvfp4": mx.quantize_nvfp4,
    "fp8_block": mx.quantize_fp8_block,
    "int4": lambda w: small_scales(*mx.quantize_int4(w)),
    "int8": lambda w: small_scales(*mx.quantize_int8(w)),
}


def small_scales(codes: np.ndarray, scales: np.ndarray, zero_points: None) -> tuple[np.ndarray, np.ndarray]:
    return codes, scales.astype(bfloat16)


def assert_same_arrays(got: mx.UnpackedLinear, expected: dict[str, Any]) -> None:
    for name, array in got._asdict().items():
        wanted = expected.get(name)
        assert (array is None) == (wanted is None), name
        if array is not None:
            wanted = np.asarray(wanted)
            assert (array.dtype, array.shape, array.tobytes()) == (
                wanted.dtype,
                wanted.shape,
                wanted.tobytes(),
            )


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are copied and quantized 48 at a time at the most."""
    monkeypatch.setattr(packing, "_PIECE_BYTES", 48 * 96)


# --- packing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("rows", [1, 50, 130])
def test_unpacks_to_what_was_packed(rng: np.random.Generator, name: str, rows: int) -> None:
    arguments = random_matrix(rng, name, rows, 96)
    linear = mx.pack_linear(**arguments)
    assert_same_arrays(linear.unpack(), arguments)
    assert_same_arrays(linear.unpack(num_threads=3), arguments)
    assert_same_bits(linear.bias, arguments["bias"])
    assert linear.shape == (rows, 96)
    assert linear.format == arguments["format"]
    assert linear.block_shape == arguments.get("block_shape")
    assert repr(linear).startswith(f"PackedLinear(format={linear.format!r}, shape=({rows}, 96), ")
    again = mx.pack_linear(**linear.arguments())
    assert again == linear
    assert hash(again) == hash(linear)
    assert again != mx.pack_linear(**(arguments | {"bias": None}))
    assert linear != 3


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("name", MATRICES)
def test_sources_of_any_strides(rng: np.random.Generator, name: str) -> None:
    arguments = random_matrix(rng, name, 130, 96)
    linear = mx.pack_linear(**arguments)
    for form in (np.asfortranarray, lambda a: np.repeat(a, 2, axis=0)[::2], lambda a: a[::-1].copy()[::-1]):
        given = {key: form(value) if np.ndim(value) == 2 else value for key, value in arguments.items()}
        assert mx.pack_linear(**given, num_threads=2) == linear


@pytest.mark.parametrize("dtype", [np.float32, np.float16, bfloat16])
def test_bf16_is_rounded_once(rng: np.random.Generator, dtype: Any) -> None:
    bits = rng.integers(0, 2**32, (40, 70), dtype=np.uint32)
    with np.errstate(over="ignore", invalid="ignore"):
        weight = bits.view(np.float32).astype(dtype)
        expected = weight.astype(bfloat16)
    for format in ("bf16", None):
        assert_same_bits(mx.pack_linear(weight, format=format).unpack().weight, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, bfloat16])
def test_float32_is_exact(rng: np.random.Generator, dtype: Any) -> None:
    weight = np.ldexp(rng.uniform(1, 2, (40, 70)), rng.integers(-14, 15, (40, 70))).astype(dtype)
    weight[3, :4] = np.array([0.0, -0.0, np.inf, -np.inf], dtype)
    weight[4, 0] = np.nan
    linear = mx.pack_linear(weight, format="float32")
    assert linear.spec.num_terms == {4: 3, 2: 2}[np.dtype(dtype).itemsize] - (dtype == bfloat16)
    assert_same_bits(linear.unpack().weight, weight)


@pytest.mark.parametrize(("bits", "terms"), [(8, 1), (9, 2), (16, 2), (17, 3), (24, 3)])
def test_float32_has_no_more_terms_than_it_needs(bits: int, terms: int) -> None:
    weight = np.zeros((70, 33), np.float32)
    weight[69, 32] = 2 - 2.0 ** (1 - bits)  # as many ones
    assert mx.pack_linear(weight, format="float32").spec.num_terms == terms


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, bfloat16, np.float64])
@pytest.mark.parametrize("rows", [40, 300])
def test_quantize(rng: np.random.Generator, name: Any, dtype: Any, rows: int, monkeypatch: Any) -> None:
    weight = rng.standard_normal((rows, 96)).astype(dtype)
    expected = mx.pack_linear(**packed_arguments(name, QUANTIZERS[name](weight)))
    assert mx.pack_linear(weight, quantize=name) == expected
    assert mx.pack_linear(weight, quantize=name, format=name, num_threads=1) == expected
    monkeypatch.setattr(packing, "_PIECE_BYTES", 1)
    assert mx.pack_linear(weight, quantize=name) == expected
    assert mx.pack_linear(np.asfortranarray(weight), quantize=name) == expected


def packed_arguments(name: str, quantized: tuple[Any, ...]) -> dict[str, Any]:
    return {**dict(zip(("weight", "scales", "tensor_scale"), quantized, strict=False)), "format": name}


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("block_shape", [(24, 64), (1, None), (None, 32), (None, None), (1000, 96)])
def test_quantize_with_a_block_shape(rng: np.random.Generator, block_shape: Any) -> None:
    weight = rng.standard_normal((130, 96), np.float32)
    quantized = mx.quantize_fp8_block(weight, block_shape=block_shape)
    expected = mx.pack_linear(**packed_arguments("fp8_block", quantized), block_shape=block_shape)
    assert mx.pack_linear(weight, quantize="fp8_block", block_shape=block_shape) == expected


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_quantize_names_the_value(name: Any, value: float) -> None:
    weight = np.ones((130, 96), np.float32)
    weight[101, 7] = value
    with pytest.raises(ValueError, match=rf"weight: expected finite .*, got {value} at position \(101, 7\)$"):
        mx.pack_linear(weight, quantize=name)


def test_packed_bytes_are_the_same_on_every_instruction_set(isa: str) -> None:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((50, 96), np.float32)
    linears = [mx.pack_linear(weight, quantize=name) for name in QUANTIZERS]
    linears += [mx.pack_linear(weight, format=format) for format in ("bf16", "float32")]
    with mx.use_isa("portable"):
        same = [mx.pack_linear(weight, quantize=name) for name in QUANTIZERS]
    assert linears[: len(same)] == same
    assert all(np.asarray(linear.data).ctypes.data % 4096 == 0 for linear in linears)


def test_source_may_change_afterwards(rng: np.random.Generator) -> None:
    weight, bias = rng.standard_normal((20, 33), np.float32), np.ones(20, np.float32)
    linear = mx.pack_linear(weight, format="float32", bias=bias)
    expected = linear(np.eye(33, dtype=np.float32))
    weight[:], bias[:] = 0, 0
    assert_same_bits(linear(np.eye(33, dtype=np.float32)), expected)
    assert linear.bias.tolist() == [1] * 20


@pytest.mark.parametrize("dtype", [np.float32, np.float16, bfloat16])
def test_bias_keeps_its_bits(rng: np.random.Generator, dtype: Any) -> None:
    unsigned = np.dtype(f"u{np.dtype(dtype).itemsize}")
    bias = rng.integers(0, np.iinfo(unsigned).max, 500, unsigned).view(dtype)
    if dtype == np.float16:  # whose signaling NaNs become quiet
        bias = bias[~np.isnan(bias)]
    linear = mx.pack_linear(np.zeros((len(bias), 1), np.float32), bias=bias)
    assert linear.bias.tobytes() == bias.tobytes()
    assert linear.unpack().bias.dtype == dtype


# Peak and present size of a process of its own, in which nothing else has been.
MEMORY = """
import sys, ml_dtypes, numpy as np, mxfp4moe as mx

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(key))

options = {"quantize": sys.argv[1]} if sys.argv[1] in ("mxfp8", "fp8_block") else {"format": sys.argv[1]}
dtype = ml_dtypes.bfloat16 if sys.argv[2] == "bfloat16" else sys.argv[2]
weight = np.full((40000, 992), 0.5, dtype)
if sys.argv[3] == "columns":
    weight = np.asfortranarray(weight)
mx.pack_linear(weight[:64], **options)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins anew
before = status("VmRSS")
linear = mx.pack_linear(weight, **options, num_threads=2)
print(status("VmHWM") - before, linear.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize(
    ("format", "dtype"),
    [("bf16", "bfloat16"), ("bf16", "float32"), ("float32", "float16"), ("mxfp8", "float32")],
)
def test_memory_peaks_near_what_is_packed(format: str, dtype: str, order: str) -> None:
    command = [sys.executable, "-c", MEMORY, format, dtype, order]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if "clear_refs" in run.stderr:
        pytest.skip("the peak of a process cannot be reset here")
    assert run.returncode == 0, run.stderr
    peak, packed = map(int, run.stdout.split())
    # A piece of 32 MiB and what a quantizer makes of it, threads, and the last huge page.
    assert peak <= packed + (2 * 32 + 8) * 2**20


ONES = np.ones((8, 64), np.float32)
CODES, SCALES = mx.quantize_mxfp8(ONES)
BLOCKS, BLOCK_SCALES = mx.quantize_mxfp4(ONES)
WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "format": ({"format": "int3"}, ValueError, "format: expected 'mxfp4', .* or 'float32', got 'int3'"),
    "format a number": ({"format": 4}, TypeError, "format: expected 'mxfp4', .*, got 4"),
    "quantize": ({"quantize": "bf16"}, ValueError, "quantize: expected 'mxfp4', .*, got 'bf16'"),
    "format beside quantize": (
        {"quantize": "mxfp8", "format": "bf16"},
        ValueError,
        "format: expected None or 'mxfp8' with quantize='mxfp8', got 'bf16'",
    ),
    "scales beside quantize": (
        {"quantize": "mxfp8", "scales": SCALES},
        ValueError,
        "scales: expected None with quantize, got",
    ),
    "tensor_scale beside quantize": (
        {"quantize": "nvfp4", "tensor_scale": np.float32(1)},
        ValueError,
        "tensor_scale: expected None with quantize, got",
    ),
    "quantize codes": ({"weight": CODES, "quantize": "mxfp8"}, TypeError, "weight: .*, got .*float8_e4m3fn"),
    "quantize a vector": (
        {"weight": ONES[0], "quantize": "mxfp8"},
        ValueError,
        r"weight: expected shape \(N, K\)",
    ),
    "quantize odd columns": (
        {"weight": ONES[:, :33], "quantize": "mxfp8"},
        ValueError,
        "multiple of 32, got 8 x 33",
    ),
    "quantize no rows": (
        {"weight": ONES[:0], "quantize": "mxfp4"},
        ValueError,
        "at least one row, .* got 0 x 64",
    ),
    "weight float64": ({"weight": ONES.astype(float)}, TypeError, "weight: .*, got .*float64.*astype"),
    "weight integers": (
        {"weight": ONES.astype(int)},
        TypeError,
        "weight: expected an array of .*, got .*int64",
    ),
    "weight of objects": ({"weight": objects(ONES)}, TypeError, "weight: expected an array of"),
    "weight masked": ({"weight": masked(ONES)}, TypeError, "weight: expected an array without a mask"),
    "weight a vector": ({"weight": ONES[0]}, ValueError, "weight: expected an array with 2 axes, got"),
    "weight a cube": ({"weight": ONES[None]}, ValueError, "weight: expected an array with 2 axes, got"),
    "no rows": ({"weight": ONES[:0]}, ValueError, "weight: expected at least one row, .*, got 0 x 64"),
    "no columns": ({"weight": ONES[:, :0]}, ValueError, "weight: .* positive multiple of 1, got 8 x 0"),
    "columns of mxfp8": (
        {"weight": CODES[:, :40], "scales": SCALES, "format": "mxfp8"},
        ValueError,
        "weight: .* positive multiple of 32, got 8 x 40",
    ),
    "blocks of another size": (
        {"weight": BLOCKS.reshape(8, 4, 8), "scales": BLOCK_SCALES, "format": "mxfp4"},
        ValueError,
        r"weight: expected shape \(8, 2, 16\), got shape \(8, 4, 8\)",
    ),
    "scales with bf16": ({"scales": SCALES}, ValueError, "scales: expected None with format 'bf16', got"),
    "no scales": ({"weight": CODES, "format": "mxfp8"}, TypeError, "scales: expected an array of"),
    "scales of another shape": (
        {"weight": CODES, "scales": SCALES[:7], "format": "mxfp8"},
        ValueError,
        r"scales: expected shape \(8, 2\), got shape \(7, 2\)",
    ),
    "scales float32": (
        {"weight": CODES, "scales": np.ones((8, 2), np.float32), "format": "mxfp8"},
        TypeError,
        "scales: expected an array of uint8 or float8_e8m0fnu, got",
    ),
    "bias shape": (
        {"bias": np.ones(7, np.float32)},
        ValueError,
        r"bias: expected shape \(8,\), got shape \(7,\)",
    ),
    "bias float64": (
        {"bias": np.ones(8)},
        TypeError,
        "bias: expected an array of float32, .*, got .*float64",
    ),
    "block_shape": (
        {"block_shape": (1, 32)},
        ValueError,
        "block_shape: expected None with format 'bf16', got",
    ),
    "block_shape columns": (
        {"quantize": "fp8_block", "block_shape": (1, 33)},
        ValueError,
        r"block_shape\[1\]: expected a multiple of 32 or None, got 33",
    ),
    "tensor_scale missing": (
        {"weight": BLOCKS, "scales": np.ones((8, 4), ml_dtypes.float8_e4m3fn), "format": "nvfp4"},
        ValueError,
        "tensor_scale: expected a float32 array of shape .* with format 'nvfp4', got None",
    ),
    "tensor_scale of two": (
        {"tensor_scale": np.ones(2, np.float32)},
        ValueError,
        r"tensor_scale: .* or \(1,\)",
    ),
    "tensor_scale a float": ({"tensor_scale": 1.0}, TypeError, "tensor_scale: expected an array of float32"),
    "tensor_scale of float32": (
        {"tensor_scale": np.float32(1), "format": "float32"},
        ValueError,
        "tensor_scale: expected None with format 'float32', got .*1.0",
    ),
    "threads": ({"num_threads": 0}, ValueError, "num_threads: expected an integer in"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls(case: str) -> None:
    change, error, match = WRONG[case]
    with pytest.raises(error, match=match):
        mx.pack_linear(**({"weight": ONES} | change))


# --- immutable, copied, pickled -----------------------------------------------------------------------------


def test_immutable() -> None:
    linear = mx.pack_linear(ONES)
    with pytest.raises(AttributeError, match="PackedLinear is immutable: cannot set 'bias'"):
        linear.bias = np.ones(8)  # type: ignore[misc, assignment]
    with pytest.raises(AttributeError, match="PackedLinear is immutable: cannot delete 'spec'"):
        del linear.spec
    with pytest.raises(TypeError, match=r"PackedLinear: expected to be made by pack_linear\(\), got"):
        mx.PackedLinear()
    assert linear.data.readonly
    assert copy.copy(linear) is linear
    assert copy.deepcopy(linear) is linear


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_are_equal(rng: np.random.Generator, name: str, protocol: int) -> None:
    linear = mx.pack_linear(**random_matrix(rng, name, 40, 96))
    again = pickle.loads(pickle.dumps(linear, protocol))
    assert again == linear
    assert_same_arrays(again.unpack(), linear.unpack()._asdict())


def test_pickles_are_checked(rng: np.random.Generator) -> None:
    linear = mx.pack_linear(ONES)
    buffers: list[pickle.PickleBuffer] = []
    assert len(pickle.dumps(linear, 5, buffer_callback=buffers.append)) < 1000
    assert len(buffers) == 1
    make, (version, fields, data) = linear.__reduce_ex__(4)
    with pytest.raises(mx.PackedFormatError, match="pickle: expected packed layout 1, got layout 2"):
        make(version + 1, fields, data)
    with pytest.raises(mx.PackedFormatError, match=r"pickle: bytes: expected \d+, got \d+"):
        make(version, fields, data[:-1])


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MATRICES)
def test_comes_back_from_a_file(isa: str, tmp_path: Path, rng: np.random.Generator, name: str) -> None:
    linear = mx.pack_linear(**random_matrix(rng, name, 40, 96))
    linear.save(tmp_path / "a.packed")
    hidden = rng.standard_normal((3, 96), np.float32)
    for verify in (False, True):
        opened = mx.PackedLinear.open(str(tmp_path / "a.packed"), verify=verify)
        assert opened == linear
        assert (repr(opened), opened.nbytes, opened.spec) == (repr(linear), linear.nbytes, linear.spec)
        assert_same_bits(opened(hidden), linear(hidden))
        assert_same_arrays(opened.unpack(), linear.unpack()._asdict())
    assert [path.name for path in tmp_path.iterdir()] == ["a.packed"]


def test_files_of_another_kind_are_refused_by_name(tmp_path: Path) -> None:
    mx.pack_linear(ONES).save(tmp_path / "linear")
    with pytest.raises(mx.PackedFormatError, match="expected packed experts, .*, got a packed matrix, which"):
        mx.PackedExperts.open(tmp_path / "linear")
    w13, w2 = np.ones((1, 64, 32), np.float32), np.ones((1, 32, 32), np.float32)
    mx.pack_experts(w13, None, w2, None, format="bf16").save(tmp_path / "experts")
    with pytest.raises(mx.PackedFormatError, match="expected a packed matrix, .*, got packed experts, which"):
        mx.PackedLinear.open(tmp_path / "experts")
    with pytest.raises(FileNotFoundError, match="missing"):
        mx.PackedLinear.open(tmp_path / "missing")


def setting(**fields: Any) -> Any:
    return lambda table: table["meta"]["linear"].update(fields)


WRONG_FILES: dict[str, tuple[Any, str]] = {
    "no fields": (lambda t: t["meta"].pop("linear"), "linear: fields: expected format, .*, got None"),
    "field missing": (lambda t: t["meta"]["linear"].pop("shape"), "linear: fields: expected format, shape"),
    "field unknown": (setting(colour="red"), "linear: fields: expected format, shape"),
    "format": (setting(format="int3"), "linear: format: expected 'mxfp4', .*, got 'int3'"),
    "format another": (
        setting(format="bf16"),
        "linear: dtypes: expected one each of|block_shape: expected None",
    ),
    "shape a string": (setting(shape="ab"), "linear: shape: expected two sizes in"),
    "shape of one": (setting(shape=[8]), "linear: shape: expected two sizes in"),
    "shape of bools": (setting(shape=[True, 64]), "linear: shape: expected two sizes in"),
    "shape zero": (setting(shape=[0, 64]), "linear: shape: expected two sizes in"),
    "shape huge": (setting(shape=[2**40, 2**40]), r"linear: bytes: expected"),
    "shape beyond": (setting(shape=[8, 2**63]), "linear: shape: expected two sizes in"),
    "more rows": (setting(shape=[2000, 64]), r"linear: bytes: expected \d+, got \d+"),
    "dtypes": (setting(dtypes=["float8_e4m3fn", None, None]), "linear: dtypes: expected one each of"),
    "a bias more": (setting(dtypes=["float8_e4m3fn", "float32", "float32"]), "linear: bytes: expected"),
    "block_shape": (setting(block_shape=None), "linear: block_shape: expected a list of two sizes"),
    "block_shape odd": (setting(block_shape=[1, 33]), r"linear: block_shape\[1\]: expected a multiple of 32"),
    "tensor_scale": (setting(tensor_scale=True), "linear: tensor_scale: expected true or false, as the"),
    "tensor_scale a number": (setting(tensor_scale=0), "linear: tensor_scale: expected true or false"),
    "terms": (setting(num_terms=2), r"linear: num_terms: expected an integer in \[1, 1\], got 2"),
    "terms true": (setting(num_terms=True), "linear: num_terms: expected an integer in"),
    "part renamed": (lambda t: t["parts"][0].update(name="linear/x"), "expected parts .*, got .*linear/x"),
    "part of another dtype": (lambda t: t["parts"][0].update(dtype="I8"), "expected parts .*, got"),
    "parts exchanged": (lambda t: t["parts"].reverse(), "expected parts .*, got"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_files_are_refused(tmp_path: Path, case: str) -> None:
    edit, message = WRONG_FILES[case]
    path = tmp_path / "a"
    mx.pack_linear(ONES, quantize="fp8_block").save(path)
    path.write_bytes(with_table(path.read_bytes(), lambda table: edit(table) and None))
    with pytest.raises(mx.PackedFormatError, match=f"{path}: (.*: )?{message}"):
        mx.PackedLinear.open(path)


@pytest.mark.parametrize(
    ("arguments", "fields", "message"),
    [
        (
            {"quantize": "fp8_block", "block_shape": (1, 32)},
            {"block_shape": [4, 32]},
            "one scale for each block",
        ),
        (
            {"bias": np.full(8, 0.1, np.float32)},
            {"dtypes": ["bfloat16", None, "bfloat16"]},
            "one that bfloat16",
        ),
        (
            {"bias": np.full(8, 0.1, np.float32)},
            {"dtypes": ["bfloat16", None, "float16"]},
            "one that float16",
        ),
        ({"format": "float32"}, {"dtypes": ["float16", None, None]}, "numbers that float16 can hold"),
    ],
)
def test_bytes_of_another_kind_are_not_unpacked(
    tmp_path: Path, arguments: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    """They have the size that the file says, and hold what it does not say."""
    path = tmp_path / "a"
    weight = np.ldexp(1.0, np.arange(-20, 20)).astype(np.float32).repeat(16).reshape(8, 80)[:, :64]
    mx.pack_linear(weight, **arguments).save(path)
    path.write_bytes(with_table(path.read_bytes(), lambda t: setting(**fields)(t)))
    opened = mx.PackedLinear.open(path)
    with pytest.raises(mx.PackedFormatError, match=f"{path}: linear: packed .*: expected {message}"):
        opened.unpack()
