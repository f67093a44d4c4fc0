"""A roofline plot of every measured call."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mxfp4moe.cli._bench.report import Result

_MARKERS = "osD^v<>P"


def unusable(path: str) -> str:
    """Why there can be no plot at `path`; empty if there can."""
    if importlib.util.find_spec("matplotlib") is None:
        return "the package matplotlib is not installed (pip install 'mxfp4moe[bench]')"
    try:
        canvas = importlib.import_module("matplotlib.backend_bases").FigureCanvasBase
    except ImportError as error:
        return f"the package matplotlib cannot be imported: {error}"
    suffix = Path(path).suffix[1:].lower()
    if suffix not in canvas.filetypes:
        return (
            f"expected a name that ends in .png or .{', .'.join(sorted(canvas.filetypes.keys() - {'png'}))}"
        )
    return ""


def title(num_threads: int) -> str:
    """What machine the figures are of."""
    return f"{_cpu_name()}, {num_threads} thread{'s' if num_threads > 1 else ''}"


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return " ".join(value.split())
    return platform.machine()


def save(results: Sequence[Result], title: str, file: BinaryIO, file_format: str) -> None:
    """Draw TFLOP/s over FLOPs per byte of weights: a colour for each contender, a marker for each shape."""
    figure_class = importlib.import_module("matplotlib.figure").Figure  # needs no display
    figure = figure_class(figsize=(10, 6.5), layout="constrained")
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log", title=title)
    axes.set(xlabel="FLOPs per byte of weights", ylabel="TFLOP/s")
    names = dict.fromkeys(row["contender"] for result in results for row in result["cells"])
    colours = {name: f"C{number}" for number, name in enumerate(names)}
    markers = dict(zip(range(len(results)), itertools.cycle(_MARKERS)))
    for number, result in enumerate(results):
        for row in result["cells"]:
            _draw_calls(axes, row, colours[row["contender"]], markers[number])
    _draw_roofs(axes, results, colours)
    for name, colour in colours.items():
        axes.scatter([], [], c=colour, label=name)
    for number, result in enumerate(results):
        shape = result["shape"]
        axes.scatter([], [], c="grey", marker=markers[number], label=f"{shape['name']}, {shape['format']}")
    axes.grid(visible=True, which="major", alpha=0.3)
    for axis in (axes.xaxis, axes.yaxis):
        _plain_ticks(axis)
    figure.legend(loc="outside lower center", ncols=4)
    figure.savefig(file, dpi=150, format=file_format.lower())


def _draw_calls(axes: Any, row: Result, colour: str, marker: str) -> None:
    """The calls of a cell, and its number of tokens above the highest of them."""
    intensities = row["flops"] / np.array(row["call_bytes"])
    speeds = row["flops"] / np.array(row["call_seconds"]) / 1e12
    axes.scatter(intensities, speeds, 14, c=colour, marker=marker, alpha=0.5, lw=0, zorder=4)
    best = speeds.argmax()
    highest = float(intensities[best]), float(speeds[best])
    _write(axes, str(row["tokens"]), highest, ha="center", color=colour)


def _write(axes: Any, text: str, point: tuple[float, float], **how: Any) -> None:
    """Text a little above a point, with a white edge that keeps it legible among other points."""
    edge = importlib.import_module("matplotlib.patheffects").withStroke(linewidth=2, foreground="white")
    axes.annotate(
        text, point, (0, 4), textcoords="offset points", va="bottom", fontsize=8, path_effects=[edge], **how
    )


def _plain_ticks(axis: Any) -> None:
    """Numbers like 0.05 and 20 at 1, 2 and 5 times the powers of ten."""
    ticker = importlib.import_module("matplotlib.ticker")
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=50))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(ticker.NullLocator())


def _draw_roofs(axes: Any, results: Sequence[Result], colours: dict[str, str]) -> None:
    """One roof for each instruction set: the best bandwidth and peak of the run."""
    bandwidth = max(result["read_bytes_per_s"] for result in results) / 1e12  # TB/s
    peaks = {
        isa: max(result["peak_flop_per_s"][isa] for result in results) / 1e12
        for isa in results[0]["peak_flop_per_s"]
    }
    ridge = max(peaks.values()) / bandwidth  # where reading and arithmetic take the same time
    low, high = axes.get_xlim()
    low, high = min(low, ridge / 8), max(high, ridge * 2)
    axes.set_xlim(low, high)
    x = np.geomspace(low, high, 200)
    for isa, peak in peaks.items():
        axes.plot(x, np.minimum(bandwidth * x, peak), color=colours[isa], lw=1)
        _write(axes, f"{isa}: {peak:.3g} TFLOP/s", (high, peak), ha="right", color=colours[isa])
    middle = (low * ridge) ** 0.5
    _write(axes, f"reads {1e3 * bandwidth:.3g} GB/s ", (middle, bandwidth * middle), ha="right")
