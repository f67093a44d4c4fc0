"""Experts of which each rank computes some rows, for the tokens of all ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import cast
from mxfp4moe.experts.fused import ExpertOptions, Slots
from mxfp4moe.experts.packed_experts import PackedExperts
from mxfp4moe.layer_sum import Floats
from mxfp4moe.mpi._channel import Channel
from mxfp4moe.mpi._collective import Collective, cut
from mxfp4moe.mpi._cut_experts import PANEL, CutExperts, Order

_SLOT = np.dtype([("expert", "<i4"), ("weight", "<f4")])


@dataclass
class _Chunk:
    """Some tokens of each rank."""

    part: slice
    """Which tokens are of this rank."""
    counts: NDArray[np.int64]
    """How many there are of each rank."""
    tokens: NDArray[Any] = field(init=False)
    slots: NDArray[Any] = field(init=False)
    answers: Floats = field(init=False)
    """The results of the tokens of this rank, in panels: those of a rank after those of another."""
    waiting: list[Callable[[], None]] = field(default_factory=list)


class TensorParallel(Collective):
    """Sends the tokens of each rank to all others, which give back some columns of their results.

    Parameters
    ----------
    experts : PackedExperts
        The same on all ranks; what the rank needs is copied.
    options : ExpertOptions
    channel : Channel
    chunk_tokens : int
    """

    def __init__(
        self, experts: PackedExperts, options: ExpertOptions, channel: Channel, chunk_tokens: int
    ) -> None:
        super().__init__(channel, chunk_tokens)
        self._cut = CutExperts(experts, options, channel.rank, channel.size)
        self._tokens, self._slots = np.empty((0, 0), self._cut.dtype), np.empty((0, 0), _SLOT)

    def begin(self, rows: NDArray[Any], slots: Slots, threads: int) -> Callable[[], Floats]:
        total = np.empty((len(rows), self._cut.hidden_size), np.float32)
        weights, ids = slots
        own = np.empty(ids.shape, _SLOT)
        own["expert"], own["weight"] = ids, weights
        self._tokens = np.ascontiguousarray(cast(rows, self._cut.dtype))
        self._is_agreed = True  # whatever this raises, all ranks do
        agreed = self._channel.check_all(None, len(rows), ids.shape[1])
        num_chunks, most_slots = self._num_chunks(agreed[:, 0]), int(agreed[:, 1].max())
        # Routing functions of users may give ranks different numbers of slots.
        self._slots = np.zeros((len(rows), most_slots), _SLOT)
        self._slots["expert"] = -1
        self._slots[:, : ids.shape[1]] = own
        parts = zip(*(cut(count, num_chunks) for count in agreed[:, 0].tolist()), strict=True)
        self._open = [
            _Chunk(each[self._channel.rank], np.array([part.stop - part.start for part in each]))
            for each in parts
        ]
        if self._open:
            self._dispatch(self._open[0])
        return lambda: self._finish(total, threads)

    def _give_up(self) -> None:
        self._finish(np.empty((0, self._cut.hidden_size), np.float32), 1)

    def _dispatch(self, chunk: _Chunk) -> None:
        """Begin to send tokens and slots of a chunk to all ranks."""
        tokens, slots = self._tokens[chunk.part], self._slots[chunk.part]
        count = int(chunk.counts.sum())
        chunk.tokens = np.empty((count, tokens.shape[1]), tokens.dtype)
        chunk.slots = np.empty((count, slots.shape[1]), _SLOT)
        chunk.waiting = [self._channel.gather_rows(tokens, chunk.tokens, chunk.counts)]
        if slots.shape[1]:
            chunk.waiting.append(self._channel.gather_rows(slots, chunk.slots, chunk.counts))
        others = self._channel.size - 1
        self.traffic += [len(tokens), others * tokens.nbytes, others * slots.nbytes]

    def _finish(self, total: Floats, threads: int) -> Floats:
        chunks = self._open or []
        for number, chunk in enumerate(chunks):
            if number + 1 < len(chunks):
                self._dispatch(chunks[number + 1])
            self._compute(chunk, threads)
            if number:
                self._collect(chunks[number - 1], total)
        if chunks:
            self._collect(chunks[-1], total)
        self._end()
        return total

    def _compute(self, chunk: _Chunk, threads: int) -> None:
        """Compute this rank's rows of both matrices, and begin to send away the results."""
        for wait in chunk.waiting:
            wait()
        rank, part = self._channel.rank, self._cut
        slots = np.ascontiguousarray(chunk.slots["weight"]), np.ascontiguousarray(chunk.slots["expert"])
        order = Order.of(slots)
        num_slots, count = len(order.token), len(chunk.tokens)
        mine = np.zeros((num_slots, PANEL * int(part.w13_panels[rank])), part.dtype)
        self._guarded(lambda: part.intermediates(chunk.tokens, order, mine, threads))
        panels = np.empty((num_slots * int(part.w13_panels.sum()), PANEL), part.dtype)
        self._channel.gather_rows(mine.reshape(-1, PANEL), panels, num_slots * part.w13_panels)()
        results = np.zeros((count, PANEL * int(part.w2_panels[rank])), np.float32)

        def compute() -> None:
            joined = _join(panels, part.w13_panels, num_slots, part.intermediate_size)
            part.sums(joined, order, results, threads)

        self._guarded(compute)
        own_count = chunk.part.stop - chunk.part.start
        chunk.answers = np.empty((own_count * int(part.w2_panels.sum()), PANEL), np.float32)
        there, back = chunk.counts * part.w2_panels[rank], own_count * part.w2_panels
        chunk.waiting = [
            self._channel.send_rows(results.reshape(-1, PANEL), there, chunk.answers, back),
        ]
        others = self._channel.size - 1
        away = (count - own_count) * results[:1].nbytes
        self.traffic[1] += others * mine.nbytes + away

    def _collect(self, chunk: _Chunk, total: Floats) -> None:
        """Write the results of a chunk that have come to `total`."""
        for wait in chunk.waiting:
            wait()

        def write() -> None:
            count = chunk.part.stop - chunk.part.start
            total[chunk.part] = _join(chunk.answers, self._cut.w2_panels, count, total.shape[1])

        self._guarded(write)


def _join(panels: NDArray[Any], counts: NDArray[np.int64], num_rows: int, width: int) -> NDArray[Any]:
    """Rows of panels that came from several ranks, of each `counts` of a row, as whole rows."""
    ends = np.cumsum(counts) * num_rows
    parts = [
        panels[end - num_rows * count : end].reshape(num_rows, PANEL * count)
        for end, count in zip(ends.tolist(), counts.tolist(), strict=True)
    ]
    return np.ascontiguousarray(np.concatenate(parts, axis=1)[:, :width])
