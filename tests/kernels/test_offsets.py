"""Integers with offsets, groups of 16, and w13 and w2 of different formats: kernels and files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from format_problems import format_problem
from problems import Problem, Shape, assert_same_bits, bfloat16, pack, pack_nibbles, rel_l2
from random_integers import SCALE_DTYPES, random_integers

import mxfp4moe as mx
from mxfp4moe import reference
from mxfp4moe.reference import ExpertArrays


def random_matrix(
    rng: np.random.Generator, format: str, shape: tuple[int, int, int], group_size: int, how: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Codes or floats, scales, and offsets that are near the middle of the codes, if `how` has them."""
    if format == "bf16":
        return (rng.standard_normal(shape, np.float32) / shape[2] ** 0.5).astype(bfloat16), None, None
    if format == "mxfp4":
        return *mx.quantize_mxfp4(rng.standard_normal(shape, np.float32) / shape[2] ** 0.5), None
    groups = shape[2] // group_size
    codes, scales, _ = random_integers(rng, format, shape, groups, how["dtype"], False)
    if not how["offsets"]:
        return codes, scales, None
    middle = rng.uniform(6, 9, scales.shape) if format == "int4" else rng.uniform(100, 150, scales.shape)
    return codes, scales, (-middle * scales.astype(np.float64)).astype(how["dtype"])


def problem_of(
    rng: np.random.Generator, formats: tuple[str, str], group_size: int, how: dict[str, Any]
) -> Problem:
    m, k, i, e = 50, 512, 384, 2
    w13 = random_matrix(rng, formats[0], (e, 2 * i, k), group_size, how)
    w2 = random_matrix(rng, formats[1], (e, k, i), group_size, how)
    arrays = ExpertArrays(*w13[:2], *w2[:2], format=formats, w13_offsets=w13[2], w2_offsets=w2[2])
    problem = format_problem(rng, Shape(m, k, i, e, 2), "bf16")
    return problem._replace(arrays=arrays)


FORMATS = [("int4", "int4"), ("int8", "int8"), ("int4", "int8"), ("mxfp4", "int8"), ("int4", "bf16")]


@pytest.mark.parametrize("formats", FORMATS)
@pytest.mark.parametrize(("group_size", "offsets"), [(16, True), (16, False), (32, True), (128, True)])
def test_any_group_and_format(isa, rng, formats, group_size, offsets):
    """The error is that of the intermediate's rounding; the bits of a token do not depend on its batch."""
    dtype = SCALE_DTYPES[rng.integers(3)]
    problem = problem_of(rng, formats, group_size, {"dtype": dtype, "offsets": offsets})
    experts = problem.pack()
    assert experts.format == (formats if formats[0] != formats[1] else formats[0])
    whole = problem.run(experts)
    assert rel_l2(whole, problem.float64()) < 2 * 2**-8 / 3**0.5
    for part in (slice(0, 1), slice(3, 5), slice(7, 10), slice(9, 25)):
        assert_same_bits(problem.tokens(part).run(experts, num_threads=1), whole[part])
    assert pack(problem.arrays._replace(**experts.unpack()._asdict())) == experts
    assert mx.pack_experts(**experts.arguments()) == experts


@pytest.mark.emulation
@pytest.mark.smoke
@pytest.mark.parametrize("format", ["int4", "int8"])
@pytest.mark.parametrize("group_size", [16, 32])
@pytest.mark.parametrize("exponent", [0, -100, 100])
def test_every_code_is_exact(isa, format, group_size, exponent):
    """n * scale + offset of every count n, where float32 holds it: the products by unit vectors."""
    count = 16 if format == "int4" else 256
    scales = np.ldexp(np.array([1, -3, 0.5, 7], np.float32), exponent)
    offsets = np.ldexp(np.array([0, 5.5, -1000.25, 3], np.float32), exponent)
    n = np.zeros((4 * count, 2 * group_size), np.int64)
    n[:, 3] = n[:, group_size + 3] = np.tile(np.arange(count), 4)
    n[:, group_size + 4] = 1
    codes = pack_nibbles(n.astype(np.uint8)) if format == "int4" else (n - 128).astype(np.int8)
    factors, added = (np.repeat(a, count)[:, None].repeat(2, axis=1) for a in (scales, offsets))
    factors[:, 1] *= 2
    linear = mx.pack_linear(codes, factors, format=format, offsets=added)
    expected = n * factors.repeat(group_size, axis=1).astype(np.float64) + added.repeat(group_size, axis=1)
    assert (expected == expected.astype(np.float32)).all()
    hidden = np.eye(2 * group_size, dtype=np.float32)
    assert_same_bits(linear(hidden).T, expected.astype(np.float32) + np.float32(0))


