"""``mxfp4moe bench --model``: tokens per second of whole models, decoding and reading prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mxfp4moe import config
from mxfp4moe.cli._bench.model_gguf import Kind
from mxfp4moe.cli._roofline import attainable, explain_shares, read_bandwidth
from mxfp4moe.cli._synthetic_model import DECODERS, Decoder
from mxfp4moe.cli._text import paragraph

if TYPE_CHECKING:
    from mxfp4moe.model import CausalLM

Dense: TypeAlias = Literal["bf16", "int8", "mxfp8", "fp8_block"]

DENSE: dict[Dense, Kind] = {"bf16": "BF16", "int8": "Q8_0", "mxfp8": "Q8_0", "fp8_block": "Q8_0"}
"""What the matrices beside the experts are in llama.cpp, by what they are here."""

FIRST_TOKENS = 16  # that are in the cache where a context of 0 is asked for: both have begun
_DECODED = 8  # tokens of one timing, each after the other
_MIN_ROUNDS, _MAX_ROUNDS = 3, 16  # few, so that decoding makes the contexts only a little longer
_READ_BYTES = 1 << 29  # of one sample of the bandwidth


class Contender(Protocol):
    """A model with one sequence of tokens, which grows."""

    name: str

    def clear(self) -> None:
        """Begin anew."""

    def extend(self, input_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Add tokens; the logits of the last one."""


