"""select_experts and sparsemixer: scores, choice and weights, each against formulas of its own."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mxfp4moe as mx
from mxfp4moe import reference
from mxfp4moe.reference import routing as definition

pytestmark = pytest.mark.emulation

f32 = np.float32
INF = f32(np.inf)
SCORINGS = ("softmax", "sigmoid", "sqrt_softplus")


def exact_scores(scoring: str, logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.longdouble)
    if scoring == "softmax":
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        return np.asarray(e / e.sum(axis=-1, keepdims=True))
    e = np.exp(-np.abs(x))
    if scoring == "sigmoid":
        return np.where(x < 0, e, 1) / (1 + e)
    return np.asarray(np.sqrt(np.maximum(x, 0) + np.log1p(e)))


def scores_of(logits: np.ndarray, **options: Any) -> np.ndarray:
    """The kernel's own float32 score of every expert."""
    weights, ids = mx.select_experts(logits, logits.shape[-1], renormalize=False, **options)
    scores = np.empty_like(weights)
    np.put_along_axis(scores, ids.astype(np.int64), weights, axis=-1)
    return scores


def random_logits(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Normal values, ties and excluded experts, but for the last one."""
    logits = (rng.normal(size=shape) * 4).astype(f32)
    logits[rng.random(shape) < 0.3] = 1.5
    excluded = rng.random(shape) < 0.1
    excluded[..., -1] = False
    logits[excluded] = -INF
    return logits


def half_ulp(exact: np.ndarray) -> np.ndarray:
    """Half an ulp, and the error of exp and log in double."""
    return np.asarray(0.5001 * np.spacing(np.abs(exact).astype(f32)).astype(np.longdouble))


@pytest.mark.parametrize("spread", [1, 8, 60])
def test_softmax_scores_are_rounded_once(rng, spread):
    logits = (rng.normal(size=(64, 257)) * spread).astype(f32)
    exact = exact_scores("softmax", logits)
    for select_by in ("score", "logit"):
        scores = scores_of(logits, select_by=select_by)
        assert np.all(np.abs(scores - exact) <= half_ulp(exact))


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("cap", [1e-3, 0.5, 7.0, 30.0, 3e38])
def test_capped_logits_are_rounded_once(rng, scoring, cap):
    logits = np.concatenate([rng.normal(size=(9, 90)) * 8, rng.uniform(-2, 2, (9, 90)) * cap / 32], axis=-1)
    logits = np.clip(logits, -1e38, 1e38).astype(f32)
    wide = np.longdouble(f32(cap))
    capped = wide * np.tanh(logits / wide)
    exact = exact_scores(scoring, capped)
    # No score changes by a larger share than e to the change of its logit, or of two logits with softmax.
    moved = np.minimum(1, half_ulp(capped).max(axis=-1, keepdims=True))
    share = np.expm1(2 * moved)
    bound = half_ulp(exact) * (1 + share) + exact * share
    assert np.all(np.abs(scores_of(logits, scoring=scoring, logit_softcap=cap) - exact) <= bound)


def test_a_capped_logit_excludes_only_where_it_is_minus_infinity():
    logits = np.array([-INF, -3e38, 0], f32)
    weights, ids = mx.select_experts(logits, 3, scoring="sigmoid", logit_softcap=2.0, renormalize=False)
    assert ids.tolist() == [2, 1, 0]
    np.testing.assert_array_equal(weights, [0.5, f32(1 / (1 + np.exp(2.0))), 0])


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("order", [1, 2, 3.5, 64])
def test_weights_are_within_the_documented_bound(rng, scoring, order):
    logits = rng.uniform(-12, 12, size=(100, 64)).astype(f32)
    scale = rng.uniform(-2, 2, 64).astype(f32)
    options = {"norm_order": order, "norm_epsilon": 1e-6, "routed_scaling_factor": 2.5}
    weights, ids = mx.select_experts(logits, 6, scoring=scoring, expert_scale=scale, **options)
    chosen = np.take_along_axis(exact_scores(scoring, logits), ids, axis=-1)
    norm = (chosen**order).sum(axis=-1, keepdims=True) ** (np.longdouble(1) / order)
    exact = chosen / (norm + f32(1e-6)) * 2.5 * scale[ids]
    assert np.all(np.abs(weights - exact) <= 7 * 2.0**-24 * 1.0001 * np.abs(exact))


@st.composite
def rules(draw: st.DrawFn) -> tuple[dict[str, Any], int, int]:
    """Options of select_experts for a number of experts, and how many are chosen."""
    num_groups, group_size = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    topk_group = draw(st.integers(1, num_groups))
    masked = draw(st.sampled_from(["exclude", "zero"]))
    num_experts = num_groups * group_size
    options = {
        "scoring": draw(st.sampled_from(SCORINGS)),
        "logit_softcap": draw(st.sampled_from([None, 3.0])),
        "num_shared_experts": draw(st.integers(0, 2)),
        "select_by": draw(st.sampled_from(["score", "logit"])),
        "num_groups": num_groups,
        "topk_group": topk_group,
        "group_score": draw(st.sampled_from(["top2_sum", "max"])),
        "masked_groups": masked,
        "renormalize": draw(st.booleans()),
        "norm_epsilon": draw(st.sampled_from([0.0, 1e-20, 1e-6])),
        "norm_floor": draw(st.sampled_from([0.0, 1e-12, 0.75])),
        "routed_scaling_factor": 2.5,
    }
    most = num_experts if masked == "zero" else topk_group * group_size
    return options, num_experts, draw(st.integers(1, most))


@given(rule=rules(), seed=st.integers(0, 2**32), biased=st.booleans(), scaled=st.booleans())
def test_choice_and_weights_of_the_kernels_scores(rule, seed, biased, scaled):
    options, num_experts, top_k = rule
    rng = np.random.default_rng(seed)
    logits = random_logits(rng, (7, num_experts + options["num_shared_experts"]))
    if biased:
        options["correction_bias"] = (rng.integers(-6, 5, num_experts) / 8).astype(f32)
        options["correction_bias"][rng.random(num_experts) < 0.1] = -INF
    if scaled:
        options["expert_scale"] = rng.normal(size=logits.shape[-1]).astype(f32)
    weights, ids = mx.select_experts(logits, top_k, **options)
    cap = {"logit_softcap": options["logit_softcap"], "scoring": options["scoring"]}
    # With the same scores, all that follows has the same bits.
    scores = scores_of(logits, **cap)
    with patch.dict(definition.SCORINGS, {options["scoring"]: lambda _: scores}):
        expected_weights, expected_ids = reference.select_experts(logits, top_k, **options)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(weights, expected_weights)
    assert (weights.dtype, ids.dtype) == (f32, np.int32)
    assert not weights[np.take_along_axis(logits, ids, axis=-1) == -INF].any()


def test_plain_rules_are_cases(rng):
    logits, bias = random_logits(rng, (50, 24)), (rng.integers(-4, 5, 24) / 8).astype(f32)
    groups = {"num_groups": 6, "topk_group": 2}
    cases: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
        (mx.topk_softmax, {"renormalize": False}, {"scoring": "softmax", "select_by": "logit"}),
        (mx.topk_sigmoid, {"correction_bias": bias}, {"scoring": "sigmoid"}),
        (mx.topk_sqrt_softplus, {"renormalize": False}, {"scoring": "sqrt_softplus"}),
        (mx.grouped_topk, {"routed_scaling_factor": 2.5, **groups}, {"scoring": "sigmoid"}),
    ]
    for function, options, rule in cases:
        for result, expected in zip(
            mx.select_experts(logits, 4, **options, **rule), function(logits, 4, **options), strict=True
        ):
            np.testing.assert_array_equal(result, expected)


def test_a_group_counts_its_best_or_its_two_best():
    logits = np.log(np.array([0.4, 0.04, 0.02, 0.3, 0.22, 0.02])).astype(f32)
    options: dict[str, Any] = {"num_groups": 2, "topk_group": 1}
    assert mx.select_experts(logits, 2, group_score="max", **options)[1].tolist() == [0, 1]
    assert mx.select_experts(logits, 2, group_score="top2_sum", **options)[1].tolist() == [3, 4]


def test_masked_groups_of_zero_are_better_than_negative_scores():
    logits = np.zeros(6, f32)
    logits[3] = -INF
    bias = np.array([1, -2, 0, -1, -1, -1], f32)  # scores of 0.5 and a bias
    options: dict[str, Any] = {
        "scoring": "sigmoid",
        "correction_bias": bias,
        "num_groups": 3,
        "topk_group": 1,
    }
    kept_ids = mx.select_experts(logits, 2, group_score="max", **options)[1]
    assert kept_ids.tolist() == [0, 1]
    _, ids = mx.select_experts(logits, 6, group_score="max", masked_groups="zero", **options)
    assert ids.tolist() == [0, 2, 4, 5, 1, 3]


def test_shared_experts_take_the_last_slots_and_count_in_the_sum():
    logits = np.array([0, 30, 30, 0, 30], f32)  # sigmoids 0.5 and 1
    scale = np.array([1, 1, 1, 4, 1], f32)
    options: dict[str, Any] = {"scoring": "sigmoid", "num_shared_experts": 2, "expert_scale": scale}
    weights, ids = mx.select_experts(logits, 1, correction_bias=np.array([3, 1, 1], f32), **options)
    assert ids.tolist() == [0, 3, 4]
    np.testing.assert_array_equal(weights, [0.25, 1, 0.5])


@pytest.mark.parametrize("renormalize", [True, False])
def test_a_norm_of_zero_leaves_zeros(renormalize):
    logits = np.array([[0.0, -900, -800, -INF]], f32)
    bias = np.array([-5, 1, 0, 0], f32)
    options: dict[str, Any] = {"correction_bias": bias, "norm_epsilon": 0.0, "renormalize": renormalize}
    for order in (1, 2):
        weights, ids = mx.select_experts(logits, 2, norm_order=order, **options)
        assert ids.tolist() == [[1, 2]]
        assert weights.tolist() == [[0, 0]]


def test_the_floor_is_the_smallest_divisor():
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125])).astype(f32)
    scores, _ = mx.select_experts(logits, 2, renormalize=False)
    for floor in (0.5, 0.875):
        weights, _ = mx.select_experts(logits, 2, norm_epsilon=0.0, norm_floor=floor)
        np.testing.assert_array_equal(weights, scores / max(scores.sum(), f32(floor)))


def nearby(logits: np.ndarray, slots: int, eps: float) -> tuple[np.ndarray, list[int]]:
    """One row of the sparse mixer, expert by expert."""
    left, ids, weights = list(range(len(logits))), [], []
    for _ in range(slots):
        best = min(left, key=lambda i: (-logits[i], i))
        top = logits[best]
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            far = [i for i in left if (top - logits[i]) / max(abs(logits[i]), top) > f32(2 * eps)]
        near = np.array([logits[i] for i in left if i not in far and logits[i] > -INF], np.longdouble)
        weights.append(1 / np.exp(near - top).sum() if top > -INF else 0)
        ids.append(best)
        left.remove(best)
    return np.array(weights, np.longdouble), ids


@given(
    seed=st.integers(0, 2**32),
    num_experts=st.integers(1, 40),
    eps=st.sampled_from([0.0, 0.01, 0.2, 0.75, 3.0]),
    data=st.data(),
)
def test_sparsemixer(seed, num_experts, eps, data):
    rng = np.random.default_rng(seed)
    top_k = data.draw(st.integers(1, num_experts))
    logits = random_logits(rng, (6, num_experts))
    logits[rng.random(logits.shape) < 0.1] = 0
    weights, ids = mx.sparsemixer(logits, top_k, jitter_eps=eps)
    for row, got, chosen in zip(logits, weights, ids, strict=True):
        exact, expected = nearby(row, top_k, eps)
        assert chosen.tolist() == expected
        assert np.all(np.abs(got - exact) <= half_ulp(exact))


def test_sparsemixer_agrees_with_the_definition():
    logits = np.array([[4, 4, 4, -INF, 1], [-2, -3, -8, -INF, -300], [0, 0, -9, 0, -5]], f32)
    for eps in (0.0, 0.1, 0.45):
        for result, expected in zip(
            mx.sparsemixer(logits, 5, jitter_eps=eps),
            reference.sparsemixer(logits, 5, jitter_eps=eps),
            strict=True,
        ):
            np.testing.assert_array_equal(result, expected)