@pytest.mark.parametrize("format", ["int4", "int8"])
@pytest.mark.parametrize(
    ("shape", "group_size"), [((1, 64), 32), ((33, 48), 16), ((17, 96), 96), ((40, 256), 64)]
)
@pytest.mark.parametrize("dtype", SCALE_DTYPES)
def test_a_matrix_alone(isa, rng, tmp_path, format, shape, group_size, dtype):
    """Sums of small integers are exact; what was packed comes back, out of files too."""
    groups = shape[1] // group_size
    (codes,), (scales,), _ = random_integers(rng, format, (1, *shape), groups, dtype, False)
    scales = np.exp2(rng.integers(-3, 4, scales.shape)).astype(dtype)
    offsets = (scales.astype(np.float32) * rng.integers(-20, 21, scales.shape) / 4).astype(dtype)
    linear = mx.pack_linear(codes, scales, format=format, offsets=offsets)
    hidden = rng.integers(-8, 9, (40, shape[1])).astype(np.float32)
    arrays = {"weight": codes, "scales": scales, "format": format, "offsets": offsets}
    expected = reference.linear_float64(hidden, **arrays).astype(np.float32)
    assert_same_bits(linear(hidden), expected)
    assert_same_bits(linear(hidden[3:4], num_threads=1), expected[3:4])
    unpacked = linear.unpack()
    for name in ("weight", "scales", "offsets"):
        got, given = getattr(unpacked, name), arrays[name]
        assert (got.dtype, got.shape, got.tobytes()) == (given.dtype, given.shape, given.tobytes())
    assert unpacked.zero_points is None
    assert mx.pack_linear(**linear.arguments()) == linear
    assert mx.pack_linear(np.asfortranarray(codes), scales, format=format, offsets=offsets) == linear
    linear.save(tmp_path / "linear.packed")
    assert mx.PackedLinear.open(tmp_path / "linear.packed", verify=True) == linear


