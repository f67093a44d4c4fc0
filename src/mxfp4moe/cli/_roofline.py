"""What the machine can do at best, measured beside the calls that are compared with it.

The roofline of a call is the larger of two times: that of reading the weights of the call's distinct experts
and that of its FLOPs at the peak of the active instruction set. Shared machines change their speed from one
second to the next, so that reader, peak loop and calls take turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from mxfp4moe import _core, config
from mxfp4moe.experts import PackedExperts
from mxfp4moe.experts.activation_format import ActivationFormat, activation_format_code
from mxfp4moe.layer import MoELayer

_PEAK_SECONDS = 3e-3  # of one measurement of the peak


class Speed(NamedTuple):
    """What the machine did at one time: bytes read per second, FLOP/s."""

    bandwidth: float
    peak: float


class Call(NamedTuple):
    """One timed call: how long it took, the bytes of its experts' weights, its FLOPs."""

    seconds: float
    nbytes: float
    flops: float

    def share(self, speed: Speed) -> float:
        """The roofline of this call on a machine of that speed over the time that the call took."""
        return max(self.nbytes / speed.bandwidth, self.flops / speed.peak) / self.seconds


class PeakLoop:
    """Measures the peak arithmetic of the kernel table `kernels` on `num_threads` threads.

    With activations of another format than bfloat16, that of its kernels for these.
    """

    def __init__(
        self, kernels: int, num_threads: int, activation_format: ActivationFormat | None = None
    ) -> None:
        self._kernels, self._num_threads = kernels, num_threads
        self._activation_format = activation_format_code(activation_format)
        self._iterations = 1000

    def sample(self) -> float:
        """Measure once: FLOP/s."""
        seconds, flops = self._run()
        # Each time, not once: a disturbance may have made a short loop look long enough.
        while seconds < _PEAK_SECONDS:
            self._iterations *= 2
            seconds, flops = self._run()
        return flops / seconds

    def _run(self) -> tuple[float, float]:
        begin = perf_counter()
        flops = _core.peak_flops(self._iterations, self._kernels, self._num_threads, self._activation_format)
        return perf_counter() - begin, flops


def read_bandwidth(arrays: Iterable[np.ndarray[Any, Any]], kernels: int, num_threads: int) -> float:
    """Bytes a second at which threads read arrays, one after another."""
    done, begin = 0, perf_counter()
    for array in arrays:
        _core.read_memory(array, kernels, num_threads)
        done += array.nbytes
    return done / (perf_counter() - begin)


class Roofline:
    """Measures read bandwidth and peak arithmetic of the active instruction set, sample by sample.

    Parameters
    ----------
    experts : PackedExperts
        Read as a whole for each sample: as many bytes as calls draw from, so that caches help both alike.
    num_threads : int
    activation_format : str, optional
        That of the calls.
    """

    def __init__(
        self, experts: PackedExperts, num_threads: int, activation_format: ActivationFormat | None = None
    ) -> None:
        self._memory = np.frombuffer(experts.data, np.uint8)
        self.num_threads = num_threads
        self._table = config.active_kernels()
        self._peak_loop = PeakLoop(self._table, num_threads, activation_format)

    def sample(self) -> Speed:
        """Measure once."""
        return Speed(read_bandwidth([self._memory], self._table, self.num_threads), self._peak_loop.sample())


@dataclass(frozen=True)
class Run:
    """Calls of the same number of tokens, what went in and came out, and the speed before each call."""

    hidden_states: list[np.ndarray[Any, Any]]
    results: list[np.ndarray[Any, Any]]
    calls: list[Call]
    speeds: list[Speed]
    others: list[dict[str, Any]] = field(default_factory=list)
    """What else each call was given, by the name of the argument."""

    @property
    def typical(self) -> Call:
        """The call of median duration (of two, the slower)."""
        return sorted(self.calls)[len(self.calls) // 2]

    def shares(self, speed: Speed) -> tuple[float, float]:
        """Median and best share of the calls."""
        shares = [call.share(speed) for call in self.calls]
        return median(shares), max(shares)


def attainable(samples: Sequence[float]) -> float:
    """The sample that nine tenths of all do not exceed.

    Disturbances make most samples too small; a clock that a virtual machine sets right makes a few too large.
    """
    return float(np.quantile(samples, 0.9, method="nearest"))


def best_speed(speeds: list[Speed]) -> Speed:
    """The attainable bandwidth and peak of `speeds`."""
    return Speed(attainable([s.bandwidth for s in speeds]), attainable([s.peak for s in speeds]))


def explain_shares(shares: Iterable[float]) -> str:
    """Why one of the shares is above 100 %; empty if none is shown so."""
    if all(round(100 * share) <= 100 for share in shares):
        return ""
    return (
        "A share above 100 % is no error: that call found weights in a cache, or the machine was slower "
        "while its limits were measured than during the call."
    )


def measure(
    layer: MoELayer,
    roofline: Roofline,
    batches: list[np.ndarray[Any, Any]],
    others: list[dict[str, Any]] | None = None,
) -> Run:
    """Call `layer` once for each batch of hidden states, each time after a sample of the roofline.

    `others` are further arguments of each call, by name.
    """
    num_threads = roofline.num_threads
    run = Run(batches, [], [], [], others or [{} for _ in batches])
    layer(batches[0], **run.others[0], num_threads=num_threads)  # wakes threads, touches the workspace
    for hidden_states, other in zip(batches, run.others, strict=True):
        run.speeds.append(roofline.sample())
        begin = perf_counter()
        run.results.append(layer(hidden_states, **other, num_threads=num_threads))
        seconds = perf_counter() - begin
        ids = layer.choose(
            layer.router_logits(hidden_states, router_hidden_states=other.get("router_hidden_states")),
            other.get("input_ids"),
        )[1]  # with the shared experts that the router weighs
        ids = ids[ids < layer.experts.num_experts]  # the others are zero experts, which cost nothing
        nbytes, flops = (
            np.unique(ids).size * layer.experts.spec.expert_bytes,
            ids.size * _flops(layer.experts),
        )
        if layer.shared_experts is not None:
            nbytes += layer.shared_experts.spec.expert_bytes
            flops += len(hidden_states) * _flops(layer.shared_experts)
        run.calls.append(Call(seconds, nbytes, flops))
    return run


def _flops(experts: PackedExperts) -> float:
    """FLOPs of one token in one of the experts."""
    return 2.0 * (experts.spec.num_w13_parts + 1) * experts.hidden_size * experts.intermediate_size
