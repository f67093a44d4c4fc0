"""Every routing function: what it takes, in which form, what it refuses, and that rows are independent."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from problems import bfloat16, masked, objects

import mxfp4moe as mx

Routed = tuple[np.ndarray, np.ndarray]
f32 = np.float32
INF = f32(np.inf)
NUM_EXPERTS = 24
BIAS = (np.random.default_rng(0).integers(-4, 5, NUM_EXPERTS) / 8).astype(f32)
TABLE = np.random.default_rng(0).integers(0, NUM_EXPERTS, (50, 4))


def hashed(logits: Any, **options: Any) -> Routed:
    tokens = np.arange(np.prod(np.shape(logits)[:-1], dtype=int)) * 7 % len(TABLE)
    return mx.hash_topk(logits, tokens.reshape(np.shape(logits)[:-1]), TABLE, **options)


# Each with four experts of NUM_EXPERTS.
ROUTES: dict[str, Callable[..., Routed]] = {
    "softmax": lambda logits, **options: mx.topk_softmax(logits, 4, **options),
    "softmax over all": lambda logits, **options: mx.topk_softmax(logits, 4, renormalize=False, **options),
    "sigmoid": lambda logits, **options: mx.topk_sigmoid(logits, 4, **options),
    "sigmoid, bias": lambda logits, **options: mx.topk_sigmoid(logits, 4, correction_bias=BIAS, **options),
    "sqrt_softplus": lambda logits, **options: mx.topk_sqrt_softplus(
        logits, 4, correction_bias=BIAS, **options
    ),
    "grouped": lambda logits, **options: mx.grouped_topk(
        logits, 4, num_groups=6, topk_group=3, correction_bias=BIAS, **options
    ),
    "hash": hashed,
    "sparsemixer": lambda logits, **options: mx.sparsemixer(logits, 4, jitter_eps=0.3, **options),
    "softmax, bias, groups": lambda logits, **options: mx.select_experts(
        logits, 4, correction_bias=BIAS, num_groups=4, topk_group=2, masked_groups="zero", **options
    ),
    "softmax, groups by maximum": lambda logits, **options: mx.select_experts(
        logits, 4, num_groups=4, topk_group=2, group_score="max", select_by="logit", **options
    ),
    "sigmoid, every option": lambda logits, **options: mx.select_experts(
        logits,
        3,
        scoring="sigmoid",
        logit_softcap=5.0,
        num_shared_experts=1,
        select_by="logit",
        correction_bias=BIAS[1:],
        norm_order=2.0,
        norm_epsilon=1e-6,
        norm_floor=0.5,
        routed_scaling_factor=2.5,
        expert_scale=1 + BIAS,
        **options,
    ),
}


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest) -> Callable[..., Routed]:
    return ROUTES[request.param]


def random_logits(rng: np.random.Generator, *leading: int) -> np.ndarray:
    return (rng.normal(size=(*leading, NUM_EXPERTS)) * 4).astype(f32)


def assert_same(result: Routed, expected: Routed) -> None:
    for array, other in zip(result, expected, strict=True):
        assert array.dtype == other.dtype
        np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize("dtype", [bfloat16, np.float16, np.float64])
def test_every_dtype_is_rounded_once_to_float32(route, rng, dtype):
    logits = random_logits(rng, 9).astype(dtype)
    assert_same(route(logits), route(logits.astype(f32)))


@pytest.mark.parametrize("leading", [(), (0,), (3,), (2, 0), (2, 3), (1, 1, 2)])
def test_any_leading_shape(route, rng, leading):
    logits = random_logits(rng, *leading)
    weights, ids = route(logits)
    assert weights.shape == ids.shape == (*leading, 4)
    flat = route(logits.reshape(-1, NUM_EXPERTS))
    assert_same((weights.reshape(-1, 4), ids.reshape(-1, 4)), flat)


def test_any_memory_layout(route, rng):
    logits = random_logits(rng, 6)
    expected = route(logits)
    wide = np.zeros((12, 2 * NUM_EXPERTS), f32)
    wide[::2, ::-2] = logits
    buffer = np.empty(logits.nbytes + 1, np.uint8)
    unaligned = buffer[1:].view(f32).reshape(logits.shape)
    unaligned[...] = logits
    read_only = logits.copy()
    read_only.flags.writeable = False
    views = [wide[::2, ::-2], np.asfortranarray(logits), logits.astype(">f4"), unaligned, read_only]
    for form in [*views, logits.tolist()]:
        assert_same(route(form), expected)
    assert_same(route(np.broadcast_to(logits[0], (5, NUM_EXPERTS))), route(np.tile(logits[0], (5, 1))))


def test_rows_are_independent_and_threads_do_not_matter(rng):
    for name, route in ROUTES.items():
        if name == "hash":
            continue
        logits = random_logits(rng, 1500)
        with mx.num_threads(1):
            weights, ids = route(logits)
        for threads in (2, 3, 7):
            with mx.num_threads(threads):
                assert_same(route(logits), (weights, ids))
        order = rng.permutation(len(logits))
        assert_same(route(logits[order]), (weights[order], ids[order]))
        assert_same(route(logits[77]), (weights[77], ids[77]))


def test_hash_rows_are_independent_and_threads_do_not_matter(rng):
    logits = random_logits(rng, 1500)
    tokens = rng.integers(0, len(TABLE), 1500)
    with mx.num_threads(1):
        weights, ids = mx.hash_topk(logits, tokens, TABLE)
    with mx.num_threads(3):
        assert_same(mx.hash_topk(logits, tokens, TABLE), (weights, ids))
    assert_same(mx.hash_topk(logits[77], tokens[77], TABLE), (weights[77], ids[77]))


def test_threads_of_a_call(route, rng):
    logits = random_logits(rng, 1500)
    with mx.num_threads(2):
        expected = route(logits)
        for threads in (1, np.int64(3), None):
            assert_same(route(logits, num_threads=threads), expected)
    with pytest.raises(ValueError, match="num_threads: expected an integer in .*, got 0"):
        route(logits, num_threads=0)
    with pytest.raises(TypeError, match="num_threads: expected an integer, got 1.5"):
        route(logits, num_threads=1.5)


def test_calls_from_several_threads(route, rng):
    logits = random_logits(rng, 700)
    expected = route(logits)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(route, [logits] * 12):
            assert_same(result, expected)


@pytest.mark.parametrize("top_k", [1, 31, 32, 33, 300])
def test_any_top_k(rng, top_k):
    logits = rng.integers(-50, 50, (7, 300)).astype(f32)
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :top_k]
    np.testing.assert_array_equal(mx.topk_softmax(logits, top_k)[1], order)
    groups = {"num_groups": 3, "topk_group": 3}
    small = logits / 8  # sigmoids differ
    np.testing.assert_array_equal(mx.grouped_topk(small, top_k, **groups)[1], order)


def test_one_expert(rng):
    routes = (mx.topk_softmax, mx.topk_sigmoid, mx.topk_sqrt_softplus, mx.select_experts, mx.sparsemixer)
    for route in routes:
        assert_same(route(np.zeros((2, 1), f32), 1), (np.ones((2, 1), f32), np.zeros((2, 1), np.int32)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_bad_logit_is_named(route, rng, bad, threads):
    logits = random_logits(rng, 2, 700)
    for position in [(1, 3, 5), (1, 3, 9), (1, 450, 2)]:
        logits[position] = bad
    with mx.num_threads(threads):
        with pytest.raises(ValueError, match=rf"logits: expected finite.*got {bad} at position \(1, 3, 5\)"):
            route(logits)
        with pytest.raises(ValueError, match=rf"logits: .*got {bad} at position \(5,\)"):
            route(logits[1, 3])


@pytest.mark.parametrize("dtype", [f32, bfloat16, np.float16, np.float64])
def test_bias_dtypes(rng, dtype):
    logits = random_logits(rng, 5)
    strided = np.zeros(2 * NUM_EXPERTS, dtype)
    strided[::2] = BIAS
    for bias in (BIAS.astype(dtype), strided[::2], BIAS.tolist()):
        assert_same(
            mx.topk_sigmoid(logits, 4, correction_bias=bias),
            mx.topk_sigmoid(logits, 4, correction_bias=BIAS),
        )


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64, ">i4"])
def test_table_dtypes(rng, dtype):
    logits = random_logits(rng, 5)
    tokens = np.array([0, 1, 49, 7, 7])
    expected = mx.hash_topk(logits, tokens, TABLE)
    assert_same(mx.hash_topk(logits, tokens.astype(dtype), TABLE.astype(dtype)), expected)
    wide = np.zeros((50, 8), dtype)
    wide[:, ::-2] = TABLE
    assert_same(mx.hash_topk(logits, tokens[::-1][::-1], wide[:, ::-2]), expected)


LOGITS = np.zeros((3, 6), f32)
SCORED = {
    "logits_integers": ({"router_logits": LOGITS.astype(int)}, TypeError, "logits: .*float32.*got.*int64"),
    "logits_objects": ({"router_logits": objects(LOGITS)}, TypeError, "logits: .*got"),
    "logits_masked": ({"router_logits": masked(LOGITS)}, TypeError, "logits: .*got.*masked"),
    "logits_none": ({"router_logits": None}, TypeError, "logits: .*got None"),
    "logits_scalar": ({"router_logits": f32(1)}, ValueError, r"logits: .*got shape \(\)"),
    "logits_no_experts": ({"router_logits": LOGITS[:, :0]}, ValueError, r"logits: .*got shape \(3, 0\)"),
    "logits_overflow": (
        {"router_logits": np.full((3, 6), 1e300)},
        ValueError,
        r"logits: .*got inf at .*\(0, 0\)",
    ),
    "top_k_zero": ({"top_k": 0}, ValueError, r"top_k: .*\[1, 6\], got 0"),
    "top_k_large": ({"top_k": 7}, ValueError, r"top_k: .*\[1, 6\], got 7"),
    "top_k_huge": ({"top_k": 2**70}, ValueError, "top_k: .*got"),
    "top_k_float": ({"top_k": 2.0}, TypeError, "top_k: expected an integer, got 2.0"),
    "top_k_bool": ({"top_k": True}, TypeError, "top_k: expected an integer, got True"),
    "bias_shape": (
        {"correction_bias": np.zeros(5, f32)},
        ValueError,
        r"correction_bias: .*\(6,\).*got.*\(5,\)",
    ),
    "bias_2d": ({"correction_bias": np.zeros((1, 6), f32)}, ValueError, r"correction_bias: .*got.*\(1, 6\)"),
    "bias_scalar": ({"correction_bias": 0.0}, ValueError, r"correction_bias: .*got shape \(\)"),
    "bias_integers": ({"correction_bias": np.zeros(6, int)}, TypeError, "correction_bias: .*got.*int64"),
    "bias_masked": ({"correction_bias": masked(np.zeros(6))}, TypeError, "correction_bias: .*got.*masked"),
    "bias_nan": (
        {"correction_bias": np.array([0, 0, np.nan, 0, np.nan, 0], f32)},
        ValueError,
        r"correction_bias: expected finite values or -inf, got nan at position \(2,\)",
    ),
    "bias_inf": (
        {"correction_bias": np.array([0, 0, 0, 0, 0, 1e39])},
        ValueError,
        r"correction_bias: .*got inf at position \(5,\)",
    ),
    "bias_nan_without_tokens": (
        {"router_logits": LOGITS[:0], "correction_bias": np.full(6, np.nan)},
        ValueError,
        r"correction_bias: .*got nan at position \(0,\)",
    ),
    "renormalize": ({"renormalize": 1}, TypeError, "renormalize: expected a bool, got 1"),
    "factor_nan": ({"routed_scaling_factor": np.nan}, ValueError, "routed_scaling_factor: .*finite.*got nan"),
    "factor_large": ({"routed_scaling_factor": 1e39}, ValueError, "routed_scaling_factor: .*got 1e"),
    "factor_string": ({"routed_scaling_factor": "1"}, TypeError, "routed_scaling_factor: .*real.*got '1'"),
    "factor_none": ({"routed_scaling_factor": None}, TypeError, "routed_scaling_factor: .*got None"),
}
GROUPED = {
    "no_divisor": ({"num_groups": 4}, ValueError, "num_groups: expected a divisor of .*6, got 4"),
    "groups_zero": ({"num_groups": 0}, ValueError, r"num_groups: .*\[1, 6\], got 0"),
    "groups_large": ({"num_groups": 12}, ValueError, r"num_groups: .*\[1, 6\], got 12"),
    "groups_float": ({"num_groups": 3.0}, TypeError, "num_groups: .*got 3.0"),
    "kept_zero": ({"topk_group": 0}, ValueError, r"topk_group: .*\[1, 3\], got 0"),
    "kept_large": ({"topk_group": 4}, ValueError, r"topk_group: .*\[1, 3\], got 4"),
    "top_k_of_kept": ({"topk_group": 1, "top_k": 3}, ValueError, r"top_k: .*\[1, 2\], got 3"),
}
SELECT = {
    "scoring": ({"scoring": "relu"}, ValueError, "scoring: expected 'softmax', 'sigmoid' or .* got 'relu'"),
    "scoring_of_others": ({"scoring": "topk_softmax"}, ValueError, "scoring: .* got 'topk_softmax'"),
    "scoring_none": ({"scoring": None}, TypeError, "scoring: .* got None"),
    "cap_zero": ({"logit_softcap": 0.0}, ValueError, "logit_softcap: expected None or .* above 0, got 0.0"),
    "cap_below_float32": ({"logit_softcap": 1e-60}, ValueError, "logit_softcap: .* got 1e-60"),
    "cap_negative": ({"logit_softcap": -2}, ValueError, "logit_softcap: .* got -2.0"),
    "cap_nan": ({"logit_softcap": np.nan}, ValueError, "logit_softcap: .* got nan"),
    "shared_all": (
        {"num_shared_experts": 6},
        ValueError,
        r"num_shared_experts: expected an integer in \[0, 5\], got 6",
    ),
    "shared_negative": ({"num_shared_experts": -1}, ValueError, r"num_shared_experts: .*got -1"),
    "shared_bool": ({"num_shared_experts": True}, TypeError, "num_shared_experts: .*got True"),
    "top_k_of_chosen": ({"num_shared_experts": 5}, ValueError, r"top_k: .*\[1, 1\], got 2"),
    "select_by": ({"select_by": "weight"}, ValueError, "select_by: .* 'score' or 'logit', got 'weight'"),
    "bias_of_shared": (
        {"num_shared_experts": 2, "correction_bias": np.zeros(6)},
        ValueError,
        r"correction_bias: expected shape \(4,\)",
    ),
    "groups_of_shared": (
        {"num_shared_experts": 1, "num_groups": 3},
        ValueError,
        "num_groups: expected a divisor of .*5, got 3",
    ),
    "top_k_of_group": ({"num_groups": 6}, ValueError, r"top_k: .*\[1, 1\], got 2"),
    "top_k_of_zeros": (
        {"num_groups": 6, "masked_groups": "zero", "top_k": 7},
        ValueError,
        "top_k: .*6.* got 7",
    ),
    "group_score": ({"group_score": "mean"}, ValueError, "group_score: .*'top2_sum' or 'max', got 'mean'"),
    "masked_groups": ({"masked_groups": 0}, TypeError, "masked_groups: .*'exclude' or 'zero', got 0"),
    "order": ({"norm_order": 0.5}, ValueError, "norm_order: .* of at least 1, got 0.5"),
    "order_inf": ({"norm_order": np.inf}, ValueError, "norm_order: .*finite.* got inf"),
    "order_none": ({"norm_order": None}, TypeError, "norm_order: .* got None"),
    "epsilon": ({"norm_epsilon": -1e-9}, ValueError, "norm_epsilon: .* of at least 0, got -1e-09"),
    "floor": ({"norm_floor": np.nan}, ValueError, "norm_floor: .* got nan"),
    "scale_shape": ({"expert_scale": np.ones(5)}, ValueError, r"expert_scale: .*\(6,\).*got.*\(5,\)"),
    "scale_integers": ({"expert_scale": np.ones(6, int)}, TypeError, "expert_scale: .*got.*int64"),
    "scale_infinite": (
        {"expert_scale": np.array([1, 1, -np.inf, 1, 1, np.nan])},
        ValueError,
        r"expert_scale: expected finite values, got -inf at position \(2,\)",
    ),
    "row_of_minus_inf": (
        {"router_logits": np.where(np.arange(3)[:, None] == 1, -np.inf, LOGITS)},
        ValueError,
        r"router_logits: expected a finite value in every row, got only -inf in row \(1,\)",
    ),
}
MIXER = {
    "top_k": ({"top_k": 7}, ValueError, r"top_k: .*\[1, 6\], got 7"),
    "eps_negative": ({"jitter_eps": -0.1}, ValueError, "jitter_eps: .* of at least 0, got -0.1"),
    "eps_nan": ({"jitter_eps": np.nan}, ValueError, "jitter_eps: .* got nan"),
    "eps_none": ({"jitter_eps": None}, TypeError, "jitter_eps: .* got None"),
    "row_of_minus_inf": SELECT["row_of_minus_inf"],
}
HASH = {
    "logits_none": ({"router_logits": None}, TypeError, "logits: .*got None"),
    "input_ids_floats": ({"input_ids": np.zeros(3)}, TypeError, "input_ids: .*integers.*got.*float64"),
    "input_ids_shape": ({"input_ids": np.zeros(4, int)}, ValueError, r"input_ids: .*\(3,\).*got.*\(4,\)"),
    "input_ids_negative": (
        {"input_ids": np.array([0, -1, 9])},
        ValueError,
        r"input_ids: expected values in \[0, 4\], got -1 at position \(1,\)",
    ),
    "input_ids_large": (
        {"router_logits": np.zeros((1, 2, 6), f32), "input_ids": np.array([[0, 5]])},
        ValueError,
        r"input_ids: .*got 5 at position \(0, 1\)",
    ),
    "input_ids_uint64": (
        {"input_ids": np.array([0, 2**64 - 1, 0], np.uint64)},
        ValueError,
        rf"input_ids: .*got {2**64 - 1} at position \(1,\)",
    ),
    "table_floats": ({"tid2eid": np.zeros((5, 2))}, TypeError, "tid2eid: .*integers.*got.*float64"),
    "table_1d": ({"tid2eid": np.zeros(5, int)}, ValueError, r"tid2eid: .*top_k.*got shape \(5,\)"),
    "table_empty": ({"tid2eid": np.zeros((0, 2), int)}, ValueError, r"tid2eid: .*got shape \(0, 2\)"),
    "table_no_slots": ({"tid2eid": np.zeros((5, 0), int)}, ValueError, r"tid2eid: .*got shape \(5, 0\)"),
    "table_large": (
        {"tid2eid": np.array([[0, 0], [0, 6], [0, 0], [0, 0], [7, 0]])},
        ValueError,
        r"tid2eid: expected values in \[0, 5\], got 7 at position \(4, 0\)",
    ),
    "table_negative": (
        {"tid2eid": np.array([[0, 0], [0, 0], [0, 0], [0, 0], [0, -1]], np.int8)},
        ValueError,
        r"tid2eid: .*got -1 at position \(4, 1\)",
    ),
    "factor": ({"routed_scaling_factor": np.inf}, ValueError, "routed_scaling_factor: .*got inf"),
}


@pytest.mark.parametrize(
    "route", [mx.topk_sigmoid, mx.topk_sqrt_softplus, mx.grouped_topk, mx.select_experts]
)
@pytest.mark.parametrize(("change", "error", "match"), SCORED.values(), ids=SCORED)
def test_scored_routing_refuses(route, change, error, match):
    groups = {"num_groups": 1, "topk_group": 1} if route is mx.grouped_topk else {}
    call: dict[str, Any] = {"router_logits": LOGITS, "top_k": 2, **groups}
    route(**call)
    with pytest.raises(error, match=match):
        route(**{**call, **change})


@pytest.mark.parametrize(("change", "error", "match"), GROUPED.values(), ids=GROUPED)
def test_grouped_topk_refuses(change, error, match):
    call: dict[str, Any] = {"router_logits": LOGITS, "top_k": 2, "num_groups": 3, "topk_group": 2}
    mx.grouped_topk(**call)
    with pytest.raises(error, match=match):
        mx.grouped_topk(**{**call, **change})


@pytest.mark.parametrize(("change", "error", "match"), SELECT.values(), ids=SELECT)
def test_select_experts_refuses(change, error, match):
    call: dict[str, Any] = {"router_logits": LOGITS, "top_k": 2}
    mx.select_experts(**call)
    with pytest.raises(error, match=match):
        mx.select_experts(**{**call, **change})


@pytest.mark.parametrize(("change", "error", "match"), MIXER.values(), ids=MIXER)
def test_sparsemixer_refuses(change, error, match):
    with pytest.raises(error, match=match):
        mx.sparsemixer(**{"router_logits": LOGITS, "top_k": 2, **change})


@pytest.mark.parametrize(("change", "error", "match"), HASH.values(), ids=HASH)
def test_hash_topk_refuses(change, error, match):
    call: dict[str, Any] = {
        "router_logits": LOGITS,
        "input_ids": np.array([0, 4, 2]),
        "tid2eid": np.zeros((5, 2), int),
    }
    mx.hash_topk(**call)
    with pytest.raises(error, match=match):
        mx.hash_topk(**{**call, **change})
