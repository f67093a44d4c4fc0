"""Wrong calls of a model are refused by name, and whatever is raised leaves caches as they were."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import whole_models

import mxfp4moe as mx
from mxfp4moe.self_attention.cache import Room


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def lm(root: Path) -> mx.CausalLM:
    return whole_models.open_model("qwen3_moe", root)


@pytest.mark.parametrize(
    ("input_ids", "error", "match"),
    [
        ([], ValueError, "input_ids: expected at least one token id, got none"),
        (np.zeros((2, 0), np.int64), ValueError, r"input_ids\[0\]: expected at least one token id"),
        (np.zeros((0, 2), np.int64), ValueError, "input_ids: expected at least one sequence"),
        ([[1, 2], []], ValueError, r"input_ids\[1\]: expected at least one token id"),
        ([1, 97], ValueError, r"input_ids: expected ids in \[0, 96\], got 97 at position 1"),
        ([[1], [5, -1]], ValueError, r"input_ids\[1\]: expected ids in \[0, 96\], got -1 at position 1"),
        (np.array([2**64 - 1], np.uint64), ValueError, "got 18446744073709551615 at position 0"),
        ([0.5], TypeError, "input_ids: expected an array of integers"),
        ("abc", TypeError, "input_ids: expected an array of integers"),
        (3, ValueError, "input_ids: expected token ids with one axis"),
        (np.zeros((1, 1, 1), np.int64), ValueError, "input_ids: expected token ids with one axis"),
        ([[1], 2], ValueError, "input_ids: expected a list of sequences of ids"),
        ([True], TypeError, "input_ids: expected an array of integers"),
        (np.ones(257, np.int64), ValueError, "input_ids: expected at most 256 tokens, the context of the"),
    ],
)
def test_wrong_ids(lm: mx.CausalLM, input_ids: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        lm(input_ids)
    with pytest.raises(error, match=match):
        lm.generate(input_ids, max_new_tokens=1)


def test_wrong_caches(lm: mx.CausalLM, root: Path) -> None:
    cache = lm.new_cache()
    lm(np.ones(250, np.int64), cache)
    with pytest.raises(ValueError, match="input_ids: expected at most 256 tokens.*, got 7 after 250 in the"):
        lm([1] * 7, cache)
    with pytest.raises(ValueError, match="max_new_tokens: expected at most 1 after 255 tokens"):
        lm.generate([1] * 5, max_new_tokens=2, cache=cache)
    assert len(cache) == 250
    with pytest.raises(TypeError, match="cache: expected what new_cache\\(\\) of this model returns, got"):
        lm([1], [cache])
    with pytest.raises(TypeError, match="cache: expected a list with a cache for each sequence"):
        lm([[1], [2]], cache)
    with pytest.raises(ValueError, match="cache: expected 2 caches, one for each sequence, got 1"):
        lm([[1], [2]], [cache])
    with pytest.raises(ValueError, match="cache: expected a cache of its own for each sequence"):
        lm([[1], [2]], [cache, cache])
    with pytest.raises(ValueError, match="cache: expected caches of one dtype, got bfloat16 and float32"):
        lm([[1], [2]], [cache, lm.new_cache(dtype="bfloat16")])
    other = whole_models.open_model("mixtral", root).new_cache()
    with pytest.raises(ValueError, match="cache: expected a cache of 3 layers with 2 heads of 16, got 2"):
        lm([1], other)
    with pytest.raises(ValueError, match="dtype: expected 'float32' or 'bfloat16', got 'float16'"):
        lm.new_cache(dtype="float16")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="last_only: expected a bool, got 1"):
        lm([1], last_only=1)  # type: ignore[arg-type]


def test_truncate(lm: mx.CausalLM) -> None:
    cache = lm.new_cache()
    lm([1, 2, 3], cache)
    for length, error in ((4, ValueError), (-1, ValueError), (0.5, TypeError)):
        with pytest.raises(error, match="length: expected an integer"):
            cache.truncate(length)  # type: ignore[arg-type]
    assert len(cache) == 3
    cache.truncate(0)
    assert len(cache) == 0
    assert cache
    assert np.array_equal(lm([1, 2], cache), lm([1, 2]))


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("call", [0, 1, 2, 5, 8, 9])
def test_caches_are_restored(
    lm: mx.CausalLM, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], call: int
) -> None:
    """Whichever layer fails, all layers have afterwards what they had before."""
    ids = whole_models.input_ids("qwen3_moe")[0]
    caches = [lm.new_cache(), lm.new_cache()]
    lm([ids[:5], ids[:2]], caches)
    copies = [cache.copy() for cache in caches]
    calls = iter(range(100))

    def failing(room: Room) -> None:
        if next(calls) == call:
            raise error
        commit(room)

    commit = Room.commit
    monkeypatch.setattr("mxfp4moe.model.causal_lm._STEP_TOKENS", 7)  # so that a second step fails as well
    with monkeypatch.context() as patch:
        patch.setattr(Room, "commit", failing)
        with pytest.raises(error):
            lm([ids[5:14], ids[2:9]], caches)
    assert [{len(layer) for layer in cache.layers} for cache in caches] == [{5}, {2}]
    results = lm([ids[5:14], ids[2:9]], caches)
    expected = lm([ids[5:14], ids[2:9]], copies)
    assert all(map(np.array_equal, results, expected))


def test_generating_is_interrupted(lm: mx.CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, ids = lm.new_cache(), []
    tokens = lm.generate([5, 6], max_new_tokens=20, cache=cache, stop=())
    ids = [next(tokens) for _ in range(3)]
    tokens.close()
    assert len(cache) == 4
    rest = list(lm.generate(ids[-1:], max_new_tokens=5, cache=cache, stop=()))
    assert ids + rest == list(lm.generate([5, 6], max_new_tokens=8, stop=()))


def test_python_threads(lm: mx.CausalLM) -> None:
    """One model may be called from several threads, each with caches of its own."""
    ids = whole_models.input_ids("qwen3_moe")
    expected, results = lm(ids), {}

    def work(number: int) -> None:
        cache = lm.new_cache()
        results[number] = np.concatenate([lm(ids[number % 2, i : i + 4], cache) for i in range(0, 24, 4)])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(results[i], expected[i % 2]) for i in range(4))


def test_attributes(lm: mx.CausalLM, root: Path) -> None:
    assert (lm.model_type, lm.num_layers, lm.hidden_size, lm.vocab_size) == ("qwen3_moe", 3, 64, 97)
    assert (lm.max_positions, lm.end_ids) == (256, (2,))
    size = sum(array.nbytes for array in whole_models.load("qwen3_moe").tensors.values())
    assert 0.9 * size < lm.nbytes < 1.5 * size  # packed rows are padded
    assert repr(lm).startswith(f"CausalLM('{root / 'qwen3_moe'}', qwen3_moe, 3 layers, hidden_size=64")
    assert repr(lm.new_cache()) == "ModelCache(0 tokens, 3 layers)"
    with pytest.raises(TypeError, match="CausalLM: expected to be made by from_checkpoint"):
        mx.CausalLM()
