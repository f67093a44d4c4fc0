"""Activations of eight bits: the bits of the definition on every table, errors, special values, arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from format_problems import FORMATS, format_problem, with_tensor_scales
from matrices import MATRICES, random_matrix
from problems import (
    ACTIVATIONS,
    Problem,
    Shape,
    assert_same_bits,
    bfloat16,
    rel_l2,
    ungated,
)
from random_integers import random_integers

import mxfp4moe as mx
from mxfp4moe import reference
from mxfp4moe.reference.activation import activate_float32

INT8: dict[str, Any] = {"activation_format": "int8"}
NAMES = tuple(name for name, how in FORMATS.items() if how["format"] in ("mxfp4", "nvfp4", "int4", "int8"))
OTHERS = tuple(name for name in FORMATS if name not in NAMES)
# Sizes with parts of a K-block where formats allow it: the tail of a row, half a K-block of the intermediate.
SHAPES = (Shape(1, 32, 32, 1, 1), Shape(3, 96, 160, 4, 2), Shape(21, 288, 96, 3, 3))
DTYPES = (np.dtype(np.float32), bfloat16, np.dtype(np.float16))


def cut_to(problem: Problem, name: str, rng: np.random.Generator) -> Problem:
    """A problem of sizes that are no multiples of 32, if the format has such."""
    m, k = problem.hidden_states.shape
    i = problem.arrays.w13.shape[1] // 2
    less = {"nvfp4": 16, "int8-halves": 16, "int8-rows": 5}.get(name, 0)
    if not less:
        return problem
    shape = Shape(
        m, max(k - less, less), max(i - less, less), len(problem.arrays.w13), problem.topk_ids.shape[1]
    )
    return format_problem(rng, shape, name, dtype=problem.hidden_states.dtype, bias="both")


def matrix_problem(rng: np.random.Generator, name: str, rows: int, k: int) -> dict[str, Any]:
    """The arguments of a random matrix, offsets among them."""
    arguments = random_matrix(rng, name, rows, k)
    if name.endswith("-offsets"):
        scales = arguments["scales"]
        arguments["offsets"] = (rng.uniform(-9, 1, scales.shape) * scales).astype(scales.dtype)
    return arguments


# --- the bits of the definition -----------------------------------------------------------------------------


@pytest.mark.emulation
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [SHAPES[0], pytest.param(SHAPES[1], marks=pytest.mark.smoke), SHAPES[2]])
def test_bits_are_those_of_the_definition(
    isa: str, rng: np.random.Generator, name: str, shape: Shape
) -> None:
    dtype = DTYPES[int(rng.integers(3))]
    layout = "interleaved" if shape.num_tokens == 3 else "concatenated"
    problem = cut_to(format_problem(rng, shape, name, dtype=dtype, bias="both", layout=layout), name, rng)
    for on_input in (False, True):
        options = {**INT8, "activation": "swigluoai", "apply_router_weight_on_input": on_input}
        out = np.empty(problem.hidden_states.shape, np.float32)
        assert_same_bits(problem.run(out=out, **options), problem.expected(out_dtype=np.float32, **options))


@pytest.mark.emulation
@pytest.mark.parametrize("activation", [*ACTIVATIONS, "relu2"])
def test_bits_with_each_activation(isa: str, rng: np.random.Generator, activation: str) -> None:
    problem = format_problem(rng, Shape(5, 64, 96, 2, 1), "mxfp4", dtype=np.float32, bias="both")
    # Gates from tiny ones to those at which exponentials overflow.
    hidden = problem.hidden_states * np.float32([[1e-6], [1e-2], [1], [30], [1e4]])
    problem = problem._replace(hidden_states=hidden)
    problem = ungated(problem) if activation == "relu2" else problem
    for limit in (None, 0.75):
        options = {**INT8, "activation": activation, "limit": limit}
        assert_same_bits(problem.run(**options), problem.expected(**options))


@pytest.mark.emulation
@pytest.mark.parametrize("name", NAMES)
def test_exact_cases_bit_for_bit(isa: str, rng: np.random.Generator, name: str) -> None:
    # Each block of 32 has the largest magnitude 127 times a power of two, and integers of it. With weights
    # that are 0 but for the diagonal, so have the intermediates: a gate of 32 or more has the factor 1.
    k, m = 64, 6
    w13 = np.zeros((1, 2 * k, k), np.float32)
    w13[0, :k, 0] = 4.0  # gate = 4 * hidden[0]
    w13[0, k:] = np.eye(k)
    w2 = np.zeros((1, k, k), np.float32)
    w2[0] = np.eye(k) * 2 + np.eye(k, k=1)
    how = FORMATS[name]["format"]
    if how in ("int4", "int8"):
        codes13, codes2 = w13.astype(np.int8), w2.astype(np.int8)
        if how == "int4":
            codes13, codes2 = (reference.pack_e2m1((c + 8).astype(np.uint8)) for c in (codes13, codes2))
        ones = np.ones((1, 2 * k, 2), np.float32), np.ones((1, k, 2), np.float32)
        experts = mx.pack_experts(codes13, ones[0], codes2, ones[1], format=how)
    else:
        codes = [
            reference.pack_e2m1(np.searchsorted(reference.E2M1_VALUES[:8], w).astype(np.uint8))
            for w in (w13, w2)
        ]
        one, block = (127, 32) if how == "mxfp4" else (0x38, 16)
        scales = [np.full((*w.shape[:-1], k // block), one, np.uint8) for w in (w13, w2)]
        tensor = {}
        if how == "nvfp4":
            tensor = {
                "w13_tensor_scale": np.ones((1, 2), np.float32),
                "w2_tensor_scale": np.ones(1, np.float32),
            }
        experts = mx.pack_experts(codes[0], scales[0], codes[1], scales[1], format=how, **tensor)
    hidden = rng.integers(-127, 128, (m, k)).astype(np.float32)
    hidden[:, 0], hidden[:, 32] = 127, -127
    hidden *= np.ldexp(np.float32(1), np.arange(m) - 1)[:, None]
    weights, ids = np.full((m, 1), 0.5, np.float32), np.zeros((m, 1), np.int32)
    got = mx.fused_experts(hidden, experts, weights, ids, **INT8)
    intermediate = 4 * hidden[:, :1] * hidden
    expected = intermediate * 2
    expected[:, :-1] += intermediate[:, 1:]
    assert_same_bits(got, expected * np.float32(0.5))


@pytest.mark.emulation
def test_any_scales(isa: str, rng: np.random.Generator) -> None:
    """Every scale byte: subnormal, negative, NaN; and what overflows."""
    for name in ("mxfp4", "nvfp4"):
        problem = format_problem(rng, Shape(4, 96, 64, 2, 2), name, dtype=np.float32)
        drawn = {}
        for field in ("w13_scales", "w2_scales"):
            scales = getattr(problem.arrays, field)
            drawn[field] = rng.integers(0, 256, scales.shape).astype(np.uint8)
            rare = rng.random(scales.shape[:2]) < 0.7  # rows without NaN
            drawn[field][rare] = np.minimum(drawn[field][rare] & 0x7F, 0x7E)
        problem = problem._replace(arrays=problem.arrays._replace(**drawn))
        assert_same_bits(problem.run(**INT8), problem.expected(**INT8))


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_tensor_scales(isa: str, rng: np.random.Generator, name: str) -> None:
    problem = format_problem(rng, Shape(2, 64, 64, 2, 2), name)
    if name == "mxfp4":
        problem = problem._replace(arrays=with_tensor_scales(rng, problem.arrays))
    arrays = problem.arrays
    assert arrays.w13_tensor_scale is not None
    problem = problem._replace(
        arrays=arrays._replace(w13_tensor_scale=arrays.w13_tensor_scale / np.float32(3))
    )
    assert_same_bits(problem.run(**INT8), problem.expected(**INT8))


@pytest.mark.parametrize("name", NAMES)
def test_a_tokens_bits_depend_on_nothing_else(isa: str, rng: np.random.Generator, name: str) -> None:
    problem = format_problem(rng, Shape(37, 96, 320, 3, 2), name, bias="both")
    experts = problem.pack()
    whole = problem.run(experts, num_threads=1, **INT8)
    for threads, part in ((2, slice(0, 1)), (3, slice(1, 4)), (2, slice(4, 9)), (5, slice(9, 37))):
        assert_same_bits(problem.tokens(part).run(experts, num_threads=threads, **INT8), whole[part])


def test_all_tables_give_the_same_bits(isa: str) -> None:
    """The numbers do not depend on the table, which the definition holds without being run."""
    rng = np.random.default_rng(7)
    problem = format_problem(rng, Shape(6, 160, 96, 3, 2), "mxfp4", dtype=np.float32)
    with mx.use_isa("portable"):
        expected = problem.run(**INT8)
    assert_same_bits(problem.run(**INT8), expected)


# --- rounding -----------------------------------------------------------------------------------------------


def test_quantized_activations() -> None:
    tiny = np.float32(2.0**-149)
    x = np.zeros((7, 40), np.float32)
    x[0, :3] = 254, 3, -1  # scale 2: 1.5 and -0.5 are ties
    x[1, 5], x[2, 39] = np.inf, np.nan
    x[3, 0] = 63 * tiny  # the scale is 0
    x[4, :2] = 190 * tiny, -100 * tiny  # the scale is tiny, and the quotient 190
    x[5, 32] = -1
    values, scales = reference.quantize_activations(x)
    assert values.dtype == np.int8 and values.shape == (7, 2, 32)
    assert scales.dtype == np.float32 and scales.shape == (7, 2)
    assert values[0, 0, :3].tolist() == [127, 2, 0] and scales[0].tolist() == [2, 0]
    assert np.isnan(scales[1, 0]) and np.isnan(scales[2, 1]) and not values[1].any()
    assert scales[3, 0] == 0 and not values[3].any()
    assert scales[4, 0] == tiny and values[4, 0, :2].tolist() == [127, -100]
    assert values[5, 1, 0] == -127 and scales[5, 1] == np.float32(1) / np.float32(127)


@pytest.mark.emulation
def test_small_and_nonfinite_hidden_states(isa: str, rng: np.random.Generator) -> None:
    problem = format_problem(rng, Shape(8, 96, 64, 2, 2), "mxfp4", dtype=np.float32)
    hidden = problem.hidden_states
    hidden[0, 40] = np.nan
    hidden[1, 95] = -np.inf
    hidden[2] = 0
    hidden[3] *= np.float32(2.0**-140)
    hidden[4, :32] *= np.float32(1e37)
    hidden[5, 3] = -0.0
    got = problem.run(activation="silu", **INT8)
    assert np.isnan(got[:2]).all() and not got[2].any()
    assert_same_bits(got, problem.expected(activation="silu", **INT8))


def test_infinite_intermediates_make_a_token_nan(isa: str, rng: np.random.Generator) -> None:
    problem = format_problem(rng, Shape(2, 64, 64, 1, 1), "mxfp4", dtype=np.float32)
    problem.hidden_states[1] *= np.float32(1e30)
    got = problem.run(**INT8)
    assert np.isfinite(got[0]).all() and np.isnan(got[1]).all()


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_errors_of_a_matrix(isa: str, rng: np.random.Generator, name: str) -> None:
    """Each number is off by half a unit of its block at most, and sums round as the definition says."""
    arguments = matrix_problem(rng, name, 40, 288)
    hidden = rng.standard_normal((9, 288), np.float32)
    weights = reference.matrix._matrix(
        tuple(arguments.get(each) for each in ("weight", "scales", "zero_points", "offsets")),
        arguments["format"],
        None,
        arguments.get("tensor_scale"),
    ).astype(np.float64)
    bias = arguments.get("bias")
    exact = hidden.astype(np.float64) @ weights.T + (0 if bias is None else bias.astype(np.float64))
    amax = abs(hidden.reshape(9, 9, 32)).max(axis=-1).repeat(32, axis=-1).astype(np.float64)
    # Half a unit, and three roundings: of the scale, of the quotient and of what is exact.
    rounding = amax / 127 * (0.5 + 127 * 2.0**-22) @ abs(weights).T
    # A term rounds twice and goes through 18 additions at most; then come three operations. With an offset,
    # codes are counted from the lowest one: what is added up is larger than the weight by twice as much.
    sizes = abs(weights)
    if (offsets := arguments.get("offsets")) is not None:
        sizes += 2 * abs(offsets.astype(np.float64)).repeat(288 // offsets.shape[1], axis=1)
    sums = (amax + abs(hidden)) @ sizes.T + (0 if bias is None else abs(bias))
    got = mx.pack_linear(**arguments)(hidden, **INT8)
    assert (abs(got - exact) <= rounding + sums * 24 * 2.0**-24).all()


def test_relative_error_of_normal_activations(isa: str, rng: np.random.Generator) -> None:
    """Each rounding is off by less than half a step of amax / 127; the mean square of that is step**2 / 12.

    The largest of 32 normal numbers is about 2.2 deviations, at most 4.5 in all blocks but one of a thousand.
    So gate and up are off by less than 4.5 / 127 / sqrt(12) of theirs, the intermediate by that of both, and
    by as much again when it is rounded, as its largest number is about twice as many deviations.
    """
    problem = format_problem(rng, Shape(16, 512, 512, 4, 2), "mxfp4", dtype=bfloat16)
    exact = problem.float64(activation="swigluoai")
    got = problem.run(out=np.empty(exact.shape, np.float32), activation="swigluoai", **INT8)
    step = 4.5 / 127 / np.sqrt(12)
    assert rel_l2(got, exact) < 2 * np.sqrt(2) * step


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_float32_activations_are_near_those_of_float64(activation: str) -> None:
    gate, up = np.meshgrid(np.float32(np.linspace(-40, 40, 401)), np.float32([-3, -0.5, 0.25, 2]))
    exact = reference.activate(gate.astype(np.float64), up.astype(np.float64), activation, None, None)
    got = activate_float32(gate, up, activation, None, None)
    # The relative errors of exp and tanh are below 3e-7, but an argument that is rounded moves exp by as many
    # units as it is large, and erfc's is a square; each formula has at most ten operations beside that. A
    # factor below 2**-127, the inverse of what is infinite, becomes 0.
    least = abs(gate) * (abs(up) + 1) * 2.0**-126
    bound = 2.0**-24 * (10 + 8 * (abs(gate) + 1) ** 2) * abs(exact) + least
    assert (abs(got - exact) <= bound).all()


# --- matrices -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [m for m in MATRICES if m.startswith(("mxfp4", "nvfp4", "int4", "int8"))])
@pytest.mark.parametrize(("rows", "k"), [(1, 32), (40, 96), (129, 224)])
def test_bits_of_a_matrix(isa: str, rng: np.random.Generator, name: str, rows: int, k: int) -> None:
    arguments = matrix_problem(rng, name, rows, k)
    hidden = rng.standard_normal((21, k), np.float32)
    linear = mx.pack_linear(**arguments)
    expected = reference.linear(hidden, **arguments, **INT8)
    for part in (slice(0, 1), slice(1, 3), slice(3, 21)):
        assert_same_bits(linear(hidden[part], **INT8), expected[part])


@pytest.mark.parametrize("format", ["int4", "int8"])
@pytest.mark.parametrize("with_offsets", [False, True])
@pytest.mark.parametrize(("rows", "k"), [(1, 48), (40, 240)])
def test_groups_of_16(
    isa: str, rng: np.random.Generator, format: str, with_offsets: bool, rows: int, k: int
) -> None:
    """The last K-block is half padding, which has no scale: what follows in memory may be anything."""
    (codes,), (scales,), _ = random_integers(rng, format, (1, rows, k), k // 16, np.dtype(np.float32), False)
    scales[rows // 2] = np.inf
    offsets = rng.standard_normal(scales.shape, np.float32) if with_offsets else None
    arguments = {"weight": codes, "scales": scales, "format": format, "offsets": offsets}
    hidden = rng.standard_normal((9, k), np.float32)
    got = mx.pack_linear(**arguments)(hidden, **INT8)
    assert_same_bits(got, reference.linear(hidden, **arguments, **INT8))
    assert np.isfinite(np.delete(got, rows // 2, axis=1)).all()


# --- arguments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OTHERS)
def test_other_weights_are_refused(rng: np.random.Generator, name: str) -> None:
    problem = format_problem(rng, Shape(2, 64, 64, 2, 1), name)
    format = FORMATS[name]["format"]
    expected = f"activation_format: expected None for experts of format '{format}', .*got 'int8'"
    with pytest.raises(ValueError, match=expected):
        problem.run(**INT8)
    with pytest.raises(ValueError, match="format: expected one of"):
        problem.expected(**INT8)


def test_pairs_of_formats(isa: str, rng: np.random.Generator) -> None:
    """Each matrix is multiplied by its own format."""
    shape = Shape(7, 64, 96, 2, 2)
    problems = [format_problem(rng, shape, name) for name in ("mxfp4", "int8-zeros", "bf16")]
    first, second, floats = (problem.arrays for problem in problems)
    w2 = {name: getattr(second, name) for name in ("w2", "w2_scales", "w2_zero_points")}
    problem = problems[0]._replace(arrays=first._replace(format=("mxfp4", "int8"), **w2))
    assert_same_bits(problem.run(**INT8), problem.expected(**INT8))
    arrays = first._replace(format=("mxfp4", "bf16"), w2=floats.w2, w2_scales=None)
    with pytest.raises(ValueError, match="activation_format: expected None for experts of format 'bf16'"):
        problem._replace(arrays=arrays).run(**INT8)


@pytest.mark.parametrize("name", ["mxfp4", "int4-offsets"])
def test_orders_of_columns(isa: str, rng: np.random.Generator, name: str) -> None:
    """Blocks are those of the columns in their order; a row is longer than what is gathered at once."""
    problem = format_problem(rng, Shape(5, 544, 32, 2, 2), name, dtype=DTYPES[int(rng.integers(3))])
    columns = np.stack([rng.permutation(544) for _ in range(2)]).astype(np.int32)
    problem = problem._replace(arrays=problem.arrays._replace(w13_columns=columns))
    assert_same_bits(problem.run(**INT8), problem.expected(**INT8))


@pytest.mark.parametrize("combine", [True, False])
def test_maps_and_terms(isa: str, rng: np.random.Generator, combine: bool) -> None:
    """Dropped slots, and the term of each slot."""
    problem = format_problem(rng, Shape(9, 64, 96, 4, 2), "nvfp4", dtype=np.float32)
    kept = np.array([2, -1, 0, 1], np.int32)
    arrays = problem.arrays
    held = {
        name: getattr(arrays, name)[[2, 3, 0]]
        for name in arrays._fields
        if isinstance(getattr(arrays, name), np.ndarray)
    }
    slice_ = problem._replace(arrays=arrays._replace(**held))
    got = slice_.run(expert_map=kept, combine=combine, **INT8)
    terms = np.stack(
        [
            problem._replace(
                topk_weights=problem.topk_weights[:, slot : slot + 1],
                topk_ids=np.where(problem.topk_ids == 1, -1, problem.topk_ids)[:, slot : slot + 1],
            ).expected(**INT8)
            for slot in range(2)
        ],
        axis=1,
    )
    assert_same_bits(got, terms if not combine else slice_.expected(expert_map=kept, **INT8))


def test_wrong_names(rng: np.random.Generator) -> None:
    problem = format_problem(rng, Shape(2, 64, 64, 2, 1), "mxfp4")
    experts = problem.pack()
    with pytest.raises(ValueError, match="activation_format: expected 'int8', got 'int4'"):
        problem.run(experts, activation_format="int4")
    with pytest.raises(TypeError, match="activation_format: expected 'int8', got"):
        problem.run(experts, activation_format=8)
    with pytest.raises(ValueError, match="activation_format: expected None or 'int8', got 'fp8'"):
        problem.expected(activation_format="fp8")
    linear = mx.pack_linear(np.ones((4, 32), np.float32))
    with pytest.raises(ValueError, match="activation_format: expected None for a matrix of format 'bf16'"):
        linear(np.ones((1, 32), np.float32), **INT8)


def test_fused_moe_and_the_default(isa: str, rng: np.random.Generator) -> None:
    problem = format_problem(rng, Shape(5, 64, 96, 4, 2), "mxfp4")
    experts, logits = problem.pack(), rng.standard_normal((5, 4), np.float32)
    weights, ids = mx.topk_softmax(logits, 2)
    hidden = problem.hidden_states
    for option in (None, "int8"):
        expected = mx.fused_experts(hidden, experts, weights, ids, activation_format=option)
        assert_same_bits(mx.fused_moe(hidden, experts, logits, 2, activation_format=option), expected)
    default = mx.fused_experts(hidden, experts, weights, ids)
    assert_same_bits(mx.fused_experts(hidden, experts, weights, ids, activation_format=None), default)
