"""int4 and int8 through the kernels: every code and zero point, scales, groups, memory, wrong arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from format_problems import format_problem
from problems import Problem, Shape, assert_same_bits, bfloat16, pack, pack_nibbles, random_ids, rel_l2
from random_integers import SCALE_DTYPES, random_integers

import mxfp4moe as mx
from mxfp4moe.errors import PackedFormatError
from mxfp4moe.reference import ExpertArrays


def outputs_of_rows(
    format: str, weights: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None
) -> np.ndarray:
    """32 times weight 5 of each of K rows of w2, of 64 weights in two groups; the others are hidden by zeros.

    Gate and up of the intermediate value 5 are 32 and 1: both rows have one weight that is not zero.
    """
    k = len(weights)
    codes = np.zeros((1, 128, k), np.int8)
    codes[0, 5, 0], codes[0, 69, 1] = 4, 1
    arrays: dict[str, Any] = {"w13": codes}
    if format == "int4":
        arrays["w13"] = pack_nibbles((codes + 8).astype(np.uint8))
    experts = mx.pack_experts(
        arrays["w13"],
        np.ones((1, 128, k // 32), np.float32),
        weights[None],
        scales[None],
        format=format,
        w2_zero_points=None if zeros is None else zeros[None],
    )
    hidden = np.zeros((1, k), np.float32)
    hidden[0, 0], hidden[0, 1] = 8, 1
    return mx.fused_experts(hidden, experts, np.ones((1, 1), np.float32), np.zeros((1, 1), np.int32))[0]


def assert_products(got: np.ndarray, differences: np.ndarray, scales: np.ndarray) -> None:
    """32 * difference, a sum in float32, times the scale, rounded once; what is subnormal may be zero.

    An infinite scale makes NaN of the weights of zero beside that one.
    """
    infinite = np.isinf(scales)
    assert not np.isfinite(got[infinite]).any()
    got, differences, scales = got[~infinite], differences[~infinite], scales[~infinite]
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        expected = (32 * differences).astype(np.float32) * scales.astype(np.float32) + np.float32(0)
    subnormal = abs(expected) < 2.0**-126
    assert_same_bits(got[~subnormal], expected[~subnormal])
    assert ((got[subnormal] == 0) | (got[subnormal] == expected[subnormal])).all()


EXTREMES = [1.0, -3.0, 2.0**-126, 1e-40, 2.0**115, 3.4e38, np.inf, np.nan, 0.0, np.float32(1 / 3)]


@pytest.mark.emulation
@pytest.mark.smoke
@pytest.mark.parametrize("has_zeros", [False, True])
def test_every_code_and_zero_point_of_int4(isa, has_zeros):
    """Each pair in a row of w2 of its own, at scales of every size; row 256 n has scale n."""
    zero, code = (a.ravel() for a in np.divmod(np.arange(256), 16))
    zero, code = np.tile(zero, len(EXTREMES)), np.tile(code, len(EXTREMES))
    zero = zero if has_zeros else np.full_like(zero, 8)
    scales = np.repeat(np.array(EXTREMES, np.float32), 256)
    codes = np.tile(zero[:, None], 64)
    codes[:, 5] = code
    zeros = np.stack([zero, 15 - zero], axis=1)  # the second group's weights meet intermediates of zero
    both = np.stack([scales, np.ones_like(scales)], axis=1)
    packed = pack_nibbles(codes.astype(np.uint8))
    got = outputs_of_rows("int4", packed, both, zeros.astype(np.uint8) if has_zeros else None)
    assert_products(got, code - zero, scales)


@pytest.mark.emulation
@pytest.mark.parametrize("zero", [None, 0, -128, 127, -1, 77])
def test_every_code_of_int8(isa, zero):
    code = np.tile(np.arange(-128, 128), len(EXTREMES))
    scales = np.repeat(np.array(EXTREMES, np.float32), 256)
    codes = np.full((len(code), 64), zero or 0)
    codes[:, 5] = code
    zeros = None if zero is None else np.full((len(code), 2), zero, np.int8)
    both = np.stack([scales, np.ones_like(scales)], axis=1)
    got = outputs_of_rows("int8", codes.astype(np.int8), both, zeros)
    assert_products(got, code - (zero or 0), scales)


def integer_problem(
    rng: np.random.Generator, format: str, shape: Shape, group_sizes: tuple[int, int], **options: Any
) -> Problem:
    """`options`: the dtype of scales, and whether w13 and w2 have zero points."""
    m, k, i, e, top_k = shape
    dtypes, zeros = options.get("dtypes", (bfloat16, bfloat16)), options.get("zeros", (False, False))
    w13 = random_integers(rng, format, (e, 2 * i, k), k // group_sizes[0], dtypes[0], zeros[0])
    w2 = random_integers(rng, format, (e, k, i), i // group_sizes[1], dtypes[1], zeros[1])
    arrays = ExpertArrays(
        *w13[:2], *w2[:2], format=format, w13_zero_points=w13[2], w2_zero_points=w2[2],
        gate_up_layout=options.get("layout", "concatenated"),
    )  # fmt: skip
    hidden = rng.standard_normal((m, k), np.float32)
    weights = rng.dirichlet(np.ones(top_k), m).astype(np.float32)
    return Problem(hidden, arrays, weights, random_ids(rng, shape))


@pytest.mark.parametrize("format", ["int4", "int8"])
@pytest.mark.parametrize("group_sizes", [(32, 64), (128, 32), (64, 384), (512, 96), (256, 128)])
def test_group_sizes(isa, rng, format, group_sizes):
    """Groups of every kind lie on either side of a slab; w13 and w2 may differ in scales and zero points."""
    for zeros, layout in (((False, True), "concatenated"), ((True, False), "interleaved")):
        dtypes = rng.permutation(3)[:2]
        options = {"dtypes": [SCALE_DTYPES[d] for d in dtypes], "zeros": zeros, "layout": layout}
        problem = integer_problem(rng, format, Shape(50, 512, 384, 2, 2), group_sizes, **options)
        experts = problem.pack()
        assert experts.spec.group_sizes == tuple(
            None if size == k else size for size, k in zip(group_sizes, (512, 384), strict=True)
        )
        whole = problem.run(experts)
        assert rel_l2(whole, problem.float64()) < 2 * 2**-8 / 3**0.5
        for part in (slice(0, 1), slice(3, 5), slice(7, 10), slice(9, 25)):
            assert_same_bits(problem.tokens(part).run(experts, num_threads=1), whole[part])
        assert pack(problem.arrays._replace(**experts.unpack()._asdict())) == experts


@pytest.mark.nightly
@pytest.mark.parametrize("format", ["int4", "int8"])
@pytest.mark.parametrize("group_size", [32, 192, 2880])
def test_real_size(native_isa, rng, format, group_size):
    """K and I are those of a real layer, 2880."""
    problem = integer_problem(
        rng, format, Shape(2, 2880, 2880, 1, 1), (group_size, group_size), zeros=(True, True)
    )
    expected = problem.float64()
    assert rel_l2(problem.run(), expected) <= 2.0e-3
    rounded = problem._replace(hidden_states=problem.hidden_states.astype(bfloat16))
    assert rel_l2(rounded.run(), rounded.float64()) <= 2.6e-3


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -np.inf, 2.0**90])
@pytest.mark.parametrize("format", ["int4", "int8"])
def test_scales_may_be_anything(isa, rng, format, value):
    """A scale acts on its own row and group alone, and no zero point meets what another row has."""
    problem = integer_problem(rng, format, Shape(8, 96, 160, 2, 1), (32, 32), zeros=(False, True))
    problem.arrays.w2_scales[0, 3, 2] = value
    got, expected = problem.run(), problem.float64()
    finite = np.isfinite(expected)
    assert np.array_equal(np.isfinite(got), finite)
    assert finite.all() == np.isfinite(value)
    error = np.linalg.norm(got[finite] - expected[finite])
    assert error <= 2 * 2**-8 / 3**0.5 * np.linalg.norm(expected[finite])


def test_memory_of_int4_with_scales_of_16_bits(rng):
    """4.5 bits a weight with a scale for each 32, and 4.125 for each 128, beside the ends of parts."""
    experts, hidden, intermediate = 8, 512, 256
    for group_size, bits in ((32, 4.5), (128, 4.125)):
        for dtype, more in (
            (bfloat16, 0),
            (np.dtype(np.float16), 0),
            (np.dtype(np.float32), 16 / group_size),
        ):
            sizes = Shape(1, hidden, intermediate, experts, 1)
            dtypes = (dtype, dtype)
            packed = integer_problem(rng, "int4", sizes, (group_size, group_size), dtypes=dtypes).pack()
            parts = sum(size for _, _, size in packed._storage.parts())
            assert parts * 8 == 3 * hidden * intermediate * (bits + more)


@pytest.mark.parametrize("dtype", SCALE_DTYPES)
def test_nan_scales_come_back_bit_for_bit(rng, dtype):
    problem = integer_problem(rng, "int8", Shape(1, 64, 64, 1, 1), (32, 32), dtypes=(dtype, dtype))
    bits = problem.arrays.w13_scales.view(f"u{dtype.itemsize}")
    bits[0, 0, 0] = np.iinfo(bits.dtype).max
    assert problem.pack().unpack().w13_scales.tobytes() == problem.arrays.w13_scales.tobytes()


def test_a_layer_quantized_by_hand(isa, rng):
    """The quantizers' arrays are what `pack_experts` takes, symmetric or not."""
    w13 = rng.standard_normal((2, 128, 96)).astype(np.float32)
    w2 = rng.standard_normal((2, 96, 64)).astype(np.float32)
    hidden = rng.standard_normal((5, 96), np.float32)
    weights, ids = np.full((5, 2), 0.5, np.float32), np.tile(np.arange(2, dtype=np.int32), (5, 1))
    plain = mx.pack_experts(w13, None, w2, None, format="bf16")
    expected = mx.fused_experts(hidden, plain, weights, ids)
    for format, quantizer, bound in (("int4", mx.quantize_int4, 0.3), ("int8", mx.quantize_int8, 0.03)):
        for symmetric in (True, False):
            (c13, s13, z13), (c2, s2, z2) = (quantizer(w, symmetric=symmetric) for w in (w13, w2))
            assert (z13 is None) == symmetric
            zeros = {"w13_zero_points": z13, "w2_zero_points": z2}
            experts = mx.pack_experts(c13, s13, c2, s2, format=format, **zeros)
            assert rel_l2(mx.fused_experts(hidden, experts, weights, ids), expected) < bound
            assert mx.pack_experts(**experts.arguments()) == experts


