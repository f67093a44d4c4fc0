"""Generated tokens: greedy, drawn, in batches; the arguments; caches afterwards."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import whole_models

import mxfp4moe as mx
from mxfp4moe.model import sampling
from mxfp4moe.model.sampling import Sampling

PROMPT = [5, 17, 42, 3]
UNIFORM = [0.011546754286331562, 0.20719617945673485]


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> mx.CausalLM:
    return whole_models.open_model("gpt_oss", tmp_path_factory.mktemp("models"))


def test_greedy_tokens_are_the_likeliest(isa: str, lm: mx.CausalLM) -> None:
    ids = list(PROMPT)
    for token in lm.generate(PROMPT, max_new_tokens=12, stop=()):
        assert token == int(lm(ids)[-1].argmax())
        ids.append(token)
    assert len(ids) == len(PROMPT) + 12


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 1.3, "top_p": 0.9},
        {"temperature": 1.0, "top_k": 5, "seed": 3},
        {"temperature": 2.0, "min_p": 0.05, "top_k": 50, "top_p": 0.99, "seed": 2**64 - 1},
    ],
)
def test_same_tokens_in_any_batch(isa: str, lm: mx.CausalLM, options: dict[str, Any]) -> None:
    prompts = [PROMPT, [1], [7, 8, 9, 10, 11, 12, 13]]
    alone = [list(lm.generate(p, max_new_tokens=9, stop=(), num_threads=1, **options)) for p in prompts]
    for order in ((0, 1, 2), (2, 0), (1, 2, 0)):
        batch = [prompts[i] for i in order]
        steps = list(lm.generate(batch, max_new_tokens=9, stop=(), num_threads=2, **options))
        assert [list(column) for column in zip(*steps, strict=True)] == [alone[i] for i in order]


def test_a_seed_for_each_sequence(lm: mx.CausalLM) -> None:
    options: dict[str, Any] = {"max_new_tokens": 16, "temperature": 1.5, "stop": ()}
    steps = list(lm.generate([PROMPT, PROMPT], seed=[4, 5], **options))
    first, second = map(list, zip(*steps, strict=True))
    assert first == list(lm.generate(PROMPT, seed=4, **options))
    assert second == list(lm.generate(PROMPT, seed=5, **options)) != first


def test_a_text_may_be_continued(lm: mx.CausalLM) -> None:
    """Random numbers belong to positions, so that the same text comes in one piece and in two."""
    options: dict[str, Any] = {"temperature": 1.0, "seed": 9, "stop": ()}
    whole = list(lm.generate(PROMPT, max_new_tokens=10, **options))
    cache = lm.new_cache()
    first = list(lm.generate(PROMPT, max_new_tokens=4, cache=cache, **options))
    assert len(cache) == len(PROMPT) + 3
    second = list(lm.generate(first[-1:], max_new_tokens=6, cache=cache, **options))
    assert first + second == whole


def test_stop(lm: mx.CausalLM) -> None:
    whole = list(lm.generate(PROMPT, max_new_tokens=12, stop=()))
    token = whole[5]
    end = whole.index(token) + 1
    assert list(lm.generate(PROMPT, max_new_tokens=12, stop={token})) == whole[:end]
    steps = list(lm.generate([PROMPT, [1]], max_new_tokens=12, stop={token}))
    assert [step[0] for step in steps[:end]] == whole[:end]
    assert all(step[0] is None for step in steps[end:])
    assert lm.end_ids == (2,)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens: expected an integer of at least 1, got 0"),
        ({"max_new_tokens": 253}, ValueError, "max_new_tokens: expected at most 252 after 4 tokens"),
        ({"temperature": -1}, ValueError, r"temperature: expected a number in \[0, 1e6\], got -1"),
        ({"temperature": float("nan")}, ValueError, "temperature: expected a number in"),
        ({"top_p": 0}, ValueError, "top_p: expected a number above 0 and at most 1, got 0"),
        ({"top_k": 0}, ValueError, "top_k: expected an integer of at least 1"),
        ({"min_p": 2}, ValueError, r"min_p: expected a number in \[0, 1\], got 2"),
        ({"seed": -1}, ValueError, "seed: expected an integer in"),
        ({"seed": 0.5}, TypeError, "seed: expected an integer, got 0.5"),
        ({"seed": [1, 2]}, ValueError, "seed: expected an integer or 1 of them"),
        ({"stop": "ab"}, TypeError, "stop: expected a set of token ids, got 'ab'"),
        ({"stop": [1.5]}, TypeError, "stop: expected an integer, got 1.5"),
    ],
)
def test_wrong_arguments_at_once(
    lm: mx.CausalLM, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        lm.generate(PROMPT, **{"max_new_tokens": 3, **options})


def test_exponentials(rng: np.random.Generator) -> None:
    values = np.concatenate([-rng.random(10_000) * 708, [0.0, -1e-300, -708.0]])
    result, expected = sampling.exp(values), np.array([math.exp(value) for value in values])
    # Two units in the last place, and one of the C library's own.
    assert (abs(result - expected) <= 3 * np.spacing(expected)).all()
    assert result[-3] == 1


def test_random_numbers_are_known() -> None:
    """They never change, or old seeds would give other texts."""
    assert [sampling.uniform(0, 0), sampling.uniform(7, 100)] == pytest.approx(UNIFORM, abs=0)
    numbers = np.array([sampling.uniform(1, i) for i in range(2000)])
    assert 0 <= numbers.min() < numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 5 * (1 / 12 / 2000) ** 0.5  # five standard deviations


def drawn(options: dict[str, Any], logits: np.ndarray, count: int = 4000) -> np.ndarray:
    chooser = Sampling(**options)
    ids = [chooser.choose(logits, 5, i) for i in range(count)]
    return np.bincount(ids, minlength=len(logits)) / count


def test_draws_follow_the_probabilities(rng: np.random.Generator) -> None:
    logits = rng.standard_normal(12).astype(np.float32)
    for temperature in (0.5, 1.0, 3.0):
        expected = np.exp(logits / temperature - np.max(logits / temperature), dtype=np.float64)
        expected /= expected.sum()
        deviation = np.sqrt(expected * (1 - expected) / 4000)
        assert (abs(drawn({"temperature": temperature}, logits) - expected) <= 5 * deviation + 1e-3).all()


def test_what_may_be_drawn() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.05, 0.25, 0.2])).astype(np.float32)

    def ids(**options: Any) -> set[int]:
        return set(np.flatnonzero(drawn({"temperature": 1.0, **options}, logits, 500)).tolist())

    assert ids() == {0, 1, 2, 3, 4}
    assert ids(top_k=2) == {1, 3}
    assert ids(top_p=0.6) == {1, 3}
    assert ids(top_p=0.3) == {1}
    assert ids(min_p=0.3) == {1, 3, 4}
    assert ids(min_p=1.0) == {1}
    assert ids(top_k=3, top_p=0.5) == {1, 3}  # of what the three have together


def test_equal_logits_go_to_the_lower_id() -> None:
    logits = np.zeros(1000, np.float32)
    assert Sampling().choose(logits, 0, 0) == 0
    assert {Sampling(1.0, top_k=3).choose(logits, 0, i) for i in range(99)} == {0, 1, 2}
    for temperature in (1e-300, 5e-324):  # as good as none
        assert Sampling(temperature).choose(np.float32([1, 3, 2]), 0, 0) == 1
    assert Sampling(1e6).choose(np.float32([-np.inf, 0, -np.inf]), 0, 0) == 1
    with pytest.raises(ValueError, match="logits: expected numbers, got nan at position 3"):
        Sampling(1.0).choose(np.full(3, np.nan, np.float32), 0, 3)
