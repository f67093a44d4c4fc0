"""topk_sigmoid, topk_sqrt_softplus, grouped_topk and hash_topk: scores, selection, weights, exclusion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mxfp4moe as mx
from mxfp4moe import reference

pytestmark = pytest.mark.emulation

Route = Callable[..., tuple[np.ndarray, np.ndarray]]
SCORED = {"sigmoid": mx.topk_sigmoid, "sqrt_softplus": mx.topk_sqrt_softplus}
INF = np.float32(np.inf)

# Logits whose scores round to the same float32 number however exp is computed: 0, a half, or 1 as sigmoid;
# 0 or a small integer as sqrt(softplus), where exp(-x) is below half an ulp of x.
EXACT_LOGITS = {
    "sigmoid": [-np.inf, -200, 0, 18, 30, 1e30],
    "sqrt_softplus": [-np.inf, -300, 25, 36, 64, 100],
}


def scores_of(route: Route, logits: np.ndarray) -> np.ndarray:
    """The kernel's own float32 score of every expert."""
    weights, ids = route(logits, logits.shape[-1], renormalize=False)
    scores = np.empty_like(weights)
    np.put_along_axis(scores, ids.astype(np.int64), weights, axis=-1)
    return scores


def choose(scores: np.ndarray, candidates: list[int], k: int) -> list[int]:
    return sorted(candidates, key=lambda i: (-scores[i], i))[:k]


