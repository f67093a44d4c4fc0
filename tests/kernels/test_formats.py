"""Every weight format through the kernels: exact cases, bounds, special codes, invariance."""

from __future__ import annotations

import functools

import ml_dtypes
import numpy as np
import pytest
from conftest import SEED
from format_problems import (
    FORMATS,
    FREE_SIZES,
    SCALABLE,
    exact_arrays,
    exact_format_problem,
    format_problem,
    with_tensor_scales,
)
from problems import (
    ACTIVATIONS,
    LAYOUTS,
    Problem,
    Shape,
    assert_same_bits,
    bfloat16,
    exact_problem,
    pack,
    rel_l2,
)

import mxfp4moe as mx

float8_e4m3fn = np.dtype(ml_dtypes.float8_e4m3fn)
float8_e5m2 = np.dtype(ml_dtypes.float8_e5m2)


@pytest.mark.emulation
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("layout", [pytest.param(LAYOUTS[0], marks=pytest.mark.smoke), *LAYOUTS[1:]])
def test_exact_cases_bit_for_bit(isa, rng, name, layout):
    mxfp4, problem = exact_format_problem(rng, Shape(48, 224, 96, 3, 2), name, layout=layout, bias="both")
    expected, experts = mxfp4.expected(), problem.pack()
    assert_same_bits(problem.expected(), expected)
    for part in (slice(0, 1), slice(1, 3), slice(3, 8), slice(8, 48)):
        assert_same_bits(problem.tokens(part).run(experts), expected[part])


@pytest.mark.parametrize("name", FORMATS)
def test_one_expert_with_many_tokens_is_exact(isa, rng, name):
    mxfp4, problem = exact_format_problem(rng, Shape(150, 416, 64, 1, 1), name)
    assert_same_bits(problem.run(), mxfp4.expected())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_close_to_float64(isa, rng, name, activation):
    problem = format_problem(rng, Shape(20, 288, 160, 2, 2), name, dtype=np.float32, bias="both")
    for options in ({}, {"apply_router_weight_on_input": True}):
        options["activation"] = activation
        # Two roundings to bfloat16, of a relative error of at most 2^-8 / sqrt(3) on average each.
        assert rel_l2(problem.run(**options), problem.float64(**options)) < 2 * 2**-8 / 3**0.5


