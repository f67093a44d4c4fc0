"""The fused experts of a layer that is larger than memory.

Where a call needs more experts than there is room for, it computes some at a time, in the order in which the
terms of a token are added, so that the bits are those of one call with all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import cast
from mxfp4moe.experts.budget import FileExperts, start_load

_TERM_BYTES = 32 << 20  # the most that float32 terms of some tokens take at a time

_Slots = tuple[NDArray[np.float32], NDArray[np.int32]]
RunExperts = Callable[[NDArray[Any], _Slots, NDArray[Any], bool], None]
"""Takes hidden states, weights and ids, and writes the sums of the tokens, or the term of each slot."""


def run_cached(
    run: RunExperts,
    experts: tuple[FileExperts, NDArray[np.int32] | None],
    call: tuple[NDArray[Any], _Slots],
    out: NDArray[Any],
    combine: bool,
) -> None:
    """Call `run` with the experts of its slots in memory, and write what it would write of all.

    `experts` also says where each one is in the file, if that is not its id. `out` may be the hidden states
    of the call.
    """
    (cached, places), (rows, slots) = experts, call
    needed = np.unique(slots[1][slots[1] >= 0])
    files = (needed if places is None else places[needed]).tolist()
    with cached.budget.hold(cached, files) as count:
        if count == len(files):
            run(rows, slots, out, combine)
            return
    total = np.zeros(rows.shape, np.float32)
    if not combine:
        out[...] = 0
    by_slot = out.reshape(*slots[1].shape, -1) if not combine else None
    done = 0
    while done < len(files):
        with cached.budget.hold(cached, files[done:]) as count:
            start_load(cached, files[done + count :])
            group = needed[done : done + count]
            for tokens, order, terms in _terms_of_group(run, rows, slots, group):
                if by_slot is not None:
                    by_slot[tokens[:, None], order] += terms  # zeros so far, or zeros of other groups
                else:
                    total[tokens] = _added(total[tokens], terms)
        done += count
    if combine:
        out[...] = cast(total, out.dtype)


def _terms_of_group(
    run: RunExperts, rows: NDArray[Any], slots: _Slots, group: NDArray[np.int32]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
    """Yields some tokens at a time: which they are, their slots with an expert of the group, and their terms.

    The slots of a token are in ascending order of their experts. Where it has fewer than others, other slots
    follow, whose terms are zeros.
    """
    weights, ids = slots
    is_here = (ids >= group[0]) & (ids <= group[-1])
    members = np.flatnonzero(is_here.any(axis=1))
    step = max(1, _TERM_BYTES // (4 * rows.shape[1] * ids.shape[1]))
    for first in range(0, len(members), step):
        tokens = members[first : first + step]
        here = is_here[tokens]
        sorting = np.where(here, ids[tokens], np.iinfo(np.int32).max)
        order = np.argsort(sorting, axis=1, kind="stable")[:, : here.sum(axis=1).max()]
        given = np.take_along_axis(np.where(here, ids[tokens], np.int32(-1)), order, axis=1)
        terms = np.empty((given.size, rows.shape[1]), np.float32)
        run(rows[tokens], (np.take_along_axis(weights[tokens], order, axis=1), given), terms, False)
        yield tokens, order, terms.reshape(*given.shape, -1)


def _added(total: NDArray[np.float32], terms: NDArray[np.float32]) -> NDArray[np.float32]:
    """Add terms slot by slot. Overflow and NaN are for the caller to find in the result."""
    with np.errstate(over="ignore", invalid="ignore"):
        for slot in range(terms.shape[1]):
            total += terms[:, slot]
    return total
