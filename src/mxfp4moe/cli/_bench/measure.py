"""Timing in alternation: reader, peak loop, one contender, reader, peak loop, the next one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from mxfp4moe import _core, config
from mxfp4moe.cli._bench.contenders import Contender, Ours
from mxfp4moe.cli._bench.memory import last_cache_bytes
from mxfp4moe.cli._bench.problem import Batch, Router, Shape
from mxfp4moe.cli._roofline import Call, PeakLoop, Roofline
from mxfp4moe.experts import PackedExperts

MIN_CALLS = 3
# These are the kernel tables, by instruction set, whose products are float32 FMAs.
_FMA_TABLES = {"avx2": "avx2", "avx512": "avx512"}


class Machine:
    """What the machine did in between the calls: the limits that calls are compared with.

    `bandwidths` in bytes/s; `peaks` of each contender of this package in FLOP/s; `fma_peaks` of the float32
    FMAs of the same registers, for "avx2" and "avx512" on bfloat16. The latter may have an instruction that
    does more than an FMA.
    """

    def __init__(self, contenders: Sequence[Ours], experts: PackedExperts, num_threads: int) -> None:
        self.bandwidths: list[float] = []
        self.peaks: dict[str, list[float]] = {}
        self.fma_peaks: dict[str, list[float]] = {}
        self._rooflines: dict[str, Roofline] = {}
        self._fma_loops: dict[str, PeakLoop] = {}
        self._num_threads = num_threads
        # Weights that the reader leaves in the last cache would be a gift to calls that choose just these.
        # Layers that fit into the cache are compared with its bandwidth.
        cache = last_cache_bytes()
        self._other_memory = np.ones(cache if experts.nbytes > cache else 0, np.uint8)
        for ours in contenders:
            with config.use_isa(ours.isa):
                self._rooflines[ours.name] = Roofline(experts, num_threads, ours.activation_format)
            self.peaks[ours.name] = []
            if ours.name in _FMA_TABLES:
                self.fma_peaks[ours.name] = []
                with config._use_kernels(_FMA_TABLES[ours.isa]):
                    if config.active_kernels() != ours.kernels:
                        self._fma_loops[ours.name] = PeakLoop(config.active_kernels(), num_threads)

    def sample(self, name: str | None) -> None:
        """Measure once, with the peak of the contender of that name, by default the first one."""
        name = name if name in self.peaks else next(iter(self.peaks))
        speed = self._rooflines[name].sample()
        self.bandwidths.append(speed.bandwidth)
        self.peaks[name].append(speed.peak)
        if name in self.fma_peaks:
            loop = self._fma_loops.get(name)
            self.fma_peaks[name].append(speed.peak if loop is None else loop.sample())
        _core.read_memory(self._other_memory, config.active_kernels(), self._num_threads)


@dataclass
class Series:
    """The calls of one contender in one cell: the first ones of the cell's routing sequence."""

    contender: Contender
    num_tokens: int
    difference: float = 0.0  # relative L2, of the first result, from that of the first contender
    calls: list[Call] = field(default_factory=list)
    seconds: float = 0.0  # with what surrounds the calls

    def wants_more(self, budget: float) -> bool:
        """Whether there is time for another call."""
        return self.seconds < budget or len(self.calls) < MIN_CALLS


@dataclass(frozen=True)
class Cell:
    """One number of tokens: who computes it, and for how long."""

    num_tokens: int
    contenders: Sequence[Contender]
    seconds: float  # of all contenders together; the slow ones may take longer for the least number of calls


class Stopwatch:
    """Times calls of one layer beside samples of the machine."""

    def __init__(self, shape: Shape, machine: Machine) -> None:
        self._shape, self._machine = shape, machine

    def measure(self, cell: Cell, router: Router, advance: Callable[[float], None]) -> list[Series]:
        """Time the contenders in alternation; `advance` is told the share of the cell that has been done."""
        hidden_states = router.hidden_states(cell.num_tokens)
        series = [Series(contender, cell.num_tokens) for contender in cell.contenders]
        _warm_up(series, router.draw(hidden_states))
        budget = cell.seconds / len(series)
        shown = 0.0
        while active := [one for one in series if one.wants_more(budget)]:
            batch = router.draw(hidden_states)
            for one in active:
                self._time(one, batch)
            done = sum(min(one.seconds / budget, 1.0) for one in series) / len(series)
            advance(done - shown)
            shown = done
        advance(1.0 - shown)
        return series

    def _time(self, series: Series, batch: Batch) -> None:
        """One call, right after a sample of the machine, which clears the caches of earlier calls."""
        call = series.contender.prepare(batch)
        before = perf_counter()
        self._machine.sample(series.contender.name)
        begin = perf_counter()
        call()
        end = perf_counter()
        nbytes = self._shape.expert_bytes * np.unique(batch.topk_ids).size
        series.calls.append(Call(end - begin, nbytes, self._shape.flops(series.num_tokens)))
        series.seconds += end - before


def _warm_up(series: list[Series], batch: Batch) -> None:
    """Call each contender once, which also shows whether they compute the same."""
    expected: np.ndarray | None = None
    for one in series:
        result = one.contender.prepare(batch)().astype(np.float64)
        if expected is None:
            expected = result
        one.difference = float(np.linalg.norm(result - expected) / np.linalg.norm(expected))