@pytest.mark.emulation
@pytest.mark.parametrize("name", SCALABLE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_exact_cases_with_tensor_scales(isa, rng, name, layout):
    """A bias is added after the scale: the results are those of the weights that the scales are part of."""
    mxfp4 = exact_problem(rng, Shape(48, 224, 96, 3, 2), layout=layout, bias="both")
    problem = mxfp4._replace(arrays=with_tensor_scales(rng, exact_arrays(rng, mxfp4.arrays, name)))
    expected, experts = mxfp4.expected(), problem.pack()
    assert_same_bits(problem.expected(), expected)
    for part in (slice(0, 1), slice(1, 3), slice(3, 8), slice(8, 48)):
        assert_same_bits(problem.tokens(part).run(experts), expected[part])


@pytest.mark.parametrize("name", SCALABLE)
def test_any_tensor_scales_are_close_to_float64(isa, rng, name):
    problem = format_problem(rng, Shape(20, 288, 160, 2, 2), name, dtype=np.float32, bias="both")
    scales = {
        "w13_tensor_scale": rng.uniform(0.5, 2, (2, 2)).astype(np.float32),
        "w2_tensor_scale": rng.uniform(-2, -0.5, 2).astype(np.float32),
    }
    problem = problem._replace(arrays=problem.arrays._replace(**scales))
    for options in ({}, {"apply_router_weight_on_input": True}):
        assert rel_l2(problem.run(**options), problem.float64(**options)) < 2 * 2**-8 / 3**0.5


@pytest.mark.parametrize("name", FREE_SIZES)
@pytest.mark.parametrize("sizes", [(1, 1), (7, 33), (47, 5), (100, 130), (33, 17)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sizes_are_free(isa, rng, name, sizes, layout):
    problem = format_problem(rng, Shape(6, *sizes, 3, 2), name, dtype=np.float32, layout=layout, bias="both")
    for options in ({}, {"activation": "swigluoai"}):
        assert rel_l2(problem.run(**options), problem.float64(**options)) < 2 * 2**-8 / 3**0.5


@pytest.mark.parametrize("sizes", [(16, 48), (48, 16), (80, 112)])
def test_nvfp4_multiples_of_16(isa, rng, sizes):
    problem = format_problem(rng, Shape(6, *sizes, 3, 2), "nvfp4", dtype=np.float32)
    assert rel_l2(problem.run(), problem.float64()) < 2 * 2**-8 / 3**0.5


@functools.cache
def real_problem(name: str) -> tuple[Problem, np.ndarray]:
    """A problem of the size of a real layer and its result in float64."""
    rng = np.random.default_rng(SEED)
    problem = format_problem(rng, Shape(4, 2048, 768, 2, 2), name)
    # Eight slots of two experts: what is summed is what counts here, and half a second for each format.
    weights = rng.dirichlet(np.ones(8), 4).astype(np.float32)
    problem = problem._replace(topk_weights=weights, topk_ids=rng.integers(0, 2, (4, 8)).astype(np.int32))
    return problem, problem.float64()


@pytest.mark.parametrize("name", FORMATS)
def test_real_size(native_isa, name):
    problem, expected = real_problem(name)
    assert rel_l2(problem.run(), expected) <= 2.6e-3
    exact_input = problem._replace(hidden_states=problem.hidden_states.astype(np.float32))
    assert rel_l2(exact_input.run(), expected) <= 2.0e-3


@pytest.mark.emulation
@pytest.mark.parametrize("name", FORMATS)
def test_batch_invariant(isa, rng, name):
    problem = format_problem(rng, Shape(90, 416, 96, 2, 1), name)
    experts = problem.pack()
    whole = problem.run(experts, num_threads=2)
    for part in (slice(0, 1), slice(3, 5), slice(10, 13), slice(0, 17), slice(20, 60)):
        assert_same_bits(problem.tokens(part).run(experts, num_threads=1), whole[part])


def outputs_of_rows(w2, w2_scales, w13_scales=None, format="mxfp8"):
    """1024 times weight 5 of each row of w2, of K rows by 32: the hidden state and w13 make it so."""
    k = w2.shape[1]
    w13 = np.zeros((1, 64, k), np.float32)
    w13[0, 5, 0] = w13[0, 37, 0] = 1
    if w13_scales is None:
        w13_scales = np.full((1, 64, k // 32), 127, np.uint8)
    experts = mx.pack_experts(w13.astype(w2.dtype), w13_scales, w2, w2_scales, format=format)
    hidden = np.zeros((1, k), np.float32)
    hidden[0, 0] = 32
    return mx.fused_experts(hidden, experts, np.ones((1, 1), np.float32), np.zeros((1, 1), np.int32))[0]


def assert_times_1024(got, weights):
    """Bit for bit, but for weights that may count as zero."""
    with np.errstate(over="ignore"):
        expected = weights * np.float32(1024) + np.float32(0)
    subnormal = abs(weights) < 2.0**-126
    assert_same_bits(got[~subnormal], expected[~subnormal])
    assert ((got[subnormal] == 0) | (got[subnormal] == expected[subnormal])).all()


@pytest.mark.emulation
@pytest.mark.parametrize("dtype", [float8_e4m3fn, float8_e5m2])
@pytest.mark.parametrize("format", ["mxfp8", "fp8_block"])
def test_every_code(isa, dtype, format):
    """Each code in a row of w2 of its own: the row's output is the code's value times a power of two."""
    if format == "fp8_block" and dtype == float8_e5m2:
        pytest.skip("fp8_block has e4m3 elements")
    k, codes = 256, np.arange(256, dtype=np.uint8)
    w2 = np.zeros((1, k, 32), np.uint8)
    w2[0, :, 5] = codes
    scales = {
        "mxfp8": (np.full((1, k, 1), 126, np.uint8), np.full((1, 64, k // 32), 127, np.uint8)),
        "fp8_block": (np.full((1, 2, 1), 0.5, np.float32), np.ones((1, 2, 2), np.float32)),
    }[format]
    got = outputs_of_rows(w2.view(dtype), *scales, format=format)
    with np.errstate(invalid="ignore"):
        expected = codes.view(dtype).astype(np.float32) * np.float32(0.5 * 32 * 32) + np.float32(0)
    assert_same_bits(got, expected)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("byte", [0, 1, 9, 10, 246, 247, 252, 253, 254, 255])
@pytest.mark.parametrize("dtype", [float8_e4m3fn, float8_e5m2])
def test_every_scale_of_mxfp8(isa, byte, dtype, zeros):
    k = 64
    w2 = np.zeros((1, k, 32), np.float32)
    if not zeros:
        w2[0, :, 5] = np.resize([1.0, -1.75, 0.25, 2.0**-6], k)
    got = outputs_of_rows(w2.astype(dtype), np.full((1, k, 1), byte, np.uint8))
    scale = np.float32(np.nan) if byte == 255 else np.float32(np.ldexp(1.0, byte - 127))
    with np.errstate(over="ignore"):
        assert_times_1024(got, w2[0, :, 5] * scale)


@pytest.mark.parametrize("dtype", [float8_e4m3fn, float8_e5m2])
def test_every_code_at_every_scale_of_mxfp8(isa, dtype):
    """Each pair in a row of w2 of its own, sixteen rows of a scale beside each other."""
    bytes_, codes = (a.ravel().astype(np.uint8) for a in np.divmod(np.arange(65536), 256))
    k = codes.size
    w2 = np.zeros((1, k, 32), np.uint8)
    w2[0, :, 5] = codes
    got = outputs_of_rows(w2.view(dtype), bytes_.reshape(1, k, 1))
    scales = np.where(bytes_ == 255, np.nan, np.ldexp(1.0, bytes_.astype(np.int32) - 127)).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        assert_times_1024(got, codes.view(dtype).astype(np.float32) * scales)


@pytest.mark.parametrize("num_tokens", [1, 7, 40])
@pytest.mark.parametrize("byte", [0, 9, 247, 254, 255])
@pytest.mark.parametrize("row", [0, 20])
@pytest.mark.parametrize("name", ["mxfp4", "mxfp8-e4m3", "mxfp8-e5m2"])
def test_one_extraordinary_scale(isa, name, row, byte, num_tokens):
    """In the second K-block: 0 of a tiny weight among zeros; or another, with 0 of zeros in the first."""
    k = 64
    w2 = np.zeros((1, k, k), np.float32)
    w2[0, :, 3] = 1
    w2[0, :, 40] = 0 if byte == 0 else 1.5
    w2[0, row, 40] = {"mxfp4": 0.5, "mxfp8-e4m3": 2.0**-9, "mxfp8-e5m2": 2.0**-16}[name] if byte == 0 else 1.5
    w13 = np.zeros((1, 2 * k, k), np.float32)
    w13[0, :, 0] = 1
    s2 = np.full((1, k, 2), 127, np.uint8)
    s2[0, row, 1] = byte
    if byte != 0:
        s2[0, row + 1, 0], w2[0, row + 1, :32] = 0, 0
    ones = np.full((1, 2 * k, 2), 127, np.uint8)
    if name == "mxfp4":
        arrays = [mx.pack_e2m1(w.astype(ml_dtypes.float4_e2m1fn)) for w in (w13, w2)]
    else:
        dtype = {"mxfp8-e4m3": float8_e4m3fn, "mxfp8-e5m2": float8_e5m2}[name]
        arrays = [w.astype(dtype) for w in (w13, w2)]
    experts = mx.pack_experts(arrays[0], ones, arrays[1], s2, format=name.partition("-")[0])
    hidden = np.zeros((num_tokens, k), np.float32)
    hidden[:, 0] = 32
    ids = np.zeros((num_tokens, 1), np.int32)
    got = mx.fused_experts(hidden, experts, np.ones((num_tokens, 1), np.float32), ids)
    scale = np.float32(np.nan) if byte == 255 else np.float32(np.ldexp(1.0, byte - 127))
    first, second = w2[0, :, 3], w2[0, :, 40].copy()
    with np.errstate(over="ignore"):
        second[row] *= scale
        expected = first * np.float32(1024) + second * np.float32(1024)
    assert_same_bits(got, np.tile(expected, (num_tokens, 1)))


@pytest.mark.parametrize("byte", [0x80, 0xFF, 0x7F, 0x01, 0xC0])
def test_scales_of_nvfp4_may_be_anything(isa, rng, byte):
    problem = format_problem(rng, Shape(3, 64, 32, 1, 1), "nvfp4", dtype=np.float32)
    scales = problem.arrays.w2_scales.view(np.uint8).copy()
    scales[0, 3] = byte
    problem = problem._replace(arrays=problem.arrays._replace(w2_scales=scales.view(float8_e4m3fn)))
    got, expected = problem.run(), problem.float64()
    assert np.array_equal(np.isnan(got), np.isnan(expected))
    finite = ~np.isnan(expected[0])
    assert finite.all() or byte in (0x7F, 0xFF)
    assert rel_l2(got[:, finite], expected[:, finite]) < 2 * 2**-8 / 3**0.5


@pytest.mark.parametrize("name", ["fp8_block-128", "fp8_block-24x64", "nvfp4", *SCALABLE])
@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, 2.0**90, 1e-38])
def test_float32_scales_may_be_anything(isa, rng, name, value):
    """A scale acts on its own rows and range of K alone."""
    hidden = 200 if name.startswith("fp8_block") else 208 if name == "nvfp4" else 224
    problem = format_problem(rng, Shape(8, hidden, 160, 2, 1), name, dtype=np.float32)
    problem.topk_ids[0] = 0  # at least one token goes to the expert with the scale
    if name in SCALABLE:
        problem = problem._replace(arrays=with_tensor_scales(rng, problem.arrays))
    field = "w2_scales" if name.startswith("fp8_block") else "w2_tensor_scale"
    scales = getattr(problem.arrays, field).copy()
    scales[(0, 0, 0)[: scales.ndim]] = value
    problem = problem._replace(arrays=problem.arrays._replace(**{field: scales}))
    got, expected = problem.run(), problem.float64()
    finite = np.isfinite(expected)
    assert np.array_equal(np.isfinite(got), finite)
    assert finite.all() == np.isfinite(value)
    error = np.linalg.norm(got[finite] - expected[finite])
    assert error <= 2 * 2**-8 / 3**0.5 * np.linalg.norm(expected[finite])


@pytest.mark.parametrize("name", FREE_SIZES)
@pytest.mark.parametrize("size", [1, 17, 31, 45])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_takes_no_part(isa, rng, name, size, layout):
    """An infinite weight of a token on its input, or an infinite scale, is finite after the clamp."""
    problem = format_problem(rng, Shape(20, 50, size, 2, 2), name, layout=layout, dtype=np.float32)
    # Nothing but padding is 0 times infinity, and no gate is -infinity, which would be NaN too.
    weights = np.abs(problem.arrays.w13)
    weights[weights == 0] = 1
    problem = problem._replace(
        hidden_states=abs(problem.hidden_states), arrays=problem.arrays._replace(w13=weights)
    )
    options = {"activation": "swigluoai"}
    infinite = problem._replace(topk_weights=problem.topk_weights.copy())
    infinite.topk_weights[3, 1] = np.inf
    expected = infinite.float64(**options, apply_router_weight_on_input=True)
    assert np.isfinite(expected).all()
    result = infinite.run(**options, apply_router_weight_on_input=True)
    assert rel_l2(result, expected) < 2 * 2**-8 / 3**0.5
    if name == "fp8_block-tensor":
        problem.arrays.w13_scales[1] = np.inf
        expected = problem.float64(**options)
        assert np.isfinite(expected).all()
        assert rel_l2(problem.run(**options), expected) < 2 * 2**-8 / 3**0.5


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_unpack_gives_the_arrays_that_came(rng, name, layout):
    sizes = (70, 45) if name in FREE_SIZES else (96, 160)
    arrays = format_problem(rng, Shape(1, *sizes, 3, 1), name, layout=layout, bias="both").arrays
    experts = pack(arrays)
    parts = experts.unpack()
    for field, got in parts._asdict().items():
        expected = getattr(arrays, field)
        if expected is None:
            assert got is None
        else:
            assert (got.dtype, got.shape) == (expected.dtype, expected.shape), field
            assert got.tobytes() == expected.tobytes(), field
    assert (experts.format, experts.block_shape) == (arrays.format, arrays.block_shape)
    assert pack(arrays._replace(**parts._asdict())) == experts


@pytest.mark.parametrize("name", FORMATS)
def test_a_pair_and_sequences_are_the_same_experts(rng, name):
    arrays = format_problem(rng, Shape(1, 96, 160, 2, 1), name, bias="both").arrays

    def halves(array: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        middle = array.shape[1] // 2
        return list(array[:, :middle]), list(array[:, middle:])

    of_halves = {
        field: halves(array)
        for field in ("w13", "w13_scales", "w13_zero_points", "w13_offsets")
        if (array := getattr(arrays, field)) is not None
    }
    pair = arrays._replace(**of_halves, w2=list(arrays.w2))
    assert pack(pair) == pack(arrays)


@pytest.mark.parametrize("name", FORMATS)
def test_memory_order_of_the_arrays_does_not_matter(rng, name):
    arrays = format_problem(rng, Shape(1, 96, 160, 2, 1), name, bias="both").arrays
    kinds = ("", "_scales", "_zero_points", "_offsets")
    fields = [matrix + kind for matrix in ("w13", "w2") for kind in kinds]
    columns_first = {
        field: [np.asfortranarray(a) for a in getattr(arrays, field)]
        for field in fields
        if getattr(arrays, field) is not None
    }
    assert pack(arrays._replace(**columns_first)) == pack(arrays)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_bf16_rounds_once(isa, rng, dtype):
    problem = format_problem(rng, Shape(5, 50, 40, 2, 1), "bf16")
    weights = {name: rng.standard_normal(getattr(problem.arrays, name).shape) for name in ("w13", "w2")}
    given = problem.arrays._replace(**{name: w.astype(dtype) for name, w in weights.items()})
    rounded = given._replace(w13=given.w13.astype(bfloat16), w2=given.w2.astype(bfloat16))
    experts = pack(given)
    assert experts.unpack().w13.dtype == bfloat16
    assert experts.unpack().w2.tobytes() == rounded.w2.tobytes()
    assert_same_bits(problem._replace(arrays=given).run(), problem._replace(arrays=rounded).run())


@pytest.mark.parametrize(
    ("name", "changed", "error", "message"),
    [
        (
            "bf16",
            {"w13_scales": np.ones((2, 1, 1), np.float32)},
            ValueError,
            "w13_scales: expected None with",
        ),
        ("fp8_block-128", {"w2_scales": None}, TypeError, "w2_scales: expected an array of float32"),
        (
            "fp8_block-128",
            {"w2_scales": np.ones((2, 2, 1), np.float32)},
            ValueError,
            r"w2_scales: .*\(1, 1\)",
        ),
        (
            "fp8_block-128",
            {"block_shape": (128, 48)},
            ValueError,
            r"block_shape\[1\]: expected a multiple of 32",
        ),
        (
            "fp8_block-128",
            {"block_shape": (0, 128)},
            ValueError,
            r"block_shape\[0\]: expected an integer in \[1",
        ),
        (
            "fp8_block-128",
            {"block_shape": (2**63, 128)},
            ValueError,
            r"block_shape\[0\]: expected an integer in .*got 9223372036854775808",
        ),
        ("fp8_block-128", {"block_shape": (1.5, 128)}, TypeError, r"block_shape\[0\]: expected an integer"),
        ("fp8_block-128", {"block_shape": 128}, TypeError, "block_shape: expected a pair"),
        ("fp8_block-128", {"block_shape": (1, 2, 3)}, ValueError, "block_shape: expected a pair"),
        ("mxfp4", {"block_shape": (128, 128)}, ValueError, "block_shape: expected None with format 'mxfp4'"),
        (
            "nvfp4",
            {"w13_tensor_scale": None},
            ValueError,
            r"w13_tensor_scale: expected a float32 array of shape",
        ),
        (
            "nvfp4",
            {"w2_tensor_scale": np.ones(3, np.float32)},
            ValueError,
            r"w2_tensor_scale: expected shape",
        ),
        (
            "nvfp4",
            {"w2_tensor_scale": np.ones(2)},
            TypeError,
            "w2_tensor_scale: expected an array of float32",
        ),
        (
            "fp8_block-128",
            {"w2_tensor_scale": np.ones(2, np.float32)},
            ValueError,
            "w2_tensor_scale: expected None with format 'fp8_block'",
        ),
        (
            "mxfp4",
            {"w2_tensor_scale": np.ones(2, np.float32)},
            ValueError,
            r"w13_tensor_scale: expected a float32 array of shape \(2, 2\) with the other one, got None",
        ),
        (
            "bf16",
            {"w13_tensor_scale": np.ones((2, 2), np.float32)},
            ValueError,
            r"w2_tensor_scale: expected a float32 array of shape \(2,\) with the other one, got None",
        ),
        (
            "mxfp8-e4m3",
            {"w2": np.zeros((2, 96, 64), float8_e5m2)},
            TypeError,
            "w2: expected elements as in w13",
        ),
        ("bf16", {"w2": np.zeros((2, 96, 64))}, TypeError, "w2: expected an array of bfloat16, float16 or"),
    ],
)
def test_wrong_arrays(rng, name, changed, error, message):
    arrays = format_problem(rng, Shape(1, 96, 64, 2, 1), name).arrays
    with pytest.raises(error, match=message):
        pack(arrays._replace(**changed))
