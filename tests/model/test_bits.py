"""The bits of logits: whatever else is in the batch, however prompts are cut, with or without a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import whole_models

import mxfp4moe as mx

CASES = 30  # of each type and kernel table


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def same(a: Any, b: Any) -> bool:
    return np.array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32))


class Walk:
    """A sequence that is computed in random pieces, each of which must have the bits of the whole."""

    def __init__(self, lm: mx.CausalLM, ids: np.ndarray, logits: np.ndarray) -> None:
        self.ids, self.logits, self.cache = ids, logits, lm.new_cache()

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """The next piece; now and then the cache is copied or cut before."""
        if rng.random() < 0.3:
            old, self.cache = self.cache, self.cache.copy()
            old.truncate(0)  # which the copy must not notice
        if rng.random() < 0.3 or len(self.cache) == len(self.ids):
            self.cache.truncate(int(rng.integers(len(self.cache) + 1)) % len(self.ids))
        begin = len(self.cache)
        return self.ids[begin : begin + 1 + int(rng.integers(len(self.ids) - begin))]


@pytest.mark.parametrize("name", whole_models.NAMES)
def test_logits_have_the_same_bits(isa: str, rng: np.random.Generator, root: Path, name: str) -> None:
    lm = whole_models.open_model(name, root)
    sequences = [*whole_models.input_ids(name), rng.integers(0, lm.vocab_size, 9)]
    wholes = [lm(ids, num_threads=1) for ids in sequences]
    walks = [Walk(lm, sequences[i], wholes[i]) for i in rng.integers(len(sequences), size=4)]
    for _ in range(CASES if "model" not in isa else 3):
        batch = [walks[i] for i in rng.permutation(len(walks))[: 1 + rng.integers(len(walks))]]
        pieces = [walk.draw(rng) for walk in batch]
        begins = [len(walk.cache) for walk in batch]
        threads, last_only = int(rng.integers(1, 4)), bool(rng.random() < 0.3)
        results = lm(pieces, [walk.cache for walk in batch], last_only=last_only, num_threads=threads)
        for walk, piece, begin, result in zip(batch, pieces, begins, results, strict=True):
            end = begin + len(piece)
            assert len(walk.cache) == end
            assert same(result, walk.logits[end - 1 : end] if last_only else walk.logits[begin:end])


@pytest.mark.parametrize("name", whole_models.NAMES)
def test_forms_of_a_batch(root: Path, name: str) -> None:
    lm, ids = whole_models.open_model(name, root), np.tile(whole_models.input_ids(name)[:1], (2, 1))
    ids[1] = ids[1, ::-1]
    logits = lm(ids)
    assert logits.shape == (*ids.shape, lm.vocab_size)
    assert same(np.stack(lm(list(ids))), logits)
    assert same(lm(ids[1].tolist()), logits[1])
    assert same(lm(ids, last_only=True), logits[:, -1:])
    assert same(lm(ids.astype(np.uint16)), logits)


def test_long_prompts_are_cut_inside(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mxfp4moe.model import causal_lm

    lm, ids = whole_models.open_model("gpt_oss", root), whole_models.input_ids("gpt_oss")
    whole = lm(ids)
    for most in (1, 5, 24, 47):
        monkeypatch.setattr(causal_lm, "_STEP_TOKENS", most)
        assert same(lm(ids), whole)
        assert same(lm(ids, last_only=True), whole[:, -1:])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_caches_of_both_dtypes(isa: str, root: Path, dtype: Any) -> None:
    lm, ids = whole_models.open_model("mixtral", root), whole_models.input_ids("mixtral")[0]
    whole = lm(ids, lm.new_cache(dtype=dtype))
    cache = lm.new_cache(dtype=dtype)
    pieces = [lm(part, cache) for part in np.split(ids, [1, 2, 17])]
    assert same(np.concatenate(pieces), whole)
    assert same(whole, lm(ids)) == (dtype == "float32")
