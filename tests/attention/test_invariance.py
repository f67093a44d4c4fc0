"""The bits of a result depend on the positions before it alone: not on cuts, batches or threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from problems import assert_same_bits
from sequences import CACHE_DTYPES, Heads, Sequence, draw

import mxfp4moe as mx

CASES = 50  # for each kernel table


class Prompt:
    """A sequence that is computed piece by piece, with the results of one call to compare with."""

    def __init__(self, rng: np.random.Generator, heads: Heads, options: dict[str, Any]) -> None:
        length = int(rng.choice([3, 60, 64, 130, 511, 513, 1100]))
        self.rng, self.options = rng, options
        self.sequence = draw(rng, heads, length, CACHE_DTYPES[heads.head_dim % 2])
        cache = self.sequence.cache()
        self.whole = mx.attention(self.sequence.queries, cache, num_threads=1, **options)
        self.cache = mx.KVCache(*heads[1:], dtype=self.sequence.dtype)

    def next_piece(self) -> slice | None:
        """Append some positions and say which; now and then after going back, or on a copy."""
        done, length = len(self.cache), len(self.whole)
        if done == length:
            return None
        action = self.rng.integers(8)
        if action == 0 and done:
            self.cache.truncate(int(self.rng.integers(done)))
        elif action == 1:
            # The copy goes on with other numbers; what it shares with the cache stays.
            other = self.cache.copy()
            wrong = self.rng.standard_normal((int(self.rng.integers(1, 90)), *self.sequence.keys.shape[1:]))
            other.append(wrong.astype(np.float32), wrong.astype(np.float32))
        elif action == 2:
            self.cache = self.cache.copy()
        done = len(self.cache)
        count = int(self.rng.choice([1, 1, 2, 17, 64, 300]))
        piece = slice(done, min(length, done + count))
        self.cache.append(self.sequence.keys[piece], self.sequence.values[piece])
        return piece


@pytest.mark.parametrize("case", range(CASES))
def test_any_cut_any_batch_any_threads(isa: str, case: int) -> None:
    rng = np.random.default_rng([7, case])
    kv_heads, group = int(rng.integers(1, 4)), int(rng.choice([1, 2, 3, 8]))
    heads = Heads(kv_heads * group, kv_heads, int(rng.choice([8, 9, 16, 32, 49])))
    options: dict[str, Any] = {
        "scale": 0.7,
        "sliding_window": [None, 1, 33, 128, 600][rng.integers(5)],
        "sinks": None if case % 2 else rng.standard_normal(heads.num_heads, np.float32),
    }
    prompts = [Prompt(rng, heads, options) for _ in range(int(rng.integers(1, 4)))]
    while prompts:
        pieces = [(prompt, piece) for prompt in prompts if (piece := prompt.next_piece()) is not None]
        prompts = [prompt for prompt, _ in pieces]
        if not prompts:
            break
        queries = [prompt.sequence.queries[piece] for prompt, piece in pieces]
        caches = [prompt.cache for prompt in prompts]
        results = mx.attention(queries, caches, num_threads=int(rng.integers(1, 9)), **options)
        for (prompt, piece), result in zip(pieces, results, strict=True):
            assert_same_bits(result, prompt.whole[piece])


def test_a_long_context_split_among_many_threads(isa: str, rng: np.random.Generator) -> None:
    """One query has fewer heads of keys than there are threads: its segments are computed apart."""
    sequence: Sequence = draw(rng, Heads(4, 1, 64), 9 * 512 + 77, "bfloat16")
    cache = sequence.cache()
    for window in (None, 2000):
        one = mx.attention(sequence.queries[-1:], cache, scale=0.1, sliding_window=window, num_threads=1)
        for threads in (2, 5, 16):
            got = mx.attention(
                sequence.queries[-1:], cache, scale=0.1, sliding_window=window, num_threads=threads
            )
            assert_same_bits(got, one)