@pytest.mark.parametrize("format", ["int4", "int8"])
@pytest.mark.parametrize("group_size", [16, 32, 96])
@pytest.mark.parametrize("bits", [8, 15, 16, 17, 20, 21, 24])
def test_products_by_scales_of_so_many_bits_are_rounded_once(isa, rng, format, group_size, bits):
    """Counts times scales with the first and the last of the bits set; tokens are 1 in one place."""
    rows, k = 33, 96
    (codes,), _, _ = random_integers(rng, format, (1, rows, k), k // group_size, np.float32, False)
    factors = np.ldexp(1 + 2.0 ** (1 - bits), rng.integers(-8, 8, (rows, k // group_size)))
    counts = reference.linear_float64(
        np.eye(k), codes, np.ones(factors.shape, np.float32), format=format, offsets=np.zeros_like(factors)
    )
    expected = (counts.T * factors.repeat(group_size, axis=1)).astype(np.float32)
    given = factors.astype(np.float32)
    linear = mx.pack_linear(codes, given, format=format, offsets=np.zeros_like(given))
    hidden = np.eye(k, dtype=np.float32)
    assert_same_bits(linear(hidden).T, expected)
    for i in range(0, k, 11):
        assert_same_bits(linear(hidden[i : i + 4]), expected.T[i : i + 4])


def test_offsets_may_be_anything(isa, rng):
    """An offset acts on its own row alone."""
    for value in (np.nan, np.inf, -np.inf, 0.0):
        problem = format_problem(rng, Shape(8, 96, 160, 2, 1), "int4-offsets")
        problem.arrays.w2_offsets[0, 3, 2] = value
        got, expected = problem.run(), problem.float64()
        finite = np.isfinite(expected)
        assert np.array_equal(np.isfinite(got), finite)
        error = np.linalg.norm(got[finite] - expected[finite])
        assert error <= 2 * 2**-8 / 3**0.5 * np.linalg.norm(expected[finite])


@pytest.mark.nightly
@pytest.mark.parametrize("group_size", [16, 32])
def test_real_size(native_isa, rng, group_size):
    """K and I are those of a real layer; scales have all bits of float32."""
    how = {"dtype": np.dtype(np.float32), "offsets": True}
    size = 2880
    w13 = random_matrix(rng, "int4", (1, 2 * size, size), group_size, how)
    w2 = random_matrix(rng, "int8", (1, size, size), group_size, how)
    arrays = ExpertArrays(*w13[:2], *w2[:2], format=("int4", "int8"), w13_offsets=w13[2], w2_offsets=w2[2])
    one = np.ones((2, 1), np.float32)
    problem = Problem(rng.standard_normal((2, size), np.float32), arrays, one, np.zeros((2, 1), np.int32))
    assert rel_l2(problem.run(), problem.float64()) <= 2.0e-3


@pytest.mark.parametrize(
    ("format", "group_size", "offsets", "bits"),
    [("int4", 32, True, 6), ("int8", 32, True, 10), ("int8", 16, False, 10)],
)
def test_memory(rng, format, group_size, offsets, bits):
    """Bits of a weight with scales of float32, beside the ends of parts: those of Q4_K, Q5_K and Q6_K."""
    how = {"dtype": np.dtype(np.float32), "offsets": offsets}
    packed = problem_of(rng, (format, format), group_size, how).pack()
    parts = sum(size for _, _, size in packed._storage.parts())
    assert parts * 8 == 3 * 512 * 384 * bits
    assert packed.spec.expert_bytes == parts


@pytest.mark.parametrize("formats", FORMATS)
def test_files_and_pickles(rng, tmp_path: Path, formats):
    experts = problem_of(rng, formats, 16, {"dtype": np.dtype(np.float16), "offsets": True}).pack()
    experts.save(tmp_path / "experts.packed")
    opened = mx.PackedExperts.open(tmp_path / "experts.packed", verify=True)
    assert opened == experts == pickle.loads(pickle.dumps(experts))
    assert opened.format == experts.format
    assert repr(experts.format) in repr(opened)


def arrays_of(rng: np.random.Generator, name: str) -> dict[str, Any]:
    given = format_problem(rng, Shape(1, 96, 64, 2, 1), name).arrays._asdict()
    given.pop("w13_zero_points" if given["w13_zero_points"] is None else "")
    return {key: value for key, value in given.items() if value is not None}


OFFSETS = np.zeros((2, 96, 2), np.float32)


@pytest.mark.parametrize(
    ("name", "changed", "error", "message"),
    [
        ("int4-offsets", {"w2_offsets": OFFSETS.astype(bfloat16)}, TypeError, "^w2_offsets: .*float32"),
        ("int4-offsets", {"w2_offsets": OFFSETS[:, :, :1]}, ValueError, r"^w2_offsets: .*\(96, 2\)"),
        ("int4-offsets", {"w2_offsets": OFFSETS[:1]}, ValueError, "^w2_offsets: .*2 experts"),
        (
            "int4-offsets",
            {"w2_zero_points": np.zeros((2, 96, 2), np.uint8)},
            ValueError,
            "^w2_offsets: expected None with zero points",
        ),
        ("mxfp4", {"w2_offsets": OFFSETS}, ValueError, "^w2_offsets: expected None with format 'mxfp4'"),
        (
            "int8-halves",
            {"w2_zero_points": np.zeros((2, 96, 4), np.int8)},
            ValueError,
            "^w2_zero_points: expected None with groups of 16",
        ),
        (
            "int8-halves",
            {"w2_scales": np.ones((2, 96, 8), np.float32)},
            ValueError,
            "^w2_scales: .*group of 16",
        ),
        ("int8-halves", {"format": ("int8",)}, ValueError, "^format: expected 'mxfp4', .*, or a pair"),
        ("int8-halves", {"format": ("int8", "int5")}, ValueError, r"^format\[1\]: expected .*'int5'"),
        ("int8-halves", {"format": ("int8", "bf16")}, TypeError, "^w2: expected an array of bfloat16"),
        ("int8-halves", {"format": ("int8", "nvfp4")}, (TypeError, ValueError), "^w2"),
        ("int8-halves", {"format": 4}, (TypeError, ValueError), "^format: expected"),
    ],
)
def test_wrong_arguments(rng, name, changed, error, message):
    with pytest.raises(error, match=message):
        mx.pack_experts(**arrays_of(rng, name) | changed)


def test_a_pair_needs_pairs_of_offsets(rng):
    arrays = format_problem(rng, Shape(1, 96, 64, 2, 1), "int4-offsets").arrays
    halves = {
        name: (a[:, :64], a[:, 64:])
        for name in ("w13", "w13_scales", "w13_offsets")
        if (a := getattr(arrays, name)) is not None
    }
    assert pack(arrays._replace(**halves)) == pack(arrays)
    with pytest.raises(ValueError, match=r"^w13_offsets: expected a \(gate, up\) pair"):
        pack(arrays._replace(**halves | {"w13_offsets": arrays.w13_offsets}))
    one = (halves["w13_offsets"][0], None)
    with pytest.raises(
        TypeError, match=r"^w13\[1\]: .*offsets of float32, .* as in w13\[0\], got .*offsets of None"
    ):
        pack(arrays._replace(**halves | {"w13_offsets": one}))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": ["int4", "int9"]}, r"format\[1\]"),
        ({"format": ["int4"]}, "format: expected 'mxfp4', .*, or a pair"),
        ({"format": ["mxfp4", "mxfp4"]}, "w13_dtypes|group_sizes"),
        ({"group_sizes": [24, 16]}, "group_sizes: .*null, 16 or a multiple of 32"),
        ({"w2_dtypes": ["uint8", "float32", None, None, "float16"]}, "w2_dtypes: expected one each of"),
        ({"w2_dtypes": ["uint8", "float32", None, "uint8", "float32"]}, "w2_dtypes: expected one each of"),
    ],
)
def test_wrong_descriptions(rng, changed, message):
    experts = problem_of(rng, ("int8", "int4"), 16, {"dtype": np.dtype(np.float32), "offsets": True}).pack()
    fields = experts.spec.to_json()
    assert mx.PackedExperts._from_json(fields, np.asarray(experts.data), "it") == experts
    with pytest.raises(mx.errors.PackedFormatError, match=f"^changed: {message}"):
        mx.PackedExperts._from_json(fields | changed, np.asarray(experts.data), "changed")
