"""The experts of a layer that is larger than memory, by their ids: read ahead, kept and let go on request."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import value_error
from mxfp4moe.experts.budget import CacheStatistics, FileExperts, in_background, start_load
from mxfp4moe.experts.packed_experts import PackedExperts
from mxfp4moe.experts.selection import ExpertIds, check_expert_ids


class ExpertCache:
    """The experts of a layer of which a part is in memory at a time; `MoELayer.expert_cache` has it.

    The layers that were opened together share one limit. An expert that a call needs and that is not in
    memory is read, and the experts that were not used for the longest time make room for it. Nothing of this
    changes results. Several threads may call all of it.

    Attributes
    ----------
    memory_limit : int
        The bytes that the experts of all layers may take, in whole pages.
    resident_bytes : int
        The bytes of the experts of all layers that are in memory.
    expert_bytes : int
        The bytes of an expert of this layer.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> w13 = mx.quantize_mxfp4(np.ones((4, 2 * 32, 64), np.float32))
    >>> w2 = mx.quantize_mxfp4(np.ones((4, 64, 32), np.float32))
    >>> layer = mx.MoELayer(mx.pack_experts(*w13, *w2), np.eye(4, 64, dtype=np.float32), top_k=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     layer.save(f"{folder}/layer.packed")
    ...     layer = mx.MoELayer.open(f"{folder}/layer.packed", memory_limit=100_000)
    >>> result = layer(np.arange(64, dtype=np.float32))
    >>> layer.expert_cache.resident_ids, layer.expert_cache.statistics().misses
    ([2, 3], 2)
    >>> layer.expert_cache.pin([0])
    >>> layer.expert_cache.evict()
    >>> layer.expert_cache.resident_ids
    [0]
    >>> layer.expert_cache.unpin([0])
    >>> layer.expert_cache.prefetch([1])
    """

    __slots__ = ("_experts", "_places")

    def __init__(self, experts: FileExperts, places: NDArray[np.int32]) -> None:
        self._experts = experts
        self._places = places
        """Where each expert of the layer is in the file; -1 for those that are not held."""

    @property
    def memory_limit(self) -> int:
        """The bytes that the experts of all layers may take.

        Returns
        -------
        int
        """
        return self._experts.budget.limit

    @property
    def resident_bytes(self) -> int:
        """The bytes of the experts of all layers that are in memory.

        Returns
        -------
        int
        """
        return self._experts.budget.resident_bytes

    @property
    def expert_bytes(self) -> int:
        """The bytes of an expert of this layer, in whole pages.

        Returns
        -------
        int
        """
        return self._experts.expert_bytes

    @property
    def resident_ids(self) -> list[int]:
        """The ids of the experts of this layer that are in memory, or on their way to it.

        Returns
        -------
        list of int
        """
        resident = self._experts.budget.resident(self._experts)
        return [i for i, place in enumerate(self._places.tolist()) if place in resident]

    def prefetch(self, ids: ExpertIds) -> None:
        """Begin to read experts that will be needed, and wait for nothing.

        Experts that others, pinned or in use, leave no room for are left out.

        Parameters
        ----------
        ids : range or iterable of int
            Of experts that this layer holds.

        Raises
        ------
        TypeError, ValueError
            An id is not that of such an expert, or is there twice.
        """
        start_load(self._experts, self._checked(ids))

    def pin(self, ids: ExpertIds) -> None:
        """Read experts, and keep them in memory until `unpin`.

        Parameters
        ----------
        ids : range or iterable of int
            As for `prefetch`.

        Raises
        ------
        TypeError, ValueError
            As for `prefetch`; also if what is left of `memory_limit` would be less than a token needs.
        """
        self._experts.budget.pin(self._experts, self._checked(ids))

    def unpin(self, ids: ExpertIds) -> None:
        """Let experts that were pinned go when others need the memory.

        Parameters
        ----------
        ids : range or iterable of int
            As for `prefetch`; those that are not pinned stay as they are.

        Raises
        ------
        TypeError, ValueError
            As for `prefetch`.
        """
        self._experts.budget.unpin(self._experts, self._checked(ids))

    def evict(self, ids: ExpertIds | None = None) -> None:
        """Give back the memory of experts, but for those that are pinned or that a call is using.

        Parameters
        ----------
        ids : range or iterable of int, optional
            As for `prefetch`; all of the layer if not given.

        Raises
        ------
        TypeError, ValueError
            As for `prefetch`.
        """
        places = self._places[self._places >= 0].tolist() if ids is None else self._checked(ids)
        self._experts.budget.evict(self._experts, places)

    def statistics(self) -> CacheStatistics:
        """Return how often experts of this layer were in memory, and what was read.

        Returns
        -------
        CacheStatistics
            A tuple of `hits`, `misses`, `prefetched`, `bytes_read` and `resident_bytes`, with a `hit_rate`.
        """
        return self._experts.budget.statistics(self._experts)

    def _checked(self, ids: ExpertIds) -> list[int]:
        """The places of experts in the file."""
        checked = check_expert_ids("ids", ids, len(self._places))
        places = self._places[checked]
        if (places < 0).any():
            raise value_error("ids", "experts that this slice holds", str(checked[places < 0][0]))
        result: list[int] = places.tolist()
        return result


def prefetch_likely(cache: ExpertCache, choose: Callable[[], NDArray[np.int32] | None]) -> None:
    """Let a thread find out which experts are likely to be needed, and begin to read them."""
    experts, held = cache._experts, cache._places

    def work() -> None:
        ids = choose()
        if ids is not None:
            places = held[np.unique(ids[(ids >= 0) & (ids < len(held))])]
            experts.budget.load(experts, experts.budget.prefetch(experts, places[places >= 0].tolist()))

    if experts.num_resident < experts.num_experts:
        in_background(work)


def cache_of(experts: PackedExperts, expert_map: NDArray[np.int32] | None) -> ExpertCache | None:
    """What keeps the experts of a layer within a limit of memory; None if there is no limit."""
    cached, places = experts._cached, experts._places
    if cached is None:
        return None
    if places is None:
        places = np.arange(cached.num_experts, dtype=np.int32)
    return ExpertCache(cached, places if expert_map is None else np.append(places, np.int32(-1))[expert_map])
