"""Which experts each rank holds: pure functions of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from mxfp4moe._arguments import as_array, check_int, check_positive_int, describe, value_error

Placement = list[list[int]]


def contiguous(num_experts: int, num_ranks: int) -> Placement:
    """Give each rank experts that follow one another, as equal in number as can be.

    Parameters
    ----------
    num_experts, num_ranks : int

    Returns
    -------
    list of list of int
        The ids of each rank. Ranks beyond the number of experts hold some a second time.

    Raises
    ------
    TypeError, ValueError
        If a number is no integer of at least 1.

    Examples
    --------
    >>> from mxfp4moe.mpi import contiguous
    >>> contiguous(7, 3)
    [[0, 1], [2, 3], [4, 5, 6]]
    """
    experts, ranks = _check(num_experts, num_ranks)
    bounds = [experts * rank // ranks for rank in range(ranks + 1)]
    parts = [list(range(bounds[rank], bounds[rank + 1])) for rank in range(ranks)]
    return _without_idle_ranks(parts, experts)


def round_robin(num_experts: int, num_ranks: int) -> Placement:
    """Deal experts to ranks one by one.

    Parameters
    ----------
    num_experts, num_ranks : int

    Returns
    -------
    list of list of int
        As `contiguous`.

    Raises
    ------
    TypeError, ValueError
        If a number is no integer of at least 1.

    Examples
    --------
    >>> from mxfp4moe.mpi import round_robin
    >>> round_robin(7, 3)
    [[0, 3, 6], [1, 4], [2, 5]]
    """
    experts, ranks = _check(num_experts, num_ranks)
    return _without_idle_ranks([list(range(rank, experts, ranks)) for rank in range(ranks)], experts)


def by_load(loads: ArrayLike, num_ranks: int, *, num_replicas: int = 0) -> Placement:
    """Spread experts so that ranks have nearly equal loads, and about equal numbers of experts.

    The hottest experts come first, each to the rank with the least load that has room. Replicas, which share
    the load of an expert, go to the experts that are hottest for each holder.

    Parameters
    ----------
    loads : array of shape (num_experts,)
        For each expert how often it was chosen, such as ``layer.load_statistics().slots``, added over ranks.
    num_ranks : int
    num_replicas : int
        How many copies there are beside one of each expert, at most ``num_experts * (num_ranks - 1)``.

    Returns
    -------
    list of list of int
        As `contiguous`, each in ascending order.

    Raises
    ------
    TypeError, ValueError
        If a number is out of range, or a load is negative or not finite.

    Examples
    --------
    >>> from mxfp4moe.mpi import by_load
    >>> by_load([9, 1, 1, 9], 2)
    [[0, 1], [2, 3]]
    >>> by_load([9, 1, 1, 1], 2, num_replicas=2)
    [[0, 1, 2], [0, 1, 3]]
    """
    values = as_array("loads", loads, _LOAD_DTYPES)
    if values.ndim != 1 or not len(values):
        raise value_error("loads", "shape (num_experts,)", describe(values))
    load = values.astype(np.float64)
    if (wrong := load[~((load >= 0) & (load < np.inf))]).size:
        raise value_error("loads", "finite numbers of at least 0", str(wrong[0]))
    experts, ranks = _check(len(load), num_ranks)
    extra = check_int("num_replicas", num_replicas, 0, experts * (ranks - 1))
    copies = np.ones(experts, np.int64)
    for _ in range(extra):
        share = np.where(copies < ranks, load / copies, -1)
        copies[int(share.argmax())] += 1
    room = -(-int(copies.sum()) // ranks)
    shares = load / copies
    parts: list[set[int]] = [set() for _ in range(ranks)]
    total = np.zeros(ranks)
    # Experts with many copies have the fewest places left to go, so they come first.
    order = sorted(range(experts), key=lambda e: (-copies[e], -shares[e], e))
    for expert in order:
        for _ in range(int(copies[expert])):
            free = [r for r in range(ranks) if expert not in parts[r]]
            rank = min(free, key=lambda r: (len(parts[r]) >= room, total[r], len(parts[r]), r))
            parts[rank].add(expert)
            total[rank] += shares[expert]
    return _without_idle_ranks([sorted(part) for part in parts], experts)


_LOAD_DTYPES = tuple(map(np.dtype, ("int64", "float64", "int32", "float32", "uint64", "uint32")))


def _check(num_experts: int, num_ranks: int) -> tuple[int, int]:
    return check_positive_int("num_experts", num_experts), check_positive_int("num_ranks", num_ranks)


def _without_idle_ranks(parts: Sequence[list[int]], num_experts: int) -> Placement:
    """Each rank holds at least one expert: those that would hold none get one in turns."""
    return [part or [rank % num_experts] for rank, part in enumerate(parts)]