class Ours:
    """The package's own `CausalLM`."""

    name = "mxfp4moe"

    def __init__(self, lm: CausalLM, num_threads: int) -> None:
        self._lm, self._num_threads = lm, num_threads
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self._cache = self._lm.new_cache()

    def extend(self, input_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Add tokens; the logits of the last one."""
        logits = self._lm(input_ids, self._cache, last_only=True, num_threads=self._num_threads)
        return np.asarray(logits[0], np.float32)

    def step_bytes(self, length: int) -> int:
        """The bytes that a token after `length` others needs."""
        return self._lm._decoder.step_bytes(length)


class Cell(NamedTuple):
    """Decoding after `num_tokens`, or reading a prompt of so many."""

    kind: Literal["decode", "prefill"]
    num_tokens: int


@dataclass
class Series:
    """The timings of one contender in one cell, in seconds for each token."""

    contender: Contender
    cell: Cell
    difference: float  # relative L2, of the first logits, from those of the first contender
    seconds: list[float] = field(default_factory=list)


class Stopwatch:
    """Times contenders in turns, on the same tokens; bandwidth is sampled between them."""

    def __init__(self, contenders: Sequence[Contender], vocab_size: int, num_threads: int, seed: int) -> None:
        self._contenders = contenders
        self._rng = np.random.default_rng(seed)
        self._vocab_size, self._num_threads = vocab_size, num_threads
        self._memory = np.ones(_READ_BYTES, np.uint8)
        self._bandwidths: list[float] = []
        self._num_tokens = 0  # of each contender's sequence
        self._differences = self._compare()

    @property
    def bandwidth(self) -> float:
        """The attainable bandwidth in bytes/s."""
        return attainable(self._bandwidths)

    def measure(self, cell: Cell, seconds: float, advance: Callable[[float], None]) -> list[Series]:
        """Time a cell for about `seconds`; `advance` is told the share of it that has been done."""
        series = [
            Series(each, cell, difference)
            for each, difference in zip(self._contenders, self._differences, strict=True)
        ]
        if cell.kind == "decode":
            self._grow(max(cell.num_tokens, FIRST_TOKENS))
        begin, shown = perf_counter(), 0.0
        for number in range(_MAX_ROUNDS):
            elapsed = (perf_counter() - begin) / seconds
            if elapsed >= 1 and number >= _MIN_ROUNDS:
                break
            self._run_round(series, cell)
            done = min(1.0, max(elapsed, number / _MAX_ROUNDS))
            advance(done - shown)
            shown = done
        advance(1.0 - shown)
        return series

    def _run_round(self, series: list[Series], cell: Cell) -> None:
        count = _DECODED if cell.kind == "decode" else cell.num_tokens
        ids = self._draw(count)
        steps = ids.reshape(-1, 1) if cell.kind == "decode" else ids.reshape(1, -1)
        for one in series:
            self._sample()
            if cell.kind == "prefill":
                one.contender.clear()
            begin = perf_counter()
            for step in steps:
                one.contender.extend(step)
            one.seconds.append((perf_counter() - begin) / count)
        self._num_tokens = count if cell.kind == "prefill" else self._num_tokens + count

    def _grow(self, num_tokens: int) -> None:
        """Make the sequences so long."""
        if num_tokens < self._num_tokens:
            for each in self._contenders:
                each.clear()
            self._num_tokens = 0
        ids = self._draw(num_tokens - self._num_tokens)
        if ids.size:
            for each in self._contenders:
                each.extend(ids)
        self._num_tokens = num_tokens

    def _compare(self) -> list[float]:
        """How far apart the first logits are, as relative L2 norms."""
        ids = self._draw(FIRST_TOKENS)
        logits = [each.extend(ids).astype(np.float64) for each in self._contenders]
        self._num_tokens = FIRST_TOKENS
        return [float(np.linalg.norm(each - logits[0]) / np.linalg.norm(logits[0])) for each in logits]

    def _draw(self, count: int) -> NDArray[np.int64]:
        return self._rng.integers(self._vocab_size, size=count)

    def _sample(self) -> None:
        """Measure the bandwidth, which also clears the caches of what the one before has read."""
        self._bandwidths.append(read_bandwidth([self._memory], config.active_kernels(), self._num_threads))


def summarize(
    model: Decoder, dense: str, all_series: Sequence[Series], stopwatch: Stopwatch, ours: Ours
) -> dict[str, Any]:
    """All figures of one model as JSON has them; the bytes of a step are those that `ours` reads."""
    cells = []
    for one in all_series:
        best, typical = min(one.seconds), median(one.seconds)
        figures: dict[str, Any] = {
            "kind": one.cell.kind,
            "tokens": one.cell.num_tokens,
            "contender": one.contender.name,
            "tokens_per_s": 1 / best,
            "median_tokens_per_s": 1 / typical,
            "difference": one.difference,
            "seconds_per_token": one.seconds,
        }
        if one.cell.kind == "decode":
            figures["step_bytes"] = ours.step_bytes(max(one.cell.num_tokens, FIRST_TOKENS))
            figures["roofline_share"] = figures["step_bytes"] / stopwatch.bandwidth / best
        cells.append(figures)
    return {
        "model": model.title,
        "published_layers": DECODERS[model.title]().num_hidden_layers,
        "config": model.config,
        "dense": dense,
        "read_bytes_per_s": stopwatch.bandwidth,
        "cells": cells,
    }


def format_table(result: dict[str, Any]) -> str:
    """Rows of one model, the best of each contender, and how many times as fast the first one is."""
    layers = result["config"]["num_hidden_layers"]
    title = (
        f"{result['model']}, {layers} of {result['published_layers']} layers, experts mxfp4, other matrices "
        f"{result['dense']} ({DENSE[result['dense']]} in llama.cpp); the machine reads up to "
        f"{result['read_bytes_per_s'] / 1e9:.1f} GB/s"
    )
    lines = [
        paragraph(title),
        "        tokens contender   tokens/s  median  GB/token of roofline  times differs",
    ]
    first: dict[tuple[str, int], float] = {}
    for cell in result["cells"]:
        key = cell["kind"], cell["tokens"]
        times = first.setdefault(key, cell["tokens_per_s"]) / cell["tokens_per_s"]
        is_step = "step_bytes" in cell
        nbytes = f"{cell['step_bytes'] / 1e9:9.2f}" if is_step else " " * 9
        share = f"{100 * cell['roofline_share']:9.0f} %" if is_step else " " * 11
        difference = f"{cell['difference']:8.1e}" if cell["difference"] else ""
        lines.append(
            f"{cell['kind']:7} {cell['tokens']:6d} {cell['contender']:10} {cell['tokens_per_s']:9.2f} "
            f"{cell['median_tokens_per_s']:7.2f} {nbytes} {share} {times:6.2f} {difference}".rstrip()
        )
    explanation = explain_shares(cell["roofline_share"] for cell in result["cells"] if "step_bytes" in cell)
    return "\n".join([*lines, *([paragraph(explanation)] if explanation else [])])
