"""Random matrices, router logits and layers, against scores in float64 with the bounds of docs/routing.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import mxfp4moe as mx
from fuzz.bounded import EPS32, Array
from fuzz.calls import FLOATS, TABLES, chance, choose
from fuzz.cases import Campaign, Case, Rng
from fuzz.float64 import to_bfloat16
from fuzz.linears import run_linear
from mxfp4moe import config

RULES = ("topk_softmax", "topk_sigmoid", "topk_sqrt_softplus", "grouped_topk", "hash_topk")
SMALLEST = 2.0**-126
WEIGHT_EPS = 6 * EPS32  # largest relative error of a weight


class Route(NamedTuple):
    """A call of a routing function."""

    rule: str
    logits: Array  # [T, E], as given
    top_k: int
    bias: Array | None
    options: dict[str, Any]
    table: Array | None  # of hash_topk
    input_ids: Array | None

    def call(self) -> tuple[Array, Array]:
        options = dict(self.options)
        if self.rule == "hash_topk":
            return mx.hash_topk(self.logits, self.input_ids, self.table, **options)
        if self.rule != "topk_softmax":
            options["correction_bias"] = self.bias
        return getattr(mx, self.rule)(self.logits, self.top_k, **options)


def random_route(rng: Rng) -> Route:
    rule = choose(rng, RULES)
    groups = int(rng.integers(1, 9)) if rule == "grouped_topk" else 1
    num_experts, tokens = groups * int(rng.integers(1, 40)), int(choose(rng, (0, 1, 2, 7, 33, 300)))
    logits = rng.standard_normal((tokens, num_experts)) * choose(rng, (0.1, 1, 3, 40))
    if chance(rng, 0.3):
        logits = np.round(logits)  # ties
    if chance(rng, 0.2):
        logits[rng.random(logits.shape) < 0.3] = -np.inf
        logits[:, 0] = 0  # a row of nothing but -inf is an error
    logits = logits.astype(choose(rng, (*FLOATS, np.dtype(np.float64))))
    options: dict[str, Any] = {}
    kept = groups
    if rule == "grouped_topk":
        kept = int(rng.integers(1, groups + 1))
        options |= {"num_groups": groups, "topk_group": kept}
    if rule != "hash_topk" and chance(rng, 0.5):
        options["renormalize"] = False
    if rule != "topk_softmax" and chance(rng, 0.5):
        options["routed_scaling_factor"] = float(rng.uniform(0.1, 3))
    top_k = int(rng.integers(1, min(kept * (num_experts // groups), 9) + 1))
    bias = table = input_ids = None
    if rule == "hash_topk":
        table = rng.integers(0, num_experts, (11, top_k)).astype(choose(rng, (np.int32, np.int64, np.uint8)))
        input_ids = rng.integers(0, 11, tokens)
    elif rule != "topk_softmax" and chance(rng, 0.6):
        bias = rng.standard_normal(num_experts).astype(np.float32)
    return Route(rule, logits, top_k, bias, options, table, input_ids)


def scores_of(rule: str, logits: Array) -> Array:
    if rule in ("topk_sigmoid", "grouped_topk"):
        return 1 / (1 + np.exp(-logits))
    if rule == "topk_softmax":
        return logits
    return np.sqrt(np.log1p(np.exp(np.minimum(logits, 700))) + np.maximum(logits - 700, 0))


def check_route(route: Route, weights: Array, ids: Array) -> None:
    tokens = len(route.logits)
    assert weights.shape == ids.shape == (tokens, route.top_k)
    assert weights.dtype == np.float32 and ids.dtype == np.int32
    with np.errstate(all="ignore"):
        logits = route.logits.astype(np.float32).astype(np.float64)
        scores = scores_of(route.rule, logits)
        for t in range(tokens):
            if route.table is None:
                _check_choice(route, logits[t], scores[t], ids[t])
            else:
                assert (ids[t] == route.table[route.input_ids[t]]).all()  # type: ignore[index]
            chosen, divisor = _chosen(route, logits[t], scores[t], ids[t])
            bound = (WEIGHT_EPS * chosen + 4 * SMALLEST) / divisor + SMALLEST  # small scores are off by more
            wrong = abs(weights[t] - chosen / divisor) > bound
            assert not wrong.any(), (t, weights[t], chosen / divisor)


def _check_choice(route: Route, logits: Array, scores: Array, ids: Array) -> None:
    """No expert that was left is better than one that was chosen, or than one that stands after it."""
    exact = route.rule == "topk_softmax"
    selection, margin = scores.copy(), np.zeros(len(scores))
    if not exact:
        if route.bias is not None:
            selection = selection + route.bias
        margin = 2 * EPS32 * (abs(scores) + abs(selection))
    selection[np.isneginf(logits)] = -np.inf
    assert len(set(ids.tolist())) == len(ids)
    surely, perhaps = _kept(route, selection, margin)
    assert perhaps[ids].all(), (ids, "of a group that was not kept")
    left = np.setdiff1d(np.flatnonzero(surely), ids)
    for place, expert in enumerate(ids):
        later = np.concatenate([ids[place + 1 :], left])
        better = selection[later] - margin[later] > selection[expert] + margin[expert]
        assert not better.any(), (ids, expert, later[better])
        # Where the numbers are the same, the lower id comes first.
        same = logits[later] == logits[expert]
        if route.bias is not None:
            same &= route.bias[later] == route.bias[expert]
        assert (later[same] > expert).all(), (ids, expert, later[same])


def _group_scores(route: Route, selection: Array) -> Array:
    groups = selection.reshape(route.options.get("num_groups", 1), -1)
    best = np.sort(groups, axis=-1)[:, ::-1][:, :2]
    return np.where(np.isneginf(best[:, 0]), -np.inf, np.where(np.isneginf(best), 0, best).sum(-1))


def _kept(route: Route, selection: Array, margin: Array) -> tuple[Array, Array]:
    """Which experts are surely, and which perhaps, of a group that is kept."""
    if route.rule != "grouped_topk":
        every = np.ones(len(selection), bool)
        return every, every
    scores = _group_scores(route, selection)
    wide = 4 * margin.max() + 4 * EPS32 * abs(selection[np.isfinite(selection)]).max(initial=0)
    surely_better = (scores - wide > scores[:, None] + wide).sum(-1)
    perhaps_better = (scores + wide >= scores[:, None] - wide).sum(-1) - 1  # the group itself is not
    size = len(selection) // len(scores)
    surely, perhaps = (count < route.options["topk_group"] for count in (perhaps_better, surely_better))
    return surely.repeat(size), perhaps.repeat(size)


def _chosen(route: Route, logits: Array, scores: Array, ids: Array) -> tuple[Array, float]:
    """Scores of the chosen experts, scaled, and what they are divided by."""
    renormalize = route.options.get("renormalize", True)
    if route.rule == "topk_softmax":
        powers = np.exp(logits - logits.max())
        return powers[ids], float(powers[ids].sum() if renormalize else powers.sum())
    chosen = np.where(np.isneginf(logits[ids]), 0, scores[ids])
    factor = float(np.float32(route.options.get("routed_scaling_factor", 1.0)))
    return chosen * factor, float(chosen.sum() + 1e-20 if renormalize else 1)


# --- router logits ------------------------------------------------------------------------------------------


def check_logits(rng: Rng) -> None:
    """Sums of up to three terms of a float32 weight are within the rounding of every addition."""
    num_experts, hidden_size, tokens = (int(rng.integers(1, most)) for most in (80, 300, 40))
    weight = rng.standard_normal((num_experts, hidden_size)).astype(
        choose(rng, (np.float32, ml_dtypes.bfloat16))
    )
    weight = weight.astype(np.float32)
    bias = rng.standard_normal(num_experts).astype(np.float32) if chance(rng, 0.5) else None
    hidden = rng.standard_normal((tokens, hidden_size)).astype(choose(rng, FLOATS))
    linear = mx.pack_linear(weight, format="float32", bias=bias)
    logits = linear(hidden, num_threads=int(rng.integers(1, 4)))
    x, w = to_bfloat16(hidden), weight.astype(np.float64)
    expected, magnitude = x @ w.T, abs(x) @ abs(w).T
    if bias is not None:
        expected, magnitude = expected + bias, magnitude + abs(bias)
    # The terms of a weight together are at most 1 + 2**-7 times as large as it.
    bound = (hidden_size + 4) * EPS32 * 1.01 * magnitude
    assert (abs(logits - expected) <= bound).all()


def run_route(rng: Rng) -> str:
    if chance(rng, 0.3):
        return run_linear(rng)
    table = choose(rng, TABLES)
    with config._use_kernels(table):
        if chance(rng, 0.3):
            check_logits(rng)
            return f"router logits, {table}"
        route = random_route(rng)
        check_route(route, *route.call())
        return route.rule


def _prepare(folder: Path) -> Case:
    return run_route


ROUTES = Campaign("routes", _prepare)
