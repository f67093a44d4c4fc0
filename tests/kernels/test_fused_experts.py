"""Exact cases of fused_experts, bit for bit against the reference on every kernel table."""

import itertools
import math

import numpy as np
import pytest
from problems import (
    ACTIVATIONS,
    ARRAYS,
    BIASES,
    EXACT_PARAMETERS,
    LAYOUTS,
    Problem,
    Shape,
    assert_same_bits,
    bfloat16,
    check_exact,
    exact_problem,
    pack_nibbles,
    random_problem,
)

import mxfp4moe as mx
from mxfp4moe.reference import ExpertArrays

DTYPES = (bfloat16, np.float16, np.float32)


def exact_options(activation: str) -> dict:
    return {"activation": activation, **EXACT_PARAMETERS.get(activation, {})}


@pytest.mark.emulation
@pytest.mark.parametrize(
    "shape",
    [
        Shape(1, 32, 32, 1, 1),
        Shape(2, 64, 32, 1, 1),
        Shape(3, 32, 96, 2, 2),
        Shape(5, 96, 160, 5, 3),
        Shape(17, 160, 32, 3, 1),
        Shape(33, 288, 96, 4, 4),
        Shape(40, 64, 224, 8, 8),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_exact_shapes(isa, rng, shape, layout):
    problem = exact_problem(rng, shape, layout=layout, bias="both", dtype=np.float32)
    assert_same_bits(problem.run(), problem.expected())


@pytest.mark.emulation
@pytest.mark.smoke
def test_exact_every_group_size(isa, rng):
    problem = exact_problem(rng, Shape(40, 96, 64, 2, 2), bias="both")
    experts, expected = problem.pack(), problem.expected(out_dtype=np.float32)
    for count in range(1, 41):
        out = np.full((count, 96), np.nan, dtype=np.float32)
        problem.tokens(slice(count)).run(experts, out=out)
        assert_same_bits(out, expected[:count])


def test_exact_more_tokens_than_a_group_holds(isa, rng):
    problem = exact_problem(rng, Shape(700, 32, 32, 2, 1), bias="w13", dtype=np.float32)
    problem.topk_ids[:650] = 1
    assert_same_bits(problem.run(), problem.expected())


@pytest.mark.parametrize(
    "shape", [Shape(9, 2880, 64, 3, 2), Shape(9, 64, 2880, 3, 2), Shape(70, 1472, 96, 2, 2)]
)
def test_exact_long_sums(isa, rng, shape):
    problem = exact_problem(rng, shape, bias="both", dtype=np.float32)
    assert_same_bits(problem.run(), problem.expected())


@pytest.mark.emulation
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_exact_activation_bias_layout(isa, rng, activation, bias, layout):
    problem = exact_problem(rng, Shape(6, 96, 64, 4, 3), bias=bias, layout=layout, dtype=np.float32)
    options = exact_options(activation)
    assert_same_bits(problem.run(**options), problem.expected(**options))


@pytest.mark.emulation
@pytest.mark.smoke
@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "situ"])
@pytest.mark.parametrize("limit", [18.0, 48.0, 100.0])
def test_exact_limit(isa, rng, activation, limit):
    problem = exact_problem(rng, Shape(6, 96, 32, 4, 2), bias="w13", dtype=np.float32, router_weights=(1.0,))
    # Up biases beyond the limit on both sides.
    problem.arrays.w13_bias[:, 32:] += np.where(np.arange(32) % 3 == 0, 60, -60)
    check_exact(problem, limit)
    options = {"activation": activation, "limit": limit}
    expected = problem.expected(**options)
    assert_same_bits(problem.run(**options), expected)
    assert not np.array_equal(expected, problem.expected(activation=activation, limit=math.inf))


@pytest.mark.parametrize("limit", [None, math.inf])
def test_no_limit_by_default_but_for_swigluoai(isa, rng, limit):
    problem = exact_problem(rng, Shape(3, 32, 32, 2, 1), dtype=np.float32)
    assert_same_bits(problem.run(limit=limit), problem.expected(limit=math.inf))


