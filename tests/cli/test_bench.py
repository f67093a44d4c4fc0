"""``mxfp4moe bench``: what it measures, shows and writes. Nothing here depends on how fast the machine is."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_examples import TINY
from paths import ROOT

import mxfp4moe as mx
from mxfp4moe import config
from mxfp4moe.cli import main
from mxfp4moe.cli._bench import contenders, measure, plot, problem, report


def bench(*arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Run a tiny benchmark; the figures that it wrote."""
    assert main([*TINY, *arguments, "--json", "-"]) == 0
    figures: dict[str, Any] = json.loads(capsys.readouterr().out)
    return figures


# ---- the command ----


def test_table_has_a_row_for_each_number_of_tokens_and_contender(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--tokens", "1,5", "--isa", "all", "--peers", "numpy", "--routing", "zipf"]) == 0
    out, err = capsys.readouterr()
    assert f"mxfp4moe {mx.__version__}, 1 threads, zipf routing" in out
    assert max(map(len, out.splitlines())) <= 80
    text = " ".join(out.split())
    assert "hidden_size=96, intermediate_size=64, num_experts=6, top_k=2, swigluoai, mxfp4" in text
    assert re.search(r"reads up to [\d.]+ GB/s, computes up to [\d.]+ TFLOP/s \(\w+\)", text)
    rows = re.findall(
        r"^ +(\d+) +(\w+) +\d+( +[\d.]+){4}( +\d+ %){2,3} +[\d.]+( +[\d.e-]+)?$", out, re.MULTILINE
    )
    names = [*reversed(mx.supported_isas()), "numpy"]
    assert [(row[0], row[1]) for row in rows] == [(tokens, name) for tokens in "15" for name in names]
    assert "100 % of 2 numbers of tokens" in err


def test_json_has_every_figure(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    arguments = [
        "--tokens",
        "1,40",
        "--peers",
        "numpy",
        "--seed",
        "3",
        "--routing",
        "hot",
        "--json",
        str(path),
    ]
    assert main([*TINY, *arguments]) == 0
    figures = json.loads(path.read_text())
    assert figures["mxfp4moe"] == mx.__version__
    assert figures["config"]["isas"]["active"] == mx.active_isa()
    assert (figures["threads"], figures["routing"], figures["seconds"], figures["seed"]) == (
        1,
        "hot",
        0.02,
        3,
    )
    (result,) = figures["results"]
    assert result["shape"] == {
        "name": "custom",
        "hidden_size": 96,
        "intermediate_size": 64,
        "num_experts": 6,
        "top_k": 2,
        "activation": "swigluoai",
        "limit": 7.0,
        "has_bias": True,
        "format": "mxfp4",
        "group_size": 32,
    }
    isa, kernels = mx.active_isa(), config._TABLES[config.active_kernels()].name
    assert result["contenders"] == [
        {"name": isa, "isa": isa, "kernels": kernels},
        {"name": "numpy", "isa": None, "kernels": None},
    ]
    assert result["wanted_experts"] == 6
    assert result["expert_bytes"] == 3 * 96 * 64 * 17 / 32
    assert result["read_bytes_per_s"] >= result["median_read_bytes_per_s"] > 0
    assert result["peak_flop_per_s"][isa] >= result["median_peak_flop_per_s"][isa] > 0
    assert set(result["fma_peak_flop_per_s"]) == {isa} & {"avx2", "avx512"}
    assert [(cell["tokens"], cell["contender"]) for cell in result["cells"]] == [
        (1, isa),
        (1, "numpy"),
        (40, isa),
        (40, "numpy"),
    ]
    for cell in result["cells"]:
        check_cell(cell, result)


def check_cell(cell: dict[str, Any], result: dict[str, Any]) -> None:
    """The figures of a cell follow from its calls and the limits of its shape."""
    isa = next(iter(result["peak_flop_per_s"]))
    bandwidth, peak = result["read_bytes_per_s"], result["peak_flop_per_s"][isa]
    seconds, nbytes = np.array(cell["call_seconds"]), np.array(cell["call_bytes"])
    assert cell["calls"] == len(seconds) == len(nbytes) >= measure.MIN_CALLS
    assert cell["flops"] == 2 * cell["tokens"] * 2 * 3 * 96 * 64
    shares = np.maximum(nbytes / bandwidth, cell["flops"] / peak) / seconds
    best = shares.argmax()
    assert cell["share_of_roofline"] == pytest.approx(shares[best])
    assert cell["median_share_of_roofline"] == pytest.approx(np.median(shares))
    assert cell["best_ms"] == pytest.approx(1e3 * seconds.min())
    assert cell["median_ms"] == pytest.approx(1e3 * np.median(seconds))
    assert cell["gb_per_s"] == pytest.approx(nbytes[best] / seconds[best] / 1e9)
    assert cell["tflop_per_s"] == pytest.approx(cell["flops"] / seconds[best] / 1e12)
    memory_bound = nbytes[best] / bandwidth > cell["flops"] / peak
    assert cell["bound"] == ("memory" if memory_bound else "arithmetic")
    assert cell["difference"] <= report.DIFFERENT
    if cell["isa"] is None:
        assert cell["share_of_fma_roofline"] is None
        assert cell["difference"] > 0
        assert cell["time_ratio"] > 0
    else:
        assert (cell["share_of_fma_roofline"] is not None) == (isa in result["fma_peak_flop_per_s"])
        assert (cell["difference"], cell["time_ratio"]) == (0, 1)


def test_json_alone_is_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--tokens", "3", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)["results"]) == 1
    assert "roofline" in err


def test_formats_of_activations_take_turns(capsys: pytest.CaptureFixture[str]) -> None:
    (result,) = bench("--tokens", "2", "--activation-format", "bfloat16,int8", capsys=capsys)["results"]
    isa = mx.active_isa()
    assert [cell["contender"] for cell in result["cells"]] == [isa, f"{isa} i8"]
    assert set(result["peak_flop_per_s"]) == {isa, f"{isa} i8"}
    assert 0 < result["cells"][1]["difference"] <= report.DIFFERENT
    for arguments, message in (
        (["int4"], "argument --activation-format: expected bfloat16 or int8, got 'int4'"),
        (["int8", "--format", "mxfp8"], "argument --activation-format: expected bfloat16 for experts of"),
    ):
        with pytest.raises(SystemExit):
            main([*TINY, "--activation-format", *arguments])
        assert message in capsys.readouterr().err


def test_several_shapes_are_measured_one_after_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    results = bench("--shape", "G,mixtral", "--tokens", "2", capsys=capsys)["results"]
    assert [result["shape"]["activation"] for result in results] == ["swigluoai", "silu"]
    assert [result["shape"]["name"] for result in results] == ["custom", "custom"]


def test_isa_is_the_one_that_computes(isa: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = next(table for table in config._TABLES if table.name == isa)
    if not table.automatic:
        pytest.skip(f"{isa} is no public instruction set")
    (result,) = bench("--isa", table.isa, "--tokens", "2", capsys=capsys)["results"]
    with config.use_isa(table.isa):
        kernels = config._TABLES[config.active_kernels()].name
    assert result["contenders"] == [{"name": table.isa, "isa": table.isa, "kernels": kernels}]


def test_routing_of_a_cell_does_not_depend_on_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    def nbytes(*arguments: str) -> list[float]:
        cells = bench(*arguments, capsys=capsys)["results"][0]["cells"]
        calls: list[float] = cells[-1]["call_bytes"][: measure.MIN_CALLS]
        return calls

    assert nbytes("--tokens", "2") == nbytes("--tokens", "1,2", "--peers", "numpy")


def test_plot_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "roofline.png"
    assert main([*TINY, "--tokens", "1,9", "--peers", "numpy", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_plot_names_what_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    def result(name: str, tokens: int) -> dict[str, Any]:
        rows = [
            {"contender": contender, "tokens": n, "flops": 1e9 * n, "call_seconds": [s], "call_bytes": [2e8]}
            for contender, s in (("avx2", 0.01), ("portable", 0.1), ("numpy", 1.0))
            for n in (1, tokens)
        ]
        peaks = {"avx2": 1.25e12, "portable": 3e10}
        shape = vars(problem.SHAPES[name])
        return {"shape": shape, "cells": rows, "peak_flop_per_s": peaks, "read_bytes_per_s": 3.2e10}

    figures: list[Figure] = []
    save = Figure.savefig

    def recorded(self: Figure, *args: Any, **how: Any) -> None:
        figures.append(self)
        save(self, *args, **how)

    monkeypatch.setattr(Figure, "savefig", recorded)
    results = [result("gpt-oss-20b", 19), result("qwen3-30b-a3b-fp8", 23)]
    plot.save(results, plot.title(3), io.BytesIO(), "png")
    texts = [text.get_text().strip() for text in figures[0].findobj(Text) if text.get_visible()]
    assert f"{plot._cpu_name()}, 3 threads" in texts
    assert {"TFLOP/s", "FLOPs per byte of weights", "avx2", "portable", "numpy"} <= set(texts)
    assert {"gpt-oss-20b, mxfp4", "qwen3-30b-a3b-fp8, fp8_block"} <= set(texts)
    assert (texts.count("19"), texts.count("23")) == (3, 3)  # of each contender
    assert {"avx2: 1.25 TFLOP/s", "portable: 0.03 TFLOP/s", "reads 32 GB/s"} <= set(texts)
    assert {"0.01", "0.1", "10"} <= set(texts)  # ticks
    assert not any("$" in text for text in texts)
    assert plot.title(1).endswith(", 1 thread")


@pytest.mark.parametrize("name", ["-", "figure", "figure.xyz"])
def test_plot_of_unknown_kind_is_refused_at_once(capsys: pytest.CaptureFixture[str], name: str) -> None:
    pytest.importorskip("matplotlib")
    assert main([*TINY, "--tokens", "1", "--plot", name]) == 1
    assert f"--plot {name}: expected a name that ends in .png or " in capsys.readouterr().err


def test_json_replaces_a_file_when_it_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    monkeypatch.setattr(json, "dumps", lambda *_, **__: "\udc80")  # cannot be encoded
    assert main([*TINY, "--tokens", "1", "--json", str(path)]) == 1
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_peer_that_cannot_compute_a_shape_is_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("expected a multiple of 32 as hidden_size, got 16")

    monkeypatch.setattr(contenders.NumpyPeer, "__init__", refuse)
    assert main([*TINY, "--tokens", "1", "--peers", "numpy"]) == 0
    assert "left out: numpy: expected a multiple of 32 as hidden_size, got 16" in capsys.readouterr().err


def test_plot_needs_matplotlib(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main([*TINY, "--tokens", "1", "--plot", str(tmp_path / "a.png")]) == 1
    assert "a.png: the package matplotlib is not installed" in capsys.readouterr().err
    assert "mxfp4moe[bench]" in plot.unusable("a.png")


def test_peers_that_are_not_installed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main([*TINY, "--tokens", "1", "--peers", "onnxruntime"]) == 1
    assert "--peers onnxruntime: the package onnxruntime is not installed" in capsys.readouterr().err
    assert main([*TINY, "--tokens", "1", "--peers", "all"]) == 0
    out, err = capsys.readouterr()
    assert "left out: onnxruntime: the package onnxruntime is not installed" in err
    assert re.search(r"^ +1 +numpy ", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "H"], "argument --shape: expected gpt-oss-20b, "),
        (["--shape", ""], "argument --shape: expected names with commas between them, got ''"),
        (["--tokens", "0"], "argument --tokens: expected an integer of at least 1, got 0"),
        (["--tokens", "1,two"], "argument --tokens: invalid integer value: '1,two'"),
        (["--threads", "0"], "argument --threads: expected an integer in [1, 1024], got 0"),
        (["--threads", "1025"], "argument --threads: expected an integer in [1, 1024], got 1025"),
        (["--top-k", "-1"], "argument --top-k: expected an integer of at least 1, got -1"),
        (["--isa", "avx1024"], "argument --isa: expected portable"),
        (["--peers", "scipy"], "argument --peers: expected numpy, onnxruntime or llama.cpp, got 'scipy'"),
        (["--routing", "cold"], "argument --routing: invalid choice: 'cold'"),
        (["--seconds", "0"], "argument --seconds: expected a number of at least 1e-06, got 0"),
        (["--seconds", "nan"], "argument --seconds: expected a number of at least 1e-06, got nan"),
        (["--seconds", "long"], "argument --seconds: invalid number value: 'long'"),
        (["--seed", "-1"], "argument --seed: expected an integer of at least 0, got -1"),
    ],
)
def test_wrong_usage_is_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["bench", *arguments])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden-size", "65"], "hidden_size: expected a multiple of 32 in mxfp4, got 65"),
        (["--num-experts", "1"], "top_k: expected at most num_experts = 1, got 2"),
        (
            ["--json", "/nowhere/a.json"],
            "--json: expected a file in a folder that can be written to, got '/no",
        ),
        (["--json", ""], "--json: expected a file in a folder that can be written to, got ''"),
        (["--json", "/"], "--json: expected a file in a folder that can be written to, got '/'"),
        (
            ["--plot", "/nowhere/a.png"],
            "--plot: expected a file in a folder that can be written to, got '/no",
        ),
        (["--json", "a.png", "--plot", "a.png"], "--plot: expected another file than --json, got 'a.png'"),
        (
            ["--hidden-size", "32000000", "--intermediate-size", "32000000"],
            "memory: expected room for 2 experts",
        ),
    ],
)
def test_user_error_is_one_line_and_status_1(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([*TINY, "--tokens", "1", *arguments]) == 1
    out, err = capsys.readouterr()
    assert message in err
    assert err.count("\n") == 1
    assert "roofline" not in out


def test_wrong_results_are_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = contenders.fused_experts
    monkeypatch.setattr(contenders, "fused_experts", lambda *args, **options: 1.1 * compute(*args, **options))
    assert main([*TINY, "--tokens", "1", "--peers", "numpy"]) == 1
    message = (
        r"error: custom, mxfp4, numpy, 1 tokens: relative L2 difference 9\.\de-02 from \w+, "
        r"expected at most 0\.05"
    )
    assert re.search(message, capsys.readouterr().err)


def test_module_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mxfp4moe", *TINY, "--tokens", "1"], capture_output=True, text=True, check=True
    )
    assert "share" in done.stdout


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_inner_loop_builds_and_runs() -> None:
    unoptimized = {**os.environ, "CXXFLAGS": "-O0"}  # builds in a fraction of the time
    subprocess.run(
        ["bash", "bench/build.sh", "portable"], cwd=ROOT, check=True, capture_output=True, env=unoptimized
    )
    program = str(ROOT / "build" / "panel_cycles_portable")

    def lines(*arguments: str) -> list[list[str]]:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=True)
        return [line.split() for line in done.stdout.splitlines()]

    header, *rows = lines("1")
    assert header[:2] == ["format", "tokens"]
    # As they are numbered in the packed layout.
    names = ["mxfp4", "nvfp4", "mxfp8-e4m3", "mxfp8-e5m2", "fp8_block", "bf16"]
    names += ["int4", "int4-zeros", "int8", "int8-zeros", "int4-offsets", "int8-offsets"]
    assert [row[:2] for row in rows] == [[name, "1"] for name in names]
    assert [row[:2] for row in lines("3", "nvfp4", "40")[1:]] == [["nvfp4", "3"], ["nvfp4", "40"]]
    for wrong in ("0", "129", "1x", "fp4"):
        failed = subprocess.run([program, wrong], capture_output=True, text=True, check=False)
        assert failed.returncode == 1
        assert f"expected tokens from 1 to 128 or a format, got {wrong}\n" in failed.stdout
