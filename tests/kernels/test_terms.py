"""The terms of slots, which calls with combine=False return: added in order, they are the combined result."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from packed_examples import FORMATS, SPECIAL_FORMATS, E, K, activation_of, make_experts

import mxfp4moe as mx
from mxfp4moe import _core


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def add_in_order(terms: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The float32 sums of terms [M, top_k, K] in ascending expert id, then slot."""
    order = np.argsort(ids, axis=-1, kind="stable")
    total = np.zeros((len(terms), terms.shape[-1]), np.float32)
    for slot in range(ids.shape[1]):
        total += np.take_along_axis(terms, order[:, slot, None, None], axis=1)[:, 0]
    return total


def slots(rng: np.random.Generator, num_tokens: int, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and ids some of which are dropped and some repeated."""
    weights = rng.standard_normal((num_tokens, top_k), np.float32)
    return weights, rng.integers(-1, E, (num_tokens, top_k), np.int32)


@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize("format", [*FORMATS, *SPECIAL_FORMATS])
def test_terms_add_up_to_the_result(isa: str, rng: np.random.Generator, format: str, on_input: bool) -> None:
    experts = make_experts(rng, format)
    options: dict[str, Any] = {"activation": activation_of(experts), "apply_router_weight_on_input": on_input}
    for num_tokens, top_k in ((1, 2), (7, 3), (40, 1)):
        x = rng.standard_normal((num_tokens, K), np.float32).astype(ml_dtypes.bfloat16)
        weights, ids = slots(rng, num_tokens, top_k)
        terms = mx.fused_experts(x, experts, weights, ids, combine=False, **options)
        assert terms.shape == (num_tokens, top_k, K)
        assert terms.dtype == np.float32
        assert not terms[ids < 0].any()
        total = add_in_order(terms, ids)
        out = np.empty((num_tokens, K), np.float32)
        mx.fused_experts(x, experts, weights, ids, out=out, **options)
        assert same_bits(total, out)
        rounded = mx.fused_experts(x, experts, weights, ids, **options)
        assert same_bits(total.astype(ml_dtypes.bfloat16), rounded)


@pytest.mark.parametrize("num_nodes", [1, 3])
def test_terms_do_not_depend_on_the_cut_of_the_work(rng: np.random.Generator, num_nodes: int) -> None:
    experts = make_experts(rng, "mxfp4")
    x = rng.standard_normal((50, K), np.float32)
    weights, ids = slots(rng, 50, 4)
    expected = mx.fused_experts(x, experts, weights, ids, combine=False, num_threads=1)
    _core.simulate_nodes(num_nodes)
    try:
        for num_threads in (1, 2, 5):
            terms = mx.fused_experts(x, experts, weights, ids, combine=False, num_threads=num_threads)
            assert same_bits(terms, expected)
    finally:
        _core.simulate_nodes(0)
    each = [mx.fused_experts(x[i], experts, weights[i], ids[i], combine=False) for i in range(50)]
    assert same_bits(np.stack(each), expected)


def test_large_batches_are_computed_in_chunks(rng: np.random.Generator) -> None:
    """The rows of terms of a chunk follow those of the chunk before it."""
    experts, num_tokens, top_k = make_experts(rng, "mxfp4"), 16_500, 3
    x = np.broadcast_to(rng.standard_normal((1, K), np.float32), (num_tokens, K))
    weights = np.ones((num_tokens, top_k), np.float32)
    ids = rng.integers(-1, E, (num_tokens, top_k), np.int32)
    one = mx.fused_experts(x[:1], experts, weights[:1, :E], np.arange(E)[None], combine=False)[0]
    by_id = np.concatenate([one, np.zeros((1, K), np.float32)])
    terms = mx.fused_experts(x, experts, weights, ids, combine=False)
    for first in range(0, num_tokens, 1000):
        part = slice(first, first + 1000)
        assert np.array_equal(terms[part], by_id[ids[part]])


def test_forms_of_a_call(rng: np.random.Generator) -> None:
    experts = make_experts(rng, "bf16")
    x = rng.standard_normal((2, 3, K), np.float32)
    weights, ids = rng.standard_normal((2, 3, 2), np.float32), rng.integers(-1, E, (2, 3, 2))
    terms = mx.fused_experts(x, experts, weights, ids, combine=False)
    assert terms.shape == (2, 3, 2, K)
    out = np.zeros((2, 3, 4, K), np.float32)[:, :, ::2]  # rows that no reshape can join
    assert mx.fused_experts(x, experts, weights, ids, combine=False, out=out) is out
    assert same_bits(np.ascontiguousarray(out), terms)
    expert_map = np.array([-1, 2, 0, 1])
    mapped = mx.fused_experts(x, experts, weights, ids + 1, expert_map=expert_map, combine=False)
    plain = mx.fused_experts(x, experts, weights, expert_map[ids + 1], combine=False)
    assert same_bits(mapped, plain)
    for shape in ((0, K), (4, K)):
        empty = mx.fused_experts(
            np.ones(shape, np.float32),
            experts,
            np.ones((shape[0], 0)),
            np.ones((shape[0], 0), int),
            combine=False,
        )
        assert empty.shape == (shape[0], 0, K)


@pytest.mark.parametrize(
    ("error", "options", "message"),
    [
        (TypeError, {"combine": 1}, "combine: expected a bool, got 1"),
        (ValueError, {"out": np.empty((4, K), np.float32)}, r"out: expected shape \(4, 2, 64\), got shape"),
        (
            TypeError,
            {"out": np.empty((4, 2, K), ml_dtypes.bfloat16)},
            "out: expected an array of float32 with",
        ),
    ],
)
def test_wrong_arguments(
    rng: np.random.Generator, error: type[Exception], options: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {"combine": False} | options
    x = np.ones((4, K), np.float32)
    with pytest.raises(error, match=message):
        mx.fused_experts(x, make_experts(rng, "bf16"), np.ones((4, 2)), np.zeros((4, 2), int), **arguments)
    memory = np.zeros(4 * 2 * K + 4 * K, np.float32)
    out, inside = memory[: 4 * 2 * K].reshape(4, 2, K), memory[2 * K : 6 * K].reshape(4, K)
    with pytest.raises(ValueError, match="out: expected memory apart from hidden_states"):
        mx.fused_experts(
            inside, make_experts(rng, "bf16"), np.ones((4, 2)), np.zeros((4, 2), int), combine=False, out=out
        )