def test_swigluoai_defaults(isa, rng):
    problem = random_problem(rng, Shape(3, 64, 32, 2, 1), dtype=np.float32, bias="both")
    given = problem.run(activation="swigluoai", alpha=1.702, limit=7.0)
    assert_same_bits(problem.run(activation="swigluoai"), given)
    assert not np.array_equal(problem.run(activation="swigluoai", alpha=1.0), given)


def test_situ_defaults(isa, rng):
    problem = random_problem(rng, Shape(3, 64, 32, 2, 1), dtype=np.float32, bias="both")
    given = problem.run(activation="situ", alpha=4.0, limit=25.0)
    assert_same_bits(problem.run(activation="situ"), given)
    for other in ({"alpha": 1.0}, {"limit": 1.0}):
        assert not np.array_equal(problem.run(activation="situ", **other), given)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 1.702])
def test_exact_alpha(isa, rng, alpha):
    problem = exact_problem(rng, Shape(3, 32, 32, 2, 1), dtype=np.float32)
    options = {"activation": "swigluoai", "alpha": alpha, "limit": math.inf}
    assert_same_bits(problem.run(**options), problem.expected(**options))


@pytest.mark.parametrize("hidden_dtype", DTYPES)
@pytest.mark.parametrize("out_dtype", DTYPES)
def test_exact_dtypes(isa, rng, hidden_dtype, out_dtype):
    problem = exact_problem(rng, Shape(7, 96, 64, 3, 2), bias="both", dtype=hidden_dtype)
    expected = problem.expected(out_dtype=out_dtype)
    out = np.zeros(expected.shape, dtype=out_dtype)
    assert problem.run(out=out) is out
    assert_same_bits(out, expected)
    if out_dtype == hidden_dtype:
        assert_same_bits(problem.run(), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_hidden_states_are_rounded_to_nearest_even_bfloat16(isa, rng, dtype):
    problem = exact_problem(rng, Shape(4, 32, 32, 2, 1), dtype=dtype)
    below, tie_down, tie_up, above = (
        1 + 2.0**-8 - 2.0**-10,
        1 + 2.0**-8,
        1 + 3 * 2.0**-8,
        1 + 2.0**-8 + 2.0**-10,
    )
    factors = np.array([[below], [tie_down], [tie_up], [above]], dtype=dtype)
    rounded = np.array([[1], [1], [1 + 4 * 2.0**-8], [1 + 2 * 2.0**-8]], dtype=dtype)
    powers = np.where(problem.hidden_states == 0, 0, np.exp2(rng.integers(0, 3, (4, 32)))).astype(dtype)
    given = problem._replace(hidden_states=powers * factors)
    exact = problem._replace(hidden_states=powers * rounded)
    assert_same_bits(given.run(), exact.run())


@pytest.mark.parametrize("shift", [-40, -8, 8, 40])
def test_exact_shifted_scales(isa, rng, shift):
    problem = exact_problem(rng, Shape(7, 96, 64, 3, 2), bias="both", dtype=bfloat16, shift=shift)
    out = np.empty((7, 96), dtype=np.float32)
    assert_same_bits(problem.run(out=out), problem.expected(out_dtype=np.float32))


@pytest.mark.parametrize("top_k", [1, 2, 4, 7])
@pytest.mark.parametrize("bias", ["none", "both"])
def test_exact_weight_on_input(isa, rng, top_k, bias):
    weights = (1.0, 2.0, 4.0)  # gates stay large enough
    shape = Shape(9, 64, 96, 7, top_k)
    problem = exact_problem(rng, shape, bias=bias, router_weights=weights, dtype=np.float32)
    result = problem.run(apply_router_weight_on_input=True)
    assert_same_bits(result, problem.expected(apply_router_weight_on_input=True))
    assert not np.array_equal(result, problem.expected())


@pytest.mark.parametrize("ids_dtype", [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint32, np.uint64])
def test_exact_ids_of_any_integer_dtype(isa, rng, ids_dtype):
    problem = exact_problem(rng, Shape(6, 32, 32, 5, 3), dtype=np.float32)
    given = problem._replace(topk_ids=problem.topk_ids.astype(ids_dtype))
    assert_same_bits(given.run(), problem.expected())


def test_exact_dropped_slots(isa, rng):
    problem = exact_problem(rng, Shape(20, 64, 32, 4, 3), bias="both", dtype=np.float32)
    dropped = rng.random((20, 3)) < 0.5
    dropped[3] = True
    problem.topk_ids[dropped] = -1
    problem.topk_weights[dropped] = np.nan  # not even read
    result = problem.run()
    assert_same_bits(result, problem.expected())
    assert_same_bits(result[3], np.zeros(64, dtype=np.float32))


@pytest.mark.emulation
@pytest.mark.parametrize("on_input", [False, True])
def test_all_slots_dropped_gives_zeros_without_bias(isa, rng, on_input):
    problem = exact_problem(rng, Shape(5, 64, 32, 4, 3), bias="both", dtype=np.float32)
    problem.topk_ids[:] = -1
    out = np.full((5, 64), np.nan, dtype=np.float32)
    problem.run(out=out, apply_router_weight_on_input=on_input)
    assert_same_bits(out, np.zeros((5, 64), dtype=np.float32))


def test_exact_repeated_ids_count_each_time(isa, rng):
    problem = exact_problem(rng, Shape(12, 64, 32, 3, 3), bias="both", dtype=np.float32)
    repeated = problem._replace(topk_ids=rng.integers(0, 3, (12, 3)).astype(np.int32))
    repeated.topk_ids[0] = 2
    assert_same_bits(repeated.run(), repeated.expected())


def test_exact_more_slots_than_experts(isa, rng):
    problem = exact_problem(rng, Shape(4, 32, 32, 2, 2), dtype=np.float32)
    ids = rng.integers(0, 2, (4, 5)).astype(np.int32)
    wide = problem._replace(topk_ids=ids, topk_weights=np.ones((4, 5), dtype=np.float32))
    assert_same_bits(wide.run(), wide.expected())


def constant_experts(outputs: list[float]) -> Problem:
    """Experts without inputs, each of which adds a power of two, with its sign, to column 0."""
    count = len(outputs)
    w2 = np.zeros((count, 32, 32), dtype=np.uint8)
    w2[:, 0, 0] = np.where(np.array(outputs) < 0, 10, 2)  # -1.0, 1.0
    w2_scales = np.full((count, 32, 1), 127, dtype=np.uint8)
    w2_scales[:, 0, 0] += np.log2(np.abs(outputs)).astype(np.uint8)
    w13_bias = np.zeros((count, 64), dtype=np.float32)
    w13_bias[:, [0, 32]] = 32, 1 / 32  # an intermediate of 1
    w13, w13_scales = np.zeros((count, 64, 16), dtype=np.uint8), np.full((count, 64, 1), 127, dtype=np.uint8)
    arrays = ExpertArrays(w13, w13_scales, pack_nibbles(w2), w2_scales, w13_bias)
    ids = np.arange(count, dtype=np.int32)[None]
    return Problem(np.zeros((1, 32), dtype=np.float32), arrays, np.ones(ids.shape, dtype=np.float32), ids)


@pytest.mark.parametrize(
    ("outputs", "total"), [([2.0**30, -(2.0**30), 1.0], 1.0), ([2.0**30, 1.0, -(2.0**30)], 0.0)]
)
def test_sum_runs_in_ascending_expert_id(isa, outputs, total):
    # float32 rounds 2**30 + 1 to 2**30.
    problem = constant_experts(outputs)
    orders = np.array(list(itertools.permutations(range(3))), dtype=np.int32)
    every = problem._replace(
        hidden_states=np.zeros((6, 32), np.float32), topk_weights=np.ones((6, 3), np.float32), topk_ids=orders
    )
    assert every.run()[:, 0].tolist() == [total] * 6
    for token in range(6):
        assert every.tokens(slice(token, token + 1)).run()[0, 0] == total


def test_sum_of_a_repeated_expert_runs_by_slot(isa):
    problem = constant_experts([1.0])._replace(topk_ids=np.zeros((1, 3), dtype=np.int32))
    for weights, total in (((2.0**30, -(2.0**30), 1), 1.0), ((2.0**30, 1, -(2.0**30)), 0.0)):
        slots = problem._replace(topk_weights=np.array([weights], dtype=np.float32))
        assert slots.run()[0, 0] == total


@pytest.mark.emulation
@pytest.mark.parametrize("map_dtype", [np.int8, np.int32, np.int64])
def test_exact_expert_map(isa, rng, map_dtype):
    problem = exact_problem(rng, Shape(30, 64, 32, 4, 3), bias="both", dtype=np.float32)
    expert_map = np.array([2, -1, 0, 2, 3, -1, 1], dtype=map_dtype)  # two globals share local expert 2
    ids = np.argsort(rng.random((30, 7)), axis=-1)[:, :3].astype(np.int32)
    ids[4, 1] = -1
    mapped = problem._replace(topk_ids=ids)
    assert_same_bits(mapped.run(expert_map=expert_map), mapped.expected(expert_map=expert_map))


def test_expert_map_parts_sum_to_the_whole(isa, rng):
    problem = exact_problem(rng, Shape(11, 64, 32, 6, 4), bias="both", dtype=np.float32)
    arrays = problem.arrays
    total = np.zeros((11, 64), dtype=np.float32)
    for part in (slice(0, 2), slice(2, 3), slice(3, 6)):
        local = arrays._replace(**{f: getattr(arrays, f)[part] for f in ARRAYS})
        expert_map = np.full(6, -1)
        expert_map[part] = np.arange(part.stop - part.start)
        total += problem._replace(arrays=local).run(expert_map=expert_map)
    assert_same_bits(total, problem.run())


@pytest.mark.emulation
@pytest.mark.parametrize("num_threads", [1, 2, 3, 7])
def test_exact_threads(isa, rng, num_threads):
    problem = exact_problem(rng, Shape(21, 96, 160, 5, 3), bias="both", dtype=np.float32)
    assert_same_bits(problem.run(num_threads=num_threads), problem.expected())


@pytest.mark.emulation
def test_fused_moe_is_topk_softmax_and_fused_experts(isa, rng):
    problem = random_problem(rng, Shape(9, 64, 32, 6, 3), bias="both")
    logits = rng.normal(size=(9, 6)).astype(np.float32)
    experts = problem.pack()
    for renormalize in (True, False):
        weights, ids = mx.topk_softmax(logits, 3, renormalize=renormalize)
        expected = mx.fused_experts(
            problem.hidden_states, experts, weights, ids, activation="gelu", limit=2.0
        )
        options = {"renormalize": renormalize, "activation": "gelu", "limit": 2.0}
        assert_same_bits(mx.fused_moe(problem.hidden_states, experts, logits, 3, **options), expected)


def doubled(scales: np.ndarray, index: tuple) -> np.ndarray:
    result = scales.copy()
    result[index] += 1
    return result


def test_scale_plus_one_doubles_its_part(isa, rng):
    # A power of two changes no rounding, so this holds bit for bit without an exact case.
    problem = random_problem(rng, Shape(5, 64, 96, 2, 2), dtype=np.float32)
    result = problem.run()
    arrays = problem.arrays
    up_rows = problem._replace(
        arrays=arrays._replace(w13_scales=doubled(arrays.w13_scales, np.s_[:, 96:])),
    )
    assert_same_bits(up_rows.run(), 2 * result)
    one_row = problem._replace(arrays=arrays._replace(w2_scales=doubled(arrays.w2_scales, np.s_[:, 17])))
    expected = result.copy()
    expected[:, 17] *= 2
    assert_same_bits(one_row.run(), expected)


def test_doubled_router_weights_double_the_result(isa, rng):
    problem = random_problem(rng, Shape(5, 64, 96, 3, 2), dtype=np.float32, bias="both")
    doubled_weights = problem._replace(topk_weights=2 * problem.topk_weights)
    assert_same_bits(doubled_weights.run(), 2 * problem.run())
