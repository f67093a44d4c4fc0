"""Experts of packed files that stay within a budget of memory: which of them are there is decided here.

The weights are mapped, and what a mapped page holds never changes: an expert that is not in memory is read by
the first that touches it. So all of this is about where memory goes and when files are read, never about
numbers.
"""

from __future__ import annotations

import mmap
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Condition, Thread
from typing import NamedTuple
from weakref import WeakSet

import numpy as np

from mxfp4moe import _unix
from mxfp4moe._arguments import value_error
from mxfp4moe._file_bytes import FilePages


class CacheStatistics(NamedTuple):
    """What the experts of a layer cost within a limit of memory.

    Attributes
    ----------
    hits, misses : int
        Of the experts that calls needed, how many were in memory or on their way to it, and how many not.
    prefetched : int
        How many were asked for before a call needed them.
    bytes_read : int
        Of the file, in whole pages.
    resident_bytes : int
        Of the experts of this layer that are in memory now.
    """

    hits: int
    misses: int
    prefetched: int
    bytes_read: int
    resident_bytes: int

    @property
    def hit_rate(self) -> float:
        """The part of the experts that calls needed which were in memory; 1 before any call."""
        needed = self.hits + self.misses
        return self.hits / needed if needed else 1.0


class _Part(NamedTuple):
    """The bytes of a part of a packed file: so many of each expert, one after another."""

    begin: int
    row_bytes: int


