"""The routed experts of a layer whose ranks hold a part of them each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import cast
from mxfp4moe.experts.fused import Slots, run_experts
from mxfp4moe.experts.packed_experts import PackedExperts
from mxfp4moe.layer_ahead import NextLayer
from mxfp4moe.layer_description import LayerDescription
from mxfp4moe.layer_sum import Floats, routed_options
from mxfp4moe.mpi._channel import Channel
from mxfp4moe.mpi._collective import Collective, cut
from mxfp4moe.mpi._plan import SLOT, Plan, arrange_work, holder_table, make_plan

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_BUSY_SLOTS = 64  # of an expert, of a rank's own tokens: so many are computed while those of other ranks come


@dataclass
class _Chunk:
    """Some tokens of this rank, and those of other ranks that are computed at the same time."""

    rows: NDArray[Any]
    plan: Plan
    theirs: NDArray[np.int64]
    """How many tokens, slots and results each rank has for this one."""
    tokens: NDArray[Any] = field(init=False)
    slots: NDArray[Any] = field(init=False)
    results: NDArray[Any] = field(init=False)
    answers: NDArray[Any] = field(init=False)
    """The results that come from other ranks."""
    waiting: list[Callable[[], None]] = field(default_factory=list)


class Exchange(Collective):
    """Dispatches tokens to the ranks that hold their experts, and combines what these return.

    Parameters
    ----------
    layer : LayerDescription
        A slice of the layer.
    channel : Channel
    held : ndarray of shape (ranks, num_experts), bool
    chunk_tokens : int
    exact : bool
    """

    def __init__(
        self,
        layer: LayerDescription[PackedExperts],
        channel: Channel,
        held: NDArray[np.bool_],
        chunk_tokens: int,
        exact: bool,
    ) -> None:
        super().__init__(channel, chunk_tokens)
        self._experts, self._options = layer.experts, routed_options(layer)
        # Tokens are rounded to bfloat16 before they are sent, as kernels would round them. Activations of
        # eight bits are rounded from the token itself.
        self._sent_dtype = _BFLOAT16 if layer.activation_format is None else np.dtype(np.float32)
        self._map, self._width = layer.expert_map, layer.experts.hidden_size
        self._tokens_of_busy = -(-_BUSY_SLOTS * layer.num_experts // max(layer.top_k, 1))
        self._is_busy = False
        self._exact = exact
        self.ahead: NextLayer | None = None
        """Asked for experts of the next layer, for tokens of other ranks."""
        self._table = holder_table(held, channel.rank)
        self._own = np.arange(channel.size) == channel.rank

    def _give_up(self) -> None:
        self._finish(np.empty((0, self._width), np.float32), 1)

    def begin(self, rows: NDArray[Any], slots: Slots, threads: int) -> Callable[[], Floats]:
        total = np.empty((len(rows), self._width), np.float32)
        tokens = np.ascontiguousarray(cast(rows, self._sent_dtype))
        self._is_agreed = True  # whatever this raises, all ranks do
        counts = self._channel.check_all(None, len(rows))[:, 0]
        num_chunks = self._num_chunks(counts)
        # Ranks decide alike: MPI moves large messages only while both sides call it, so one that computes
        # first would keep one that waits from beginning.
        self._is_busy = int(counts.min()) >= self._tokens_of_busy * num_chunks
        self._open = []
        parts = cut(len(rows), num_chunks)
        plans = self._guarded(lambda: [self._plan(slots, part) for part in parts])
        if plans is None:
            plans = [self._plan(slots, slice(0))] * num_chunks
        if plans:
            ours = np.stack([plan.messages.counts for plan in plans], axis=1)
            theirs = self._channel.transpose(ours)
            self._open = [
                _Chunk(tokens[part], plan, theirs[:, i])
                for i, (part, plan) in enumerate(zip(parts, plans, strict=True))
            ]
        if self._open:
            self._dispatch(self._open[0])
        return lambda: self._finish(total, threads)

    def _plan(self, slots: Slots, part: slice) -> Plan:
        weights, ids = slots
        return make_plan(weights[part], ids[part], self._table, self._channel.size, self._exact)

    def _dispatch(self, chunk: _Chunk) -> None:
        """Begin to send tokens and slots of a chunk."""
        messages = chunk.plan.messages
        away = np.where(self._own[:, None], 0, messages.counts)
        theirs = np.where(self._own[:, None], 0, chunk.theirs)
        is_away = np.repeat(~self._own, messages.counts[:, 0])
        tokens = chunk.rows[messages.tokens[is_away]]
        slots = messages.slots[np.repeat(~self._own, messages.counts[:, 1])]
        chunk.tokens = np.empty((int(theirs[:, 0].sum()), self._width), self._sent_dtype)
        chunk.slots = np.empty(int(theirs[:, 1].sum()), SLOT)
        chunk.waiting = [
            self._channel.send_rows(slots, away[:, 1], chunk.slots, theirs[:, 1]),
            self._channel.send_rows(tokens, away[:, 0], chunk.tokens, theirs[:, 0]),
        ]
        self.traffic += [len(chunk.rows), tokens.nbytes, slots.nbytes]

    def _finish(self, total: Floats, threads: int) -> Floats:
        chunks, first = self._open or [], 0
        for number, chunk in enumerate(chunks):
            if number + 1 < len(chunks):
                self._dispatch(chunks[number + 1])
            self._compute(chunk, threads)
            if number:
                first = self._combine(chunks[number - 1], total, first)
        if chunks:
            self._combine(chunks[-1], total, first)
        self._end()
        return total

    def _compute(self, chunk: _Chunk, threads: int) -> None:
        """Compute own slots, then those of others; return these."""
        counts, messages = chunk.plan.messages.counts, chunk.plan.messages
        own_slots = messages.slots[np.repeat(self._own, counts[:, 1])]
        own_tokens = chunk.rows[messages.tokens[np.repeat(self._own, counts[:, 0])]]
        own_counts = counts[self._own]
        answer_type = np.dtype(np.float32) if self._exact else _BFLOAT16
        num_own, ends = int(own_counts[0, 2]), np.cumsum(counts[:, 2])
        num_results, own_end = int(ends[-1]), int(ends[self._channel.rank])
        own, results = slice(own_end - num_own, own_end), np.empty((num_results, self._width), np.float32)
        theirs = np.where(self._own[:, None], 0, chunk.theirs)
        if self._is_busy:
            self._guarded(lambda: self._run(own_tokens, own_slots, own_counts, results[own], threads))
        for wait in chunk.waiting:
            wait()
        if self.ahead is not None:
            self.ahead.expect(chunk.tokens)
        answers = np.zeros((int(theirs[:, 2].sum()), self._width), np.float32)
        if self._is_busy:
            self._guarded(lambda: self._run(chunk.tokens, chunk.slots, theirs, answers, threads))
        else:
            # One call reads the weights once.
            together = np.empty((num_own + len(answers), self._width), np.float32)
            tokens = np.concatenate([own_tokens, chunk.tokens])
            slots = np.concatenate([own_slots, chunk.slots])
            both = np.concatenate([own_counts, theirs])
            self._guarded(lambda: self._run(tokens, slots, both, together, threads))
            results[own], answers = together[:num_own], together[num_own:]
        away = np.where(self._own, 0, counts[:, 2])
        answers = cast(answers, answer_type)
        received = np.empty((int(away.sum()), self._width), answer_type)
        chunk.answers, chunk.results = received, results
        chunk.waiting = [self._channel.send_rows(answers, theirs[:, 2], received, away)]
        self.traffic[1] += answers.nbytes

    def _run(
        self, tokens: NDArray[Any], slots: NDArray[Any], counts: NDArray[np.int64], out: Floats, threads: int
    ) -> None:
        """Write the results of the slots of some ranks to `out`."""
        work = arrange_work(slots, counts)
        ids = work.experts if self._map is None else np.append(self._map, np.int32(-1))[work.experts]
        given = np.ascontiguousarray(work.weights), np.ascontiguousarray(ids, dtype=np.int32)
        run_experts(self._experts, tokens[work.tokens], given, self._options, out, threads)

    def _combine(self, chunk: _Chunk, total: Floats, first: int) -> int:
        """Add up a chunk whose tokens begin at `first`; return where the next one does."""
        for wait in chunk.waiting:
            wait()
        last = first + len(chunk.rows)
        is_own = np.repeat(self._own, chunk.plan.messages.counts[:, 2])

        def add_up() -> None:
            chunk.results[~is_own] = cast(chunk.answers, np.float32)
            chunk.plan.addends.add_up(chunk.results, total[first:last])

        self._guarded(add_up)
        return last