def scales(groups: int, rows: int = 128, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    return {"w13_scales": np.ones((2, rows, groups), dtype)}


def zeros(value: int, groups: int, dtype: Any, experts: int = 2) -> dict[str, np.ndarray]:
    return {"w2_zero_points": np.full((experts, 96, groups), value, dtype)}


@pytest.mark.parametrize(
    ("format", "changed", "error", "message"),
    [
        ("int4", {"w13_scales": None}, TypeError, "^w13_scales: expected an array of float32"),
        ("int4", scales(3, dtype=np.float64), TypeError, "^w13_scales: expected"),
        ("int4", scales(4), ValueError, "^w13_scales: .*96 weights.*got 4"),
        ("int4", scales(2), ValueError, "^w13_scales: .*96 weights.*got 2"),
        ("int4", scales(0), ValueError, "^w13_scales: .*got 0"),
        ("int4", scales(3, rows=64), ValueError, r"^w13_scales: .*\(128, 3\)"),
        ("int4", zeros(16, 2, np.uint8), ValueError, r"^w2_zero_points\[0\]: .*15.*got 16 at position"),
        ("int4", zeros(8, 2, np.int8), TypeError, "^w2_zero_points: .*uint8"),
        ("int4", zeros(8, 1, np.uint8), ValueError, r"^w2_zero_points: .*\(96, 2\)"),
        ("int4", zeros(8, 2, np.uint8, experts=1), ValueError, "^w2_zero_points: .*2 experts"),
        ("int8", zeros(8, 2, np.uint8), TypeError, "^w2_zero_points: .*int8"),
        ("int8", {"w2": np.zeros((2, 96, 64), np.uint8)}, TypeError, "^w2: .*int8"),
        ("int4", {"block_shape": (1, 32)}, ValueError, "^block_shape: expected None with format 'int4'"),
        ("int8", {"w2_tensor_scale": np.ones(2, np.float32)}, ValueError, "^w2_tensor_scale: expected None"),
        ("mxfp4", zeros(1, 2, np.uint8), ValueError, "^w2_zero_points: expected None"),
        ("bf16", zeros(1, 2, np.uint8), ValueError, "^w2_zero_points: expected None"),
    ],
)
def test_wrong_arguments(rng, format, changed, error, message):
    arrays = format_problem(rng, Shape(1, 96, 64, 2, 1), "int8-zeros" if format == "int8" else format).arrays
    with pytest.raises(error, match=message):
        pack(arrays, **changed) if "block_shape" in changed else pack(arrays._replace(**changed))


def test_a_pair_needs_a_pair_of_zero_points(rng):
    arrays = format_problem(rng, Shape(1, 96, 64, 2, 1), "int4-zeros").arrays

    def halves(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return array[:, :64], array[:, 64:]

    zeros = halves(arrays.w13_zero_points)
    pair = arrays._replace(w13=halves(arrays.w13), w13_scales=halves(arrays.w13_scales))
    with pytest.raises(ValueError, match=r"^w13_zero_points: expected a \(gate, up\) pair"):
        pack(pair)
    assert pack(pair._replace(w13_zero_points=zeros)) == pack(arrays)
    with pytest.raises(TypeError, match=r"^w13\[1\]: .*zero points of uint8, as in w13\[0\], got .*None"):
        pack(pair._replace(w13_zero_points=(zeros[0], None)))


def test_packed_bytes_that_no_zero_points_are(rng):
    experts = format_problem(rng, Shape(1, 128, 64, 2, 1), "int4-zeros").pack()
    groups = experts.spec.to_json() | {"group_sizes": [64, None]}  # so that two K-blocks have one zero point
    place = next(begin for name, begin, _ in experts._storage.parts() if name == "w2_scales")
    for spec, change, message in (
        (experts.spec.to_json(), 16, "zero points of at most 15"),
        (groups, 1, "one scale for each block|one zero point for each group"),
    ):
        data = np.array(experts.data)
        data[place] = data[place] & 15 ^ change
        storage = data if spec is not groups else data[: data.size]
        with pytest.raises(PackedFormatError, match=f"^changed.*expected ({message})"):
            mx.PackedExperts._from_json(spec, storage, "changed").unpack()


@pytest.mark.parametrize("format", ["int4", "int8"])
@pytest.mark.parametrize("has_zeros", [False, True])
@pytest.mark.parametrize(("shape", "groups"), [((5, 32), 1), ((40, 256), 2), ((17, 96), 3), ((33, 100), 1)])
def test_a_matrix_alone(isa, rng, tmp_path, format, has_zeros, shape, groups):
    """Sums of small integers times powers of two are exact; what was packed comes back."""
    (codes,), (factors,), zero_points = random_integers(rng, format, (1, *shape), groups, bfloat16, has_zeros)
    factors = np.exp2(rng.integers(-3, 4, factors.shape)).astype(bfloat16)
    zero_points = None if zero_points is None else zero_points[0]
    linear = mx.pack_linear(codes, factors, format=format, zero_points=zero_points)
    inverse = mx.dequantize_int4 if format == "int4" else mx.dequantize_int8
    weights = inverse(codes, factors, zero_points, dtype=np.float64)
    hidden = rng.integers(-8, 9, (40, shape[1])).astype(np.float32)
    expected = (hidden @ weights.T).astype(np.float32)
    assert_same_bits(linear(hidden), expected)
    assert_same_bits(linear(hidden[3:4], num_threads=1), expected[3:4])
    unpacked = linear.unpack()
    for got, given in (
        (unpacked.weight, codes),
        (unpacked.scales, factors),
        (unpacked.zero_points, zero_points),
    ):
        assert (got is None) == (given is None)
        if given is not None:
            assert (got.dtype, got.shape, got.tobytes()) == (given.dtype, given.shape, given.tobytes())
    assert mx.pack_linear(**linear.arguments()) == linear
    linear.save(tmp_path / "linear.packed")
    assert mx.PackedLinear.open(tmp_path / "linear.packed", verify=True) == linear


@pytest.mark.parametrize("format", ["int4", "int8"])
@pytest.mark.parametrize("has_zeros", [False, True])
def test_every_number_of_tokens(isa, rng, format, has_zeros):
    """A token has the same bits in every tile and slab; 33 K-blocks are more than two slabs hold."""
    rows, k = 19, 33 * 32
    (codes,), (factors,), zero_points = random_integers(
        rng, format, (1, rows, k), k // 96, bfloat16, has_zeros
    )
    zeros = None if zero_points is None else zero_points[0]
    linear = mx.pack_linear(codes, factors, format=format, zero_points=zeros)
    hidden = rng.standard_normal((35, k), np.float32).astype(bfloat16)
    whole = linear(hidden)
    inverse = mx.dequantize_int4 if format == "int4" else mx.dequantize_int8
    expected = hidden.astype(np.float64) @ inverse(codes, factors, zeros, dtype=np.float64).T
    magnitudes = abs(hidden.astype(np.float64)) @ abs(inverse(codes, factors, zeros, dtype=np.float64)).T
    # Each sum has at most k additions, and a multiplication by the scale, of which each rounds once.
    assert (abs(whole - expected) <= (k + 1) * 2.0**-24 * magnitudes).all()
    for count in range(1, 36):
        assert_same_bits(linear(hidden[:count]), whole[:count])
        assert_same_bits(linear(hidden[count - 1 : count], num_threads=1), whole[count - 1 : count])


@pytest.mark.parametrize("format", ["int4", "int8"])
@pytest.mark.parametrize("has_zeros", [False, True])
@pytest.mark.parametrize("bits", [8, 9, 15, 16, 17, 19, 20, 21, 24])
def test_weights_are_exact_by_scales_of_so_many_bits(isa, rng, format, has_zeros, bits):
    """A token that is 1 in one place reads off the weights, which float32 holds."""
    rows, k = 48, 64
    (codes,), _, zero_points = random_integers(rng, format, (1, rows, k), k // 32, np.float32, has_zeros)
    factors = np.ldexp(1 + 2.0 ** (1 - bits), rng.integers(-8, 8, (rows, k // 32))).astype(np.float32)
    zeros = None if zero_points is None else zero_points[0]
    linear = mx.pack_linear(codes, factors, format=format, zero_points=zeros)
    inverse = mx.dequantize_int4 if format == "int4" else mx.dequantize_int8
    expected = np.ascontiguousarray(inverse(codes, factors, zeros).T) + np.float32(
        0
    )  # without a sign of zero
    hidden = np.eye(k, dtype=np.float32)
    assert_same_bits(linear(hidden), expected)
    for i in range(0, k, 7):
        assert_same_bits(linear(hidden[i : i + 1]), expected[i : i + 1])


def test_a_matrix_quantized_while_it_is_packed(rng):
    w = rng.standard_normal((70, 96), np.float32)
    for format, quantizer in (("int4", mx.quantize_int4), ("int8", mx.quantize_int8)):
        codes, factors, _ = quantizer(w)
        small = factors.astype(bfloat16)
        assert np.array_equal(small, factors)
        assert mx.pack_linear(w, quantize=format) == mx.pack_linear(codes, small, format=format)
    with pytest.raises(ValueError, match="^weight: expected columns that are a multiple of 32 with quantize"):
        mx.pack_linear(w[:, :48], quantize="int8")
    with pytest.raises(ValueError, match="^zero_points: expected None with format 'bf16'"):
        mx.pack_linear(w, zero_points=np.zeros((70, 3), np.uint8))
    codes, factors, zeros = mx.quantize_int4(w, symmetric=False)
    with pytest.raises(ValueError, match=r"^zero_points: expected shape \(70, 3\)"):
        mx.pack_linear(codes, factors, format="int4", zero_points=zeros[:, :1])
    with pytest.raises(ValueError, match=r"^scales: .*96 weights.*got 2"):
        mx.pack_linear(codes, factors[:, :2], format="int4", zero_points=zeros)
