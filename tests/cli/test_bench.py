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
from paths import ROOT

import mxfp4moe as mx
from mxfp4moe import _core, config, reference
from mxfp4moe.cli import main
from mxfp4moe.cli._bench import contenders, measure, memory, plot, problem, report
from mxfp4moe.cli._roofline import Call

TINY_SIZES = ["--hidden-size", "96", "--intermediate-size", "64", "--num-experts", "6", "--top-k", "2"]
TINY = ["bench", *TINY_SIZES, "--seconds", "0.02", "--threads", "1"]
TINY_SHAPE = problem.Shape("tiny", 96, 64, 6, 2, "swigluoai", limit=7.0, has_bias=True)


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


# ---- problems ----


def test_shapes_are_those_of_the_models() -> None:
    sizes = {
        name: (shape.hidden_size, shape.intermediate_size, shape.num_experts, shape.top_k, shape.activation)
        for name, shape in problem.SHAPES.items()
    }
    assert sizes["gpt-oss-20b"] == (2880, 2880, 32, 4, "swigluoai")
    assert sizes["gpt-oss-120b"] == (2880, 2880, 128, 4, "swigluoai")
    assert sizes["qwen3-30b-a3b"] == sizes["qwen3-30b-a3b-fp8"] == (2048, 768, 128, 8, "silu")
    assert sizes["deepseek-v4-flash"] == (4096, 2048, 256, 6, "silu")
    assert sizes["mixtral-8x7b"] == (4096, 14336, 8, 2, "silu")
    assert problem.SHAPES["deepseek-v4-flash"].limit == 10
    assert problem.SHAPES["gpt-oss-20b"].has_bias
    assert not problem.SHAPES["qwen3-30b-a3b"].has_bias


@pytest.mark.parametrize("routing", problem.ROUTINGS)
def test_routing_draws_distinct_experts_and_weights_that_sum_to_one(
    routing: str, rng: np.random.Generator
) -> None:
    shape = problem.Shape("many", 32, 32, 40, 5)
    router = problem.Router(shape, routing, rng)
    hidden = router.hidden_states(2000)
    first, second = router.draw(hidden), router.draw(hidden)
    assert not np.array_equal(first.topk_ids, second.topk_ids)
    for batch in (first, second):
        assert batch.hidden_states is hidden
        assert all(len(set(row)) == 5 for row in batch.topk_ids.tolist())
        np.testing.assert_allclose(batch.topk_weights.sum(axis=1), 1, rtol=1e-6)  # 5 roundings of 2**-24
    counts = np.sort(np.bincount(first.topk_ids.ravel(), minlength=40))[::-1]
    # 10000 slots over 40 experts: 250 each, and no count is as far as 10 standard deviations (160) from it.
    if routing == "uniform":
        assert 90 < counts[-1] <= counts[0] < 410
    elif routing == "hot":
        assert counts[0] == 2000
        assert counts[1] < 410
    else:
        # The chance of rank 1 to be among 5 of 40 draws with chances 1 / rank is above 0.7, that of rank 40
        # below 0.07.
        assert counts[0] > 1300
        assert counts[-1] < 160


def test_arrays_depend_on_the_seed_alone() -> None:
    first, again, other = (
        problem.random_arrays(TINY_SHAPE, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert np.array_equal(first.w13, again.w13)
    assert not np.array_equal(first.w13, other.w13)
    assert first.w13.shape == (6, 128, 48)
    assert first.w2_scales is not None
    assert first.w2_scales.shape == (6, 96, 2)
    assert problem.pack(TINY_SHAPE, first).nbytes >= 6 * TINY_SHAPE.expert_bytes


def test_fewer_experts_where_memory_is_short(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = problem.SHAPES["gpt-oss-20b"]
    assert memory.fit(shape, 2, 10**12, 1) == shape
    cut = memory.fit(shape, 2, 1_500_000_000, 1)
    assert 4 <= cut.num_experts < 32
    assert 2 * cut.num_experts * shape.expert_bytes < 1_500_000_000
    assert memory.fit(shape, 4, 1_500_000_000, 1).num_experts < cut.num_experts
    with pytest.raises(
        ValueError, match=r"memory: expected room for 4 experts of gpt-oss-20b, mxfp4, got 0\.7 GB"
    ):
        memory.fit(shape, 2, 7 * 10**8, 1)
    assert memory.available_memory() > 0
    assert memory.last_cache_bytes() > 0

    monkeypatch.setattr(memory, "fit", lambda *args: TINY_SHAPE)
    assert main([*TINY, "--num-experts", "9", "--tokens", "1"]) == 0
    assert "custom, mxfp4: 6 experts instead of 9" in capsys.readouterr().err


# ---- contenders ----


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
