"""Sequences for tests of attention: queries, keys and values, and a cache that holds them."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np

import mxfp4moe as mx

CacheDtype = Literal["bfloat16", "float32"]
CACHE_DTYPES: tuple[CacheDtype, ...] = ("bfloat16", "float32")


class Heads(NamedTuple):
    """The sizes of attention."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


class Sequence(NamedTuple):
    """Queries, keys and values of all positions; keys and values as the cache holds them."""

    queries: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    dtype: CacheDtype

    def cache(self, length: int | None = None) -> mx.KVCache:
        """A cache of the first `length` positions."""
        cache = mx.KVCache(*self.keys.shape[1:], dtype=self.dtype)
        cache.append(self.keys[:length], self.values[:length])
        return cache


def draw(rng: np.random.Generator, heads: Heads, length: int, dtype: CacheDtype) -> Sequence:
    """Normal random numbers, those of the cache rounded to its dtype."""

    def normal(num_heads: int, element: Any) -> np.ndarray:
        numbers = rng.standard_normal((length, num_heads, heads.head_dim), np.float32)
        return numbers.astype(element).astype(np.float32)

    element = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    keys, values = (normal(heads.num_kv_heads, element) for _ in range(2))
    return Sequence(normal(heads.num_heads, np.float32), keys, values, dtype)