def best_groups(selection: np.ndarray, num_groups: int, topk_group: int) -> list[int]:
    """Experts of the best groups, one group after the other by hand."""
    size = len(selection) // num_groups
    group_scores = []
    for g in range(num_groups):
        best = sorted((s for s in selection[g * size : (g + 1) * size] if s > -INF), reverse=True)[:2]
        group_scores.append(sum(best[1:], best[0]) if best else -INF)
    kept = choose(np.array(group_scores), list(range(num_groups)), topk_group)
    return [i for i in range(len(selection)) if i // size in kept]


def weights_of(scores: np.ndarray, ids: np.ndarray, renormalize: bool, factor: float) -> np.ndarray:
    """float32 arithmetic on float32 scores; the sum is rounded once."""
    chosen = np.take_along_axis(scores, ids, axis=-1)
    if renormalize:
        total = np.cumsum(chosen, axis=-1, dtype=np.float64)[..., -1:].astype(np.float32)
        chosen = chosen / (total + np.float32(1e-20))
    return np.asarray(chosen * np.float32(factor))


def exact_score(name: str, logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.longdouble)
    e = np.exp(-np.abs(x))
    if name == "sigmoid":
        return np.where(x < 0, e, 1) / (1 + e)
    return np.asarray(np.sqrt(np.maximum(x, 0) + np.log1p(e)))


def random_logits(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Normal values, ties and excluded experts."""
    logits = (rng.normal(size=shape) * 4).astype(np.float32)
    logits[rng.random(shape) < 0.3] = 1.5
    logits[rng.random(shape) < 0.1] = -INF
    return logits


def random_bias(rng: np.random.Generator, num_experts: int) -> np.ndarray:
    bias = (rng.integers(-4, 5, num_experts) / 8).astype(np.float32)
    bias[rng.random(num_experts) < 0.1] = -INF
    return bias


@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize("limits", [(-8, 8), (-90, 40), (-104, -80), (1e-30, 1e-3), (40, 3e38)])
def test_scores_are_rounded_once(rng, name, limits):
    logits = rng.uniform(*limits, size=(64, 257)).astype(np.float32)
    exact = exact_score(name, logits)
    scores = scores_of(SCORED[name], logits)
    # The bound is half an ulp, and a little for the error of exp and log in double.
    tiny = np.spacing(exact.astype(np.float32)).astype(np.longdouble)
    assert np.all(np.abs(scores - exact) <= 0.5001 * tiny)


@pytest.mark.parametrize("renormalize", [True, False])
def test_softmax_is_rounded_once(rng, renormalize):
    logits = (rng.normal(size=(64, 257)) * 8).astype(np.float32)
    weights, ids = mx.topk_softmax(logits, 257 if renormalize else 99, renormalize=renormalize)
    e = np.exp(logits.astype(np.longdouble) - logits.max(axis=-1, keepdims=True))
    exact = np.take_along_axis(e / e.sum(axis=-1, keepdims=True), ids, axis=-1)
    tiny = np.spacing(exact.astype(np.float32)).astype(np.longdouble)
    assert np.all(np.abs(weights - exact) <= 0.5001 * tiny)


@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize("renormalize", [True, False])
def test_weights_are_within_the_documented_bound(rng, name, renormalize):
    logits = rng.uniform(-30, 30, size=(100, 64)).astype(np.float32)
    options = {"renormalize": renormalize, "routed_scaling_factor": 2.5}
    weights, ids = SCORED[name](logits, 6, **options)
    chosen = np.take_along_axis(exact_score(name, logits), ids, axis=-1)
    exact = 2.5 * (chosen / (chosen.sum(axis=-1, keepdims=True) + 1e-20) if renormalize else chosen)
    roundings = 6 if renormalize else 2
    np.testing.assert_array_less(np.abs(weights - exact), roundings * 2.0**-24 * 1.0001 * exact)


@given(
    name=st.sampled_from(list(SCORED)),
    seed=st.integers(0, 2**32),
    num_tokens=st.integers(0, 9),
    num_experts=st.integers(1, 80),
    data=st.data(),
    renormalize=st.booleans(),
    biased=st.booleans(),
)
def test_scored_selection(name, seed, num_tokens, num_experts, data, renormalize, biased):
    rng = np.random.default_rng(seed)
    top_k = data.draw(st.integers(1, num_experts))
    logits = random_logits(rng, (num_tokens, num_experts))
    bias = random_bias(rng, num_experts) if biased else None
    options: dict[str, Any] = {"renormalize": renormalize, "routed_scaling_factor": 2.5}
    weights, ids = SCORED[name](logits, top_k, correction_bias=bias, **options)

    scores = scores_of(SCORED[name], logits)
    selection = np.where(logits == -INF, -INF, scores if bias is None else scores + bias)
    expected = [choose(row, list(range(num_experts)), top_k) for row in selection]
    np.testing.assert_array_equal(ids, np.array(expected, np.int32).reshape(num_tokens, top_k))
    np.testing.assert_array_equal(weights, weights_of(scores, ids, renormalize, 2.5))
    assert (weights.dtype, ids.dtype) == (np.float32, np.int32)
    assert not weights[np.take_along_axis(logits, ids, axis=-1) == -INF].any()


@given(
    seed=st.integers(0, 2**32),
    num_tokens=st.integers(0, 9),
    num_groups=st.integers(1, 9),
    group_size=st.integers(1, 20),
    data=st.data(),
    biased=st.booleans(),
)
def test_grouped_selection(seed, num_tokens, num_groups, group_size, data, biased):
    rng = np.random.default_rng(seed)
    num_experts = num_groups * group_size
    topk_group = data.draw(st.integers(1, num_groups))
    top_k = data.draw(st.integers(1, topk_group * group_size))
    logits = random_logits(rng, (num_tokens, num_experts))
    bias = random_bias(rng, num_experts) if biased else None
    groups = {"num_groups": num_groups, "topk_group": topk_group}
    weights, ids = mx.grouped_topk(logits, top_k, correction_bias=bias, routed_scaling_factor=2.5, **groups)

    scores = scores_of(mx.topk_sigmoid, logits)
    selection = np.where(logits == -INF, -INF, scores if bias is None else scores + bias)
    expected = [choose(row, best_groups(row, num_groups, topk_group), top_k) for row in selection]
    np.testing.assert_array_equal(ids, np.array(expected, np.int32).reshape(num_tokens, top_k))
    np.testing.assert_array_equal(weights, weights_of(scores, ids, True, 2.5))


@given(name=st.sampled_from(list(SCORED)), seed=st.integers(0, 2**32), data=st.data())
def test_exact_scores_agree_with_reference(name, seed, data):
    rng = np.random.default_rng(seed)
    num_groups, group_size = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 12))
    num_experts = num_groups * group_size
    logits = rng.choice(np.array(EXACT_LOGITS[name], np.float32), (11, num_experts))
    top_k = data.draw(st.integers(1, group_size))
    options: dict[str, Any] = {
        "correction_bias": data.draw(st.sampled_from([None, random_bias(rng, num_experts)])),
        "renormalize": data.draw(st.booleans()),
        "routed_scaling_factor": 1.5,
    }
    calls: list[tuple[str, dict[str, Any]]] = [(f"topk_{name}", options)]
    if name == "sigmoid":
        groups = {"num_groups": num_groups, "topk_group": data.draw(st.integers(1, num_groups))}
        calls.append(("grouped_topk", options | groups))
    for function, arguments in calls:
        weights, ids = getattr(mx, function)(logits, top_k, **arguments)
        expected_weights, expected_ids = getattr(reference, function)(logits, top_k, **arguments)
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_array_equal(weights, expected_weights)


def test_exact_hash_agrees_with_reference(rng):
    logits = rng.choice(np.array(EXACT_LOGITS["sqrt_softplus"], np.float32), (40, 12))
    tid2eid = rng.integers(0, 12, (30, 5))
    input_ids = rng.integers(0, 30, 40)
    weights, ids = mx.hash_topk(logits, input_ids, tid2eid, routed_scaling_factor=1.5)
    expected = reference.hash_topk(logits, input_ids, tid2eid, routed_scaling_factor=1.5)
    np.testing.assert_array_equal(weights, expected[0])
    np.testing.assert_array_equal(ids, expected[1])


@given(
    seed=st.integers(0, 2**32),
    num_tokens=st.integers(0, 20),
    num_experts=st.integers(1, 40),
    top_k=st.integers(1, 50),
)
def test_hash_routing(seed, num_tokens, num_experts, top_k):
    rng = np.random.default_rng(seed)
    logits = random_logits(rng, (num_tokens, num_experts))
    tid2eid = rng.integers(0, num_experts, (17, top_k))
    input_ids = rng.integers(0, 17, num_tokens)
    weights, ids = mx.hash_topk(logits, input_ids, tid2eid, routed_scaling_factor=1.5)
    np.testing.assert_array_equal(ids, tid2eid[input_ids])
    assert (weights.dtype, ids.dtype) == (np.float32, np.int32)
    scores = scores_of(mx.topk_sqrt_softplus, logits)
    np.testing.assert_array_equal(weights, weights_of(scores, ids, True, 1.5))


def test_saturated_scores_are_ties():
    logits = np.array([20.0, 1.0, 30.0, 17.5], np.float32)
    weights, ids = mx.topk_sigmoid(logits, 3, renormalize=False)
    assert ids.tolist() == [0, 2, 3]
    assert weights.tolist() == [1, 1, 1]
    assert mx.grouped_topk(logits, 1, num_groups=4, topk_group=1)[1].tolist() == [0]


def test_group_ties_go_to_the_lower_group():
    logits = np.zeros(8, np.float32)
    assert mx.grouped_topk(logits, 3, num_groups=4, topk_group=2)[1].tolist() == [0, 1, 2]
    logits[3] = 1
    assert mx.grouped_topk(logits, 3, num_groups=4, topk_group=2)[1].tolist() == [3, 0, 1]


def test_a_group_counts_its_two_best():
    scores = np.array([[0.9, 0.1, 0.1, 0.6, 0.5, 0.4]])
    logits = np.log(scores / (1 - scores)).astype(np.float32)
    assert mx.grouped_topk(logits, 2, num_groups=2, topk_group=1)[1].tolist() == [[3, 4]]


def test_bias_selects_but_does_not_weight():
    logits = np.array([0.0, 20.0, 20.0], np.float32)
    for route in (mx.topk_sigmoid, mx.grouped_topk):
        groups = {} if route is mx.topk_sigmoid else {"num_groups": 1, "topk_group": 1}
        weights, ids = route(logits, 2, correction_bias=np.array([2.0, 0, 0.5], np.float32), **groups)
        assert ids.tolist() == [0, 2]
        np.testing.assert_array_equal(weights, np.array([0.5, 1], np.float32) / np.float32(1.5))


def test_excluded_experts_come_last():
    logits = np.array([-INF, -200.0, 0.0], np.float32)
    bias = np.array([100.0, -5.0, -100.0], np.float32)
    weights, ids = mx.topk_sigmoid(logits, 3, correction_bias=bias)
    assert ids.tolist() == [1, 2, 0]
    assert weights.tolist() == [0, 1, 0]
    # Excluded by its bias: chosen last, but weighted as any other.
    weights, ids = mx.topk_sigmoid(
        np.array([18.0, 18, 0], np.float32), 3, correction_bias=np.array([-INF, 0, 0], np.float32)
    )
    assert ids.tolist() == [1, 2, 0]
    np.testing.assert_array_equal(weights, np.array([1, 0.5, 1], np.float32) / np.float32(2.5))


@pytest.mark.parametrize("route", SCORED.values(), ids=SCORED)
def test_a_row_of_excluded_experts_has_no_weight(route):
    weights, ids = route(np.full((2, 4), -INF), 3)
    assert ids.tolist() == [[0, 1, 2]] * 2
    assert not weights.any()


def test_excluded_experts_do_not_count_in_a_group():
    logits = np.full(6, -INF)
    logits[5] = -3
    weights, ids = mx.grouped_topk(logits, 2, num_groups=3, topk_group=1)
    assert ids.tolist() == [5, 4]
    assert weights.tolist() == [1, 0]
