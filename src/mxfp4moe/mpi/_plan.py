"""Which rank computes what of the tokens of one rank: pure functions of ids and of who holds what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SLOT = np.dtype([("token", "<i4"), ("result", "<i4"), ("expert", "<i4"), ("weight", "<f4")])
"""A slot as it is sent: the rows of its token and of its result in the message, its expert and its weight."""

Ints = NDArray[np.int64]


def holder_table(held: NDArray[np.bool_], rank: int) -> NDArray[np.int32]:
    """The ranks that compute each expert for rank `rank`, token by token in turns; itself where it can.

    `held` says for each rank and each expert whether the rank has it.
    """
    most = int(held.sum(axis=0).max())
    table = np.empty((held.shape[1], most), np.int32)
    for expert, of_expert in enumerate(held.T):
        holders = [rank] if of_expert[rank] else np.roll(np.flatnonzero(of_expert), -rank)
        table[expert] = np.resize(np.asarray(holders), most)
    return table


class Messages(NamedTuple):
    """What goes to each rank, one after another; the own rank gets a message as the others do."""

    tokens: Ints
    """The row of each token in the batch; a token is there once for each rank that it goes to."""
    slots: NDArray[Any]
    counts: NDArray[np.int64]
    """How many tokens, slots and rows of results are for each rank."""


class Addends(NamedTuple):
    """The results that are added to tokens, each as number `position` in the contract's order."""

    token: Ints
    row: Ints
    position: Ints

    def add_up(self, results: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Write the sum of the results of each token to `out`."""
        out[...] = 0
        for number in range(int(self.position.max(initial=-1)) + 1):
            chosen = self.position == number
            out[self.token[chosen]] += results[self.row[chosen]]


@dataclass(frozen=True)
class Plan:
    """The messages of some tokens, and how what comes back is added up."""

    messages: Messages
    addends: Addends


def make_plan(
    weights: NDArray[np.float32], ids: NDArray[np.int32], table: NDArray[np.int32], size: int, exact: bool
) -> Plan:
    """The plan of tokens with these slots, -1 for those that are dropped.

    A token's experts are added one by one in ascending order. So of the terms that one rank computes, it can
    add up those that come first of all, and has to return the others one by one. Where sums need not be
    exact, it adds up all, and the sums of the ranks are added in their order.
    """
    token, slot = np.nonzero(ids >= 0)
    expert = ids[token, slot].astype(np.int64)
    rank = table[expert, token % table.shape[1]].astype(np.int64)
    order = np.lexsort((slot, expert, token) if exact else (slot, expert, rank, token))
    token, slot, expert, rank = token[order], slot[order], expert[order], rank[order]

    is_first = _changes(token)
    begins = np.maximum.accumulate(np.where(is_first, np.arange(len(token)), 0))
    if exact:
        others = np.cumsum(rank != rank[begins])
        opens_result = is_first | (others > others[begins])
    else:
        opens_result = is_first | _changes(rank)
    result = np.cumsum(opens_result) - 1
    of_token = result - result[begins]

    # Messages are ordered by rank, within a rank as the slots are.
    by_rank = np.argsort(rank, kind="stable")
    opens_token = _changes(token[by_rank]) | _changes(rank[by_rank])
    opened = opens_result[by_rank]
    counts = np.zeros((size, 3), np.int64)
    for column, of_column in enumerate((opens_token, np.ones(len(rank), bool), opened)):
        counts[:, column] = np.bincount(rank[by_rank][of_column], minlength=size)
    starts = np.cumsum(counts, axis=0) - counts
    row_of_result = np.empty(int(opens_result.sum()), np.int64)
    row_of_result[result[by_rank][opened]] = np.arange(len(row_of_result))

    slots = np.empty(len(rank), SLOT)
    slots["token"] = np.cumsum(opens_token) - 1 - starts[rank[by_rank], 0]
    slots["result"] = row_of_result[result[by_rank]] - starts[rank[by_rank], 2]
    slots["expert"] = expert[by_rank]
    slots["weight"] = weights[token[by_rank], slot[by_rank]]
    messages = Messages(token[by_rank][opens_token], slots, counts)
    return Plan(messages, Addends(token[opens_result], row_of_result, of_token[opens_result]))


def _changes(values: Ints) -> NDArray[np.bool_]:
    """Whether each value differs from the one before it; the first one counts as different."""
    result = np.ones(len(values), bool)
    result[1:] = values[1:] != values[:-1]
    return result


class Work(NamedTuple):
    """Slots as a call of the experts takes them: a row of slots for each result."""

    tokens: Ints
    weights: NDArray[np.float32]
    experts: Ints


def arrange_work(slots: NDArray[Any], counts: NDArray[np.int64]) -> Work:
    """The slots of the messages of several ranks, whose `counts` are as in `Messages`."""
    starts = np.cumsum(counts, axis=0) - counts
    source = np.repeat(np.arange(len(counts)), counts[:, 1])
    result = slots["result"] + starts[source, 2]
    token = slots["token"] + starts[source, 0]
    opens = _changes(result)
    firsts = np.flatnonzero(opens)
    place = np.arange(len(slots)) - np.repeat(firsts, np.diff(np.append(firsts, len(slots))))
    shape = (len(firsts), int(place.max(initial=0)) + 1)
    weights, experts = np.zeros(shape, np.float32), np.full(shape, -1, np.int64)
    weights[result, place], experts[result, place] = slots["weight"], slots["expert"]
    return Work(token[opens], weights, experts)