class FileExperts:
    """The experts of a packed file, by their places there, within a budget that other files share.

    Parameters
    ----------
    budget : MemoryBudget
    pages : FilePages
    parts : sequence of (int, int)
        Where each part begins, and how many bytes of it an expert has.
    num_experts : int
    """

    def __init__(
        self, budget: MemoryBudget, pages: FilePages, parts: Sequence[tuple[int, int]], num_experts: int
    ) -> None:
        self.budget, self.num_experts = budget, num_experts
        self._pages, self._parts = pages, [_Part(*part) for part in parts]
        self.expert_bytes = mmap.PAGESIZE * sum(self._most_pages(part) for part in self._parts)
        self.hits = self.misses = self.prefetched = self.bytes_read = self.num_resident = 0

    def _most_pages(self, part: _Part) -> int:
        """How many pages an expert has of a part, at the most; those that two share count for both."""
        begins = part.begin + part.row_bytes * np.arange(self.num_experts, dtype=np.int64)
        ends = begins + part.row_bytes
        return int((-(-ends // mmap.PAGESIZE) - begins // mmap.PAGESIZE).max(initial=1))

    def check_size(self) -> None:
        """Raise if the file has become shorter than it was."""
        self._pages.check_size()

    def request(self, places: Iterable[int]) -> None:
        """Begin to read experts, in the order in which they are in the file."""
        ordered = sorted(places)
        for begin, size in self._parts:
            for place in ordered:
                self._pages.request(begin + place * size, begin + (place + 1) * size)

    def drop(self, place: int, is_resident: Callable[[int], bool]) -> None:
        """Give back the memory of an expert, but for pages that it shares with others in memory."""
        page = mmap.PAGESIZE
        for begin, size in self._parts:
            first, last = (begin + place * size) // page, (begin + (place + 1) * size - 1) // page

            def is_shared(number: int, begin: int = begin, size: int = size) -> bool:
                low = max((number * page - begin) // size, 0)
                high = min(((number + 1) * page - 1 - begin) // size, self.num_experts - 1)
                return any(other != place and is_resident(other) for other in range(low, high + 1))

            first += is_shared(first)
            last -= last > first and is_shared(last)
            if first <= last:
                self._pages.drop(first * page, (last + 1) * page)

    def drop_all(self) -> None:
        """Give back the memory of all experts."""
        for begin, size in self._parts:
            self._pages.drop(begin, begin + size * self.num_experts)


_Key = tuple[FileExperts, int]
"""An expert."""


class MemoryBudget:
    """Keeps the experts of several files within a number of bytes: the least recently used go first.

    Parameters
    ----------
    limit : int
        The bytes that experts may take, in whole pages.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._resident: OrderedDict[_Key, None] = OrderedDict()
        """The least recently used one first."""
        self._resident_bytes = 0
        self._holds: Counter[_Key] = Counter()
        """How many calls use an expert, or wait for it, and so keep it."""
        self._pinned: set[_Key] = set()
        self._least = 0
        self._changed = Condition()
        _budgets.add(self)

    def _forget_threads(self) -> None:
        """In a child of fork: calls of other threads are none of this process, nor are their locks."""
        self._changed = Condition()
        self._holds.clear()

    @property
    def resident_bytes(self) -> int:
        """The bytes of the experts that are in memory."""
        return self._resident_bytes

    def add(self, experts: FileExperts, top_k: int) -> None:
        """Take in a file whose experts have been added to nothing yet; a token needs `top_k` of them."""
        least = experts.expert_bytes * min(top_k, experts.num_experts)
        if least > self.limit:
            expected = f"at least {least} bytes, as the experts of a token have"
            raise value_error("memory_limit", expected, str(self.limit))
        with self._changed:
            self._least = max(self._least, least)
        experts.drop_all()

    def statistics(self, experts: FileExperts) -> CacheStatistics:
        """The counts of a file so far."""
        with self._changed:
            counts = experts.hits, experts.misses, experts.prefetched, experts.bytes_read
            return CacheStatistics(*counts, experts.num_resident * experts.expert_bytes)

    def resident(self, experts: FileExperts) -> set[int]:
        """The places of the experts of a file that are in memory."""
        with self._changed:
            return {place for other, place in self._resident if other is experts}

    @contextmanager
    def hold(self, experts: FileExperts, places: Sequence[int]) -> Iterator[int]:
        """Keep the first of these experts in memory, as many as there is room for; gives how many."""
        with self._changed:
            while not self._has_room(keys := self._first_that_fit(experts, places)):
                self._changed.wait()
            missing = self._enter(keys)
            experts.misses += len(missing)
            experts.hits += len(keys) - len(missing)
        try:
            experts.check_size()
            experts.request(missing)
            yield len(keys)
        finally:
            self._release(keys)

    def prefetch(self, experts: FileExperts, places: Iterable[int]) -> list[int]:
        """Make room for as many of these experts as others can make room for; returns those to `load`."""
        with self._changed:
            keys: list[_Key] = []
            for place in places:
                if (key := (experts, place)) in self._resident:
                    self._resident.move_to_end(key)
                elif self._has_room([*keys, key]):
                    keys.append(key)
            experts.prefetched += len(keys)
            return self._enter(keys)

    def load(self, experts: FileExperts, places: Sequence[int]) -> None:
        """Read the experts that `prefetch` has made room for."""
        try:
            experts.request(places)
        finally:
            self._release([(experts, place) for place in places])

    def pin(self, experts: FileExperts, places: Iterable[int]) -> None:
        """Read experts and keep them until `unpin`; a ValueError if the others would not have enough."""
        with self._changed:
            keys = [(experts, place) for place in places]
            self._check_pins(keys)
            while not self._has_room(keys):
                self._changed.wait()
                self._check_pins(keys)
            self._pinned.update(keys)
            missing = self._enter(keys)
        try:
            experts.request(missing)
        finally:
            self._release(keys)

    def unpin(self, experts: FileExperts, places: Iterable[int]) -> None:
        """Let experts go when others need the memory."""
        with self._changed:
            self._pinned.difference_update((experts, place) for place in places)
            self._changed.notify_all()

    def evict(self, experts: FileExperts, places: Iterable[int]) -> None:
        """Give back the memory of experts that are neither pinned nor used by a call."""
        with self._changed:
            for key in ((experts, place) for place in places):
                if key in self._resident and not self._is_kept(key):
                    self._drop(key)

    def _check_pins(self, keys: Sequence[_Key]) -> None:
        limit, pinned = self.limit - self._least, _num_bytes(self._pinned.union(keys))
        if pinned > limit:
            expected = f"at most {limit} pinned bytes, which leaves {self._least} for the experts of a token"
            raise value_error("ids", expected, str(pinned))

    def _is_kept(self, key: _Key) -> bool:
        return key in self._holds or key in self._pinned

    def _first_that_fit(self, experts: FileExperts, places: Sequence[int]) -> list[_Key]:
        """All of the experts, if they fit beside pinned ones; else the first ones, in half of the room.

        While these are used, the next ones are read into the other half.
        """
        keys = [(experts, place) for place in places]
        room = (self.limit - _num_bytes(self._pinned)) // experts.expert_bytes
        if sum(key not in self._pinned for key in keys) <= room:
            return keys
        free, result = max(room // 2, 1), []
        for key in keys:
            free -= key not in self._pinned
            if free < 0:
                break
            result.append(key)
        return result

    def _has_room(self, keys: Sequence[_Key]) -> bool:
        """Whether these fit beside all that is pinned or used."""
        return _num_bytes(self._pinned.union(self._holds, keys)) <= self.limit

    def _enter(self, keys: Sequence[_Key]) -> list[int]:
        """Let others go, take in these, and keep them; returns the places of those that are to be read."""
        self._holds.update(keys)
        missing = [key for key in keys if key not in self._resident]
        excess = self._resident_bytes + _num_bytes(missing) - self.limit
        leaving = []
        for key in self._resident:
            if excess <= 0:
                break
            if not self._is_kept(key):
                leaving.append(key)
                excess -= key[0].expert_bytes
        for key in leaving:
            self._drop(key)
        self._resident_bytes += _num_bytes(missing)
        for key in keys:
            self._resident[key] = None
            self._resident.move_to_end(key)
        for experts, _ in missing:
            experts.bytes_read += experts.expert_bytes
            experts.num_resident += 1
        return [place for _, place in missing]

    def _drop(self, key: _Key) -> None:
        del self._resident[key]
        experts, place = key
        self._resident_bytes -= experts.expert_bytes
        experts.num_resident -= 1
        experts.drop(place, lambda other: (experts, other) in self._resident)

    def _release(self, keys: Iterable[_Key]) -> None:
        with self._changed:
            self._holds.subtract(keys)
            self._holds = +self._holds
            self._changed.notify_all()


_budgets: WeakSet[MemoryBudget] = WeakSet()


def _forget_threads() -> None:
    for budget in list(_budgets):
        budget._forget_threads()


_unix.call_in_forked_children(_forget_threads)


def _num_bytes(keys: Iterable[_Key]) -> int:
    return sum(experts.expert_bytes for experts, _ in keys)


def start_load(experts: FileExperts, places: Sequence[int]) -> None:
    """Begin to read those of these experts that there is room for."""
    budget = experts.budget
    missing = budget.prefetch(experts, places)
    if missing and not in_background(lambda: budget.load(experts, missing)):
        budget.load(experts, missing)


def in_background(work: Callable[[], None]) -> bool:
    """Let a thread of its own do a short work; whether the system has given one."""
    try:
        Thread(target=work, name="mxfp4moe-read", daemon=True).start()
    except RuntimeError:  # no thread can be made
        return False
    return True
