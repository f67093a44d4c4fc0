"""Computing the figures that are shown and written from measured calls."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from mxfp4moe.cli._bench.contenders import Ours
from mxfp4moe.cli._bench.measure import Machine, Series
from mxfp4moe.cli._bench.problem import Shape
from mxfp4moe.cli._roofline import Call, Speed, attainable, explain_shares
from mxfp4moe.cli._text import WIDTH, paragraph

# bfloat16 results of the same computation differ by 2 * 2.6e-3 at most, 8-bit activations by a few percent.
DIFFERENT = 0.05

Result = dict[str, Any]


def summarize(shape: Shape, machine: Machine, series: Sequence[Series]) -> Result:
    """All figures of one shape, ready for JSON."""
    bandwidth = attainable(machine.bandwidths)
    peaks = {name: attainable(samples) for name, samples in machine.peaks.items()}
    fma_peaks = {name: attainable(samples) for name, samples in machine.fma_peaks.items()}
    first_peak = next(iter(peaks.values()))
    rows = []
    for one in series:
        first = next(other for other in series if other.num_tokens == one.num_tokens)
        row = _row(one, first, Speed(bandwidth, peaks.get(one.contender.name, first_peak)))
        fma_peak = fma_peaks.get(one.contender.name)
        if fma_peak is not None:
            fma = Speed(bandwidth, fma_peak)
            row["share_of_fma_roofline"] = max(call.share(fma) for call in one.calls)
        rows.append(row)
    return {
        "shape": asdict(shape),
        "expert_bytes": shape.expert_bytes,
        "read_bytes_per_s": bandwidth,
        "median_read_bytes_per_s": median(machine.bandwidths),
        "peak_flop_per_s": peaks,
        "median_peak_flop_per_s": {name: median(samples) for name, samples in machine.peaks.items()},
        "fma_peak_flop_per_s": fma_peaks,
        "cells": rows,
    }


def _row(one: Series, first: Series, speed: Speed) -> Result:
    shares = [call.share(speed) for call in one.calls]
    best = one.calls[shares.index(max(shares))]
    common = min(len(one.calls), len(first.calls))  # both began with the same routing
    return {
        "tokens": one.num_tokens,
        "contender": one.contender.name,
        "isa": one.contender.isa,
        "calls": len(one.calls),
        "best_ms": 1e3 * min(call.seconds for call in one.calls),
        "median_ms": 1e3 * median(call.seconds for call in one.calls),
        "gb_per_s": best.nbytes / best.seconds / 1e9,
        "tflop_per_s": best.flops / best.seconds / 1e12,
        "bound": "memory" if best.nbytes / speed.bandwidth > best.flops / speed.peak else "arithmetic",
        "share_of_roofline": max(shares),
        "median_share_of_roofline": median(shares),
        "share_of_fma_roofline": None,
        "time_ratio": _best_seconds(one.calls[:common]) / _best_seconds(first.calls[:common]),
        "time_ratio_calls": common,
        "difference": one.difference,
        "flops": best.flops,
        "call_seconds": [call.seconds for call in one.calls],
        "call_bytes": [call.nbytes for call in one.calls],
    }


def _best_seconds(calls: Sequence[Call]) -> float:
    return min(call.seconds for call in calls)


def describe_contender(contender: Any) -> Result:
    """Name and instruction set; of this package, the kernel table too."""
    from mxfp4moe import config

    kernels = config._TABLES[contender.kernels].name if isinstance(contender, Ours) else None
    described = {"name": contender.name, "isa": contender.isa, "kernels": kernels}
    if isinstance(contender, Ours) and contender.activation_format is not None:
        described["activation_format"] = contender.activation_format
    return described


# ---- the table ----


def _figure(value: float) -> str:
    """Return at most five characters for anything below 100 000."""
    decimals = 3 if value < 9.9995 else 2 if value < 99.995 else 1 if value < 999.95 else 0
    return f"{value:.{decimals}f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


# A column has two lines of title, the key of the row, a width and a form. Together they take 80 columns.
_Format = Callable[[Any], str]
_COLUMNS: list[tuple[str, str, str, int, _Format]] = [
    ("", "tokens", "tokens", 6, str),
    ("", "contender", "contender", 11, str),
    ("", "calls", "calls", 5, str),
    ("best", "ms", "best_ms", 5, _figure),
    ("median", "ms", "median_ms", 6, _figure),
    ("", "GB/s", "gb_per_s", 5, _figure),
    ("TFLOP", "/s", "tflop_per_s", 5, _figure),
    ("best", "share", "share_of_roofline", 5, _percent),
    ("median", "share", "median_share_of_roofline", 6, _percent),
    ("of", "FMA", "share_of_fma_roofline", 5, _percent),
    ("x", "first", "time_ratio", 5, _figure),
    ("rel.", "L2", "difference", 5, lambda x: "" if x == 0 else f"{x:.0e}"),
]

LEGEND = """\
share: the roofline of a call over its time. GB/s and TFLOP/s are those of the call with the best share.
of FMA: the best share if the peak were that of float32 FMAs, which other instructions may exceed.
x first: best time over the best time of the first contender, on the same routing.
rel. L2: difference of the results from those of the first contender.
Bandwidth and peaks were measured between the calls; nine tenths of the samples do not exceed them."""


def format_table(result: Result) -> str:
    """The figures of one shape as text."""
    shape = result["shape"]
    peaks = [f"{peak / 1e12:.3f} TFLOP/s ({name})" for name, peak in result["peak_flop_per_s"].items()]
    peaks += [
        f"{peak / 1e12:.3f} TFLOP/s ({name}, float32 FMA)"
        for name, peak in result["fma_peak_flop_per_s"].items()
        if peak != result["peak_flop_per_s"][name]
    ]
    layer = (
        f"{shape['name']}: hidden_size={shape['hidden_size']}, "
        f"intermediate_size={shape['intermediate_size']}, num_experts={shape['num_experts']}, "
        f"top_k={shape['top_k']}, {shape['activation']}, {shape['format']}"
    )
    machine = f"reads up to {result['read_bytes_per_s'] / 1e9:.1f} GB/s, computes up to {', '.join(peaks)}"
    lines = [paragraph(layer), paragraph(machine)]
    lines.append(_line(f"{above:>{width}}" for above, _, _, width, _ in _COLUMNS))
    lines.append(_line(f"{title:>{width}}" for _, title, _, width, _ in _COLUMNS))
    for row in result["cells"]:
        lines.append(_line(f"{show(row[key]):>{width}}" for _, _, key, width, show in _COLUMNS))
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return " ".join(cells).rstrip()


def format_legend(results: Sequence[Result]) -> str:
    """What the columns of the tables mean."""
    keys = ("share_of_roofline", "median_share_of_roofline")
    shares = [row[key] for result in results for row in result["cells"] for key in keys]
    return textwrap.fill(f"{' '.join(LEGEND.split())} {explain_shares(shares)}", WIDTH)


def different(result: Result) -> list[str]:
    """Contenders whose results are not those of the first: one line each."""
    title = f"{result['shape']['name']}, {result['shape']['format']}"
    return [
        f"{title}, {row['contender']}, {row['tokens']} tokens: "
        f"relative L2 difference {row['difference']:.1e} from {result['cells'][0]['contender']}, "
        f"expected at most {DIFFERENT}"
        for row in result["cells"]
        if not row["difference"] <= DIFFERENT  # also NaN
    ]
