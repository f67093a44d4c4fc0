"""`attention` against its definition: exact cases to the bit, others within a derived bound."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from problems import assert_same_bits
from sequences import CACHE_DTYPES, CacheDtype, Heads, Sequence, draw

import mxfp4moe as mx
from mxfp4moe import reference

UNIT = 2.0**-24  # of a rounding to float32
EXP_ERROR = 2e-7  # of the kernels' e^x, relative
BLOCK, SEGMENT = 64, 512  # positions

HEADS = [Heads(8, 1, 64), Heads(6, 2, 33), Heads(3, 3, 1), Heads(5, 1, 80), Heads(4, 4, 16)]
LENGTHS = [(1, 1), (64, 64), (65, 3), (200, 130), (700, 20), (1100, 1)]
"""Positions, and how many of the last have queries."""


def run(sequence: Sequence, num_queries: int, **options: Any) -> np.ndarray:
    return mx.attention(sequence.queries[-num_queries:], sequence.cache(), **options)


def expected(sequence: Sequence, num_queries: int, **options: Any) -> np.ndarray:
    return reference.attention(sequence.queries[-num_queries:], sequence.keys, sequence.values, **options)


@pytest.mark.emulation
@pytest.mark.smoke
@pytest.mark.parametrize("dtype", CACHE_DTYPES)
@pytest.mark.parametrize(("length", "num_queries"), LENGTHS)
@pytest.mark.parametrize("window", [None, 1, 70, 600])
def test_equal_scores_give_the_exact_mean(
    isa: str, rng: np.random.Generator, dtype: CacheDtype, length: int, num_queries: int, window: int | None
) -> None:
    """Each weight is 1: sums of integers are exact in any order, and the quotient is rounded once."""
    for heads in HEADS:
        sequence = draw(rng, heads, length, dtype)
        sequence.queries[...] = 0
        sequence.values[...] = rng.integers(-100, 100, sequence.values.shape)
        sinks = np.zeros(heads.num_heads, np.float32)
        sinks[::2] = -np.inf  # nothing; the others count as one position more
        for each in (None, sinks):
            options: dict[str, Any] = {"scale": 0.5, "sliding_window": window, "sinks": each}
            got = run(sequence, num_queries, **options)
            assert_same_bits(got, expected(sequence, num_queries, **options))
            for narrow in (np.float16, ml_dtypes.bfloat16):
                rounded = run(sequence, num_queries, dtype=narrow, **options)
                assert_same_bits(rounded, got.astype(narrow))


@pytest.mark.emulation
@pytest.mark.parametrize("dtype", CACHE_DTYPES)
def test_far_scores_choose_one_position(isa: str, rng: np.random.Generator, dtype: CacheDtype) -> None:
    """Scores that differ by 200 or more: all weights but one are 0, before and after the largest score."""
    heads = Heads(4, 2, 32)
    sequence = draw(rng, heads, 1200, dtype)
    sequence.keys[...] = 0
    ranks = rng.permutation(200)[:, None]
    sequence.keys[:200, :, 0] = ranks  # integers up to 255 are bfloat16 numbers
    sequence.keys[200:, :, 0] = -np.arange(1000)[:, None] % 200 - 1
    sequence.queries[...] = 0
    sequence.queries[..., 0] = 1
    got = run(sequence, 1200, scale=256.0)
    best = np.maximum.accumulate(sequence.keys[:, :, 0], axis=0)
    first = np.array([np.searchsorted(best[:, 0], best[t, 0]) for t in range(1200)])
    assert_same_bits(got, np.repeat(sequence.values[first], 2, axis=1))


def error_bound(sequence: Sequence, num_queries: int, window: int | None, scale: float) -> np.ndarray:
    """How far a result may be from the float64 evaluation.

    A score is a sum of D products and a multiplication: D + 1 roundings, two for each product where the sum
    is not fused. Its weight then is e^(score - largest), where the difference is rounded; it is multiplied by
    a factor e^x at most once for each later block of its segment and twice for each segment, where the
    rounded x add up to no more than the range of scores. A weight is added to the sums with a rounding for
    each position. The sums of weights have the same error as those of values, so that it counts twice.
    """
    length, dim = len(sequence.keys), sequence.keys.shape[2]
    group = sequence.queries.shape[1] // sequence.keys.shape[1]
    result = np.zeros((num_queries, *sequence.queries.shape[1:]))
    keys, values = (np.repeat(each.astype(np.float64), group, axis=1) for each in sequence[1:3])
    for t in range(num_queries):
        position = length - num_queries + t
        seen = slice(0 if window is None else max(0, position + 1 - window), position + 1)
        query = sequence.queries[position].astype(np.float64)
        scores = scale * np.einsum("hd,nhd->nh", query, keys[seen])
        magnitudes = scale * np.einsum("hd,nhd->nh", abs(query), abs(keys[seen]))
        weights = np.exp(scores - scores.max(axis=0))
        weights /= weights.sum(axis=0)
        count = position + 1 - seen.start
        factors = min(count // BLOCK, SEGMENT // BLOCK) + 2 * (count // SEGMENT + 2) + 1
        relative = 2 * (dim + 2) * UNIT * magnitudes.max(axis=0)
        relative += 2 * UNIT * np.ptp(scores, axis=0)
        relative += factors * (EXP_ERROR + 2 * UNIT) + 2 * count * UNIT
        sums = np.einsum("nh,nhd->hd", weights, abs(values[seen]))
        result[t] = 2 * 1.01 * relative[:, None] * sums + UNIT * sums  # 1.01: products of errors
    return result


@pytest.mark.parametrize("dtype", CACHE_DTYPES)
@pytest.mark.parametrize(("length", "num_queries"), LENGTHS)
@pytest.mark.parametrize("window", [None, 70])
def test_random_numbers_within_the_bound(
    isa: str, rng: np.random.Generator, dtype: CacheDtype, length: int, num_queries: int, window: int | None
) -> None:
    for heads in HEADS:
        sequence = draw(rng, heads, length, dtype)
        sinks = rng.standard_normal(heads.num_heads, np.float32)
        for scale in (heads.head_dim**-0.5, 3.0):
            for each in (None, sinks):
                options: dict[str, Any] = {"scale": scale, "sliding_window": window, "sinks": each}
                got = run(sequence, num_queries, **options)
                exact = expected(sequence, num_queries, dtype=np.float64, **options)
                assert (abs(got - exact) <= error_bound(sequence, num_queries, window, scale)).all()


def test_keys_and_values_are_rounded_once(isa: str, rng: np.random.Generator) -> None:
    wide = draw(rng, Heads(2, 1, 20), 100, "float32")
    rounded = [reference.round_bfloat16(each) for each in (wide.keys, wide.values)]
    assert_same_bits(
        run(wide._replace(dtype="bfloat16"), 7, scale=0.3),
        run(Sequence(wide.queries, *rounded, "float32"), 7, scale=0.3),
    )


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_inputs_count_as_float32(isa: str, rng: np.random.Generator, dtype: Any) -> None:
    sequence = draw(rng, Heads(2, 1, 20), 10, "float32")
    narrow = [each.astype(dtype) for each in sequence[:3]]
    cache = mx.KVCache(1, 20, dtype="float32")
    cache.append(*narrow[1:])
    widened = Sequence(*(each.astype(np.float32) for each in narrow), "float32")
    assert_same_bits(mx.attention(narrow[0][-3:], cache, scale=1.0), run(widened, 3, scale=1.0))


def test_any_strides(isa: str, rng: np.random.Generator) -> None:
    sequence = draw(rng, Heads(4, 2, 24), 90, "float32")
    cache = mx.KVCache(2, 24, dtype="float32")
    cache.append(np.asfortranarray(sequence.keys), sequence.values[:, ::-1][:, ::-1])
    queries = np.asfortranarray(sequence.queries[-9:])
    assert_same_bits(mx.attention(queries, cache, scale=1.0), run(sequence, 9, scale=1.0))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", CACHE_DTYPES)
def test_nonfinite_numbers_reach_those_that_see_them(
    isa: str, rng: np.random.Generator, bad: float, dtype: CacheDtype
) -> None:
    heads = Heads(4, 2, 16)
    clean = draw(rng, heads, 600, dtype)
    window = 100
    options: dict[str, Any] = {"scale": 0.25, "sliding_window": window}
    expected_bits = run(clean, 600, **options)
    for field, place in (("queries", 130), ("keys", 70), ("values", 555)):
        dirty = clean._replace(**{field: getattr(clean, field).copy()})
        getattr(dirty, field)[place, 0, 3] = bad
        got = run(dirty, 600, **options)
        reach = place + 1 if field == "queries" else place + window
        touched = np.zeros(got.shape, bool)
        touched[place:reach, : 1 if field == "queries" else 2] = (
            True  # a head of keys has two heads of queries
        )
        assert_same_bits(np.where(touched, 0, got), np.where(touched, 0, expected_bits).astype(np.float32))
        if np.isnan(bad):
            hit = got[place:reach, 0, 3] if field == "values" else got[place:reach, 0]
            assert np.isnan(hit).all()


def test_scores_of_minus_infinity_weigh_nothing(isa: str, rng: np.random.Generator) -> None:
    """Also where all of the first blocks have them; where there is nothing else the result is NaN."""
    sequence = draw(rng, Heads(1, 1, 16), 700, "float32")
    sequence.keys[:650] = 0
    sequence.keys[:650, :, 0] = -np.inf
    sequence.queries[...] = abs(sequence.queries)
    got = run(sequence, 700, scale=1.0)
    assert np.isnan(got[:650]).all()
    last = Sequence(sequence.queries, sequence.keys[650:], sequence.values[650:], "float32")
    exact = expected(last, 50, scale=1.0, dtype=np.float64)
    assert (abs(got[650:] - exact) <= error_bound(last, 50, None, 1.0)).all()
    with_sink = run(sequence, 700, scale=1.0, sinks=np.zeros(1, np.float32))
    assert (with_sink[:650] == 0).all()


def test_nothing_to_compute() -> None:
    cache = mx.KVCache(2, 8)
    assert mx.attention(np.zeros((0, 4, 8), np.float32), cache, scale=1.0).shape == (0, 4, 8)
    assert mx.attention([], [], scale=1.0) == []
    cache.append(np.zeros((0, 2, 8), np.float32), np.zeros((0, 2, 8), np.float32))
    assert len(cache) == 0
    assert cache
