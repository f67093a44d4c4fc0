"""How often each expert of a layer is chosen."""

from __future__ import annotations

from threading import Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mxfp4moe.experts.budget import CacheStatistics


class _Counts(NamedTuple):
    tokens: int
    slots: NDArray[np.int64]


class LoadStatistics(_Counts):
    """What a layer has been asked for: a tuple of `tokens` and `slots`.

    Attributes
    ----------
    tokens : int
        How many tokens it was called with.
    slots : ndarray of shape (num_experts,), int64
        How often each expert was chosen.
    cache : CacheStatistics or None
        Of a layer with a limit of memory: how often experts were in memory, and what was read. No element of
        the tuple.
    """

    cache: CacheStatistics | None = None


class LoadCounter:
    """Counts the slots of each of `num_experts` experts; several threads may count."""

    __slots__ = ("_lock", "_slots", "_tokens")

    def __init__(self, num_experts: int) -> None:
        self._lock, self._tokens = Lock(), 0
        self._slots = np.zeros(num_experts, np.int64)

    def count(self, ids: NDArray[np.int32]) -> None:
        """Count the slots of tokens; ids that are not those of experts are left out."""
        # The id -1 of dropped slots is counted in front, and zero experts behind.
        found = np.bincount(ids.reshape(-1) + 1, minlength=len(self._slots) + 1)
        with self._lock:
            self._tokens += len(ids)
            self._slots += found[1 : len(self._slots) + 1]

    def statistics(self, cache: CacheStatistics | None) -> LoadStatistics:
        """The counts so far."""
        with self._lock:
            result = LoadStatistics(self._tokens, self._slots.copy())
        result.cache = cache
        return result
