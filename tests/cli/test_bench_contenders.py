"""Who takes turns in `mxfp4moe bench`, how they are timed, and the table of their figures."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from bench_examples import TINY_SHAPE

import mxfp4moe as mx
from mxfp4moe import _core, reference
from mxfp4moe.cli._bench import contenders, measure, problem, report
from mxfp4moe.cli._roofline import Call


def problems() -> list[problem.Shape]:
    """Every activation that peers know, with and without bias and limit."""
    shapes = [
        TINY_SHAPE,
        problem.Shape("silu", 64, 96, 5, 3),
        problem.Shape("limit", 64, 96, 5, 3, limit=0.5),
    ]
    return [*shapes, problem.Shape("bias", 64, 32, 4, 1, has_bias=True)]


@pytest.mark.parametrize("name", contenders.PEERS)
@pytest.mark.parametrize("shape", problems(), ids=lambda shape: shape.name)
def test_peers_compute_the_reference(name: str, shape: problem.Shape, rng: np.random.Generator) -> None:
    if contenders.PEERS[name].missing():
        pytest.skip(contenders.PEERS[name].missing())
    arrays = problem.random_arrays(shape, rng)
    router = problem.Router(shape, "uniform", rng)
    batch = router.draw(router.hidden_states(7))
    expected = reference.fused_experts_float64(
        *batch[:1], arrays, *batch[1:], activation=shape.activation, limit=shape.limit
    )
    result = contenders.PEERS[name](shape, arrays, 1).prepare(batch)()
    # float32 throughout: sums of at most 96 + 96 terms, errors of 2**-24 each, relative to sums of magnitudes
    # that are at most about sqrt(96) times the result.
    bound = 192 * 10 * 2.0**-24
    if name == "llama.cpp":
        bound = report.DIFFERENT  # its activations have 8 bits
    assert np.linalg.norm(result - expected) / np.linalg.norm(expected) < bound
    ours = contenders.Ours(mx.active_isa(), shape, problem.pack(shape, arrays), 1).prepare(batch)()
    assert ours.dtype == batch.hidden_states.dtype
    assert (
        np.linalg.norm(ours - expected) / np.linalg.norm(expected) < 2 * 2.0**-8
    )  # two roundings to bfloat16


@pytest.mark.parametrize("name", contenders.PEERS)
def test_peers_refuse_other_activations(name: str, rng: np.random.Generator) -> None:
    if contenders.PEERS[name].missing():
        pytest.skip(contenders.PEERS[name].missing())
    shape = problem.Shape("gelu", 32, 32, 2, 1, "gelu")
    with pytest.raises(ValueError, match=f"{name}: expected the activation silu or swigluoai, got gelu"):
        contenders.PEERS[name](shape, problem.random_arrays(shape, rng), 1)


def test_contenders_take_turns_until_their_time_is_up(rng: np.random.Generator) -> None:
    order: list[str] = []

    class Recorder:
        isa = None

        def __init__(self, name: str) -> None:
            self.name = name

        def prepare(self, batch: problem.Batch) -> Any:
            def call() -> np.ndarray:
                order.append(f"{self.name} {batch.topk_ids.tolist()}")
                return np.ones(1)

            return call

    arrays = problem.random_arrays(TINY_SHAPE, rng)
    experts = problem.pack(TINY_SHAPE, arrays)
    machine = measure.Machine([contenders.Ours("portable", TINY_SHAPE, experts, 1)], experts, 1)
    stopwatch = measure.Stopwatch(TINY_SHAPE, machine)
    advanced: list[float] = []
    cell = measure.Cell(3, [Recorder("A"), Recorder("B")], 1e-9)
    router = problem.Router(TINY_SHAPE, "uniform", rng)
    series = stopwatch.measure(cell, router, advanced.append)
    names = [line[0] for line in order]
    assert names == ["A", "B"] * (1 + measure.MIN_CALLS)
    assert all(a[1:] == b[1:] for a, b in zip(order[::2], order[1::2], strict=True))
    assert len(set(order[::2])) > 1
    assert [len(one.calls) for one in series] == [measure.MIN_CALLS] * 2
    assert len(machine.bandwidths) == len(machine.peaks["portable"]) == 2 * measure.MIN_CALLS
    assert sum(advanced) == pytest.approx(1)
    distinct = len(set(re.findall(r"\d+", order[2])))
    assert series[0].calls[0].nbytes == TINY_SHAPE.expert_bytes * distinct


def test_integers_have_a_roofline_of_their_own(rng: np.random.Generator) -> None:
    experts = problem.pack(TINY_SHAPE, problem.random_arrays(TINY_SHAPE, rng))
    ours = [contenders.Ours("portable", TINY_SHAPE, experts, 1, each) for each in (None, "int8")]
    machine = measure.Machine(ours, experts, 1)
    machine.sample("portable")
    machine.sample("portable i8")
    machine.sample("llama.cpp")
    assert {name: len(samples) for name, samples in machine.peaks.items()} == {
        "portable": 2,
        "portable i8": 1,
    }
    described = report.describe_contender(ours[1])
    assert described == {
        "name": "portable i8",
        "isa": "portable",
        "kernels": "portable",
        "activation_format": "int8",
    }
    router = problem.Router(TINY_SHAPE, "uniform", rng)
    hidden, weights, ids = batch = router.draw(router.hidden_states(3))
    expected = mx.fused_experts(
        hidden, experts, weights, ids, activation=TINY_SHAPE.activation, activation_format="int8"
    )
    assert ours[1].prepare(batch)().tobytes() == expected.tobytes()


def row_of(**figures: Any) -> dict[str, Any]:
    """A row of the table with the widest figures."""
    names = ("best_ms", "median_ms", "gb_per_s", "tflop_per_s", "time_ratio")
    shares = ("share_of_roofline", "median_share_of_roofline", "share_of_fma_roofline")
    row = {"tokens": 131072, "contender": "onnxruntime", "calls": 10000, "difference": 0.0123}
    return row | dict.fromkeys(names, 9999.9) | dict.fromkeys(shares, 1.0) | figures


@pytest.mark.parametrize("value", [0, 1e-9, 0.9999, 1.23456, 9.9996, 99.996, 999.96, 99999.4])
def test_table_is_at_most_80_columns_wide(value: float) -> None:
    assert len(report._figure(value)) <= 5
    result = {
        "shape": {**vars(problem.SHAPES["qwen3-30b-a3b-fp8"])},
        "read_bytes_per_s": 1e11,
        "peak_flop_per_s": dict.fromkeys(("amx", "avx512", "avx2", "portable"), 1e13),
        "fma_peak_flop_per_s": {"avx512": 1e12, "avx2": 1e13},
        "cells": [row_of(best_ms=value, gb_per_s=value, time_ratio=value)],
    }
    assert max(map(len, report.format_table(result).splitlines())) <= 80


def test_share_above_100_percent_is_explained() -> None:
    def legend(share: float) -> str:
        return " ".join(report.format_legend([{"cells": [row_of(share_of_roofline=share)]}]).split())

    assert "above 100 %" not in legend(1.0)
    assert "A share above 100 % is no error" in legend(1.01)
    assert max(map(len, report.format_legend([{"cells": [row_of()]}]).splitlines())) <= 80


def test_ratio_is_over_the_rounds_that_both_did(rng: np.random.Generator) -> None:
    experts = problem.pack(TINY_SHAPE, problem.random_arrays(TINY_SHAPE, rng))
    ours = contenders.Ours("portable", TINY_SHAPE, experts, 1)
    peer = contenders.NumpyPeer(TINY_SHAPE, problem.random_arrays(TINY_SHAPE, rng), 1)
    machine = measure.Machine([ours], experts, 1)
    machine.bandwidths, machine.peaks = [5.0, 10.0], {"portable": [50.0, 100.0]}
    fast = measure.Series(ours, 1, calls=[Call(4.0, 20.0, 1.0), Call(5.0, 40.0, 1.0), Call(1.0, 5.0, 1.0)])
    slow = measure.Series(peer, 1, calls=[Call(9.0, 20.0, 1.0), Call(8.0, 40.0, 1.0)])
    first, second = report.summarize(TINY_SHAPE, machine, [fast, slow])["cells"]
    assert (first["time_ratio"], second["time_ratio"], second["time_ratio_calls"]) == (1, 8 / 4, 2)
    assert (first["best_ms"], first["median_ms"]) == (1000, 4000)
    # The best share is that of the second call, 4 s of reading in 5 s, not of the fastest.
    assert first["share_of_roofline"] == pytest.approx(0.8)
    assert first["gb_per_s"] == pytest.approx(8e-9)
    assert first["bound"] == "memory"
    assert second["share_of_roofline"] == pytest.approx(0.5)


@pytest.mark.parametrize("cache", [1000, 10**8])
def test_other_memory_is_read_unless_the_layer_fits_into_the_cache(
    cache: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    read_memory = _core.read_memory

    def recorded(memory: np.ndarray, kernels: int, num_threads: int) -> int:
        read.append(memory.size)
        return read_memory(memory, kernels, num_threads)

    monkeypatch.setattr(_core, "read_memory", recorded)
    monkeypatch.setattr(measure, "last_cache_bytes", lambda: cache)
    experts = problem.pack(TINY_SHAPE, problem.random_arrays(TINY_SHAPE, rng))
    measure.Machine([contenders.Ours("portable", TINY_SHAPE, experts, 1)], experts, 1).sample(None)
    assert read == [experts.nbytes, cache if cache < experts.nbytes else 0]


def test_fma_peak_is_that_of_the_float32_kernels(rng: np.random.Generator) -> None:
    experts = problem.pack(TINY_SHAPE, problem.random_arrays(TINY_SHAPE, rng))
    ours = [contenders.Ours(isa, TINY_SHAPE, experts, 1) for isa in mx.supported_isas()]
    machine = measure.Machine(ours, experts, 1)
    for isa in mx.supported_isas():
        machine.sample(isa)
    machine.sample(None)
    assert set(machine.fma_peaks) == {"avx2", "avx512"} & set(mx.supported_isas())
    assert [len(samples) for samples in machine.peaks.values()] == [2] + [1] * (len(ours) - 1)
    if "avx2" in machine.peaks:  # its kernels are float32 FMAs: one measurement serves both
        assert machine.fma_peaks["avx2"] == machine.peaks["avx2"]
