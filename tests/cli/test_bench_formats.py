"""``mxfp4moe bench`` in every weight format, and the table that bench/format_table.py makes of it."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from format_problems import dequantized
from paths import ROOT

import mxfp4moe as mx
from mxfp4moe import _core, reference
from mxfp4moe.cli import _roofline, main
from mxfp4moe.cli import bench as command
from mxfp4moe.cli._bench import contenders, llama_cpp_peer, memory, problem, report
from mxfp4moe.formats import FORMATS

TINY = [
    *("bench", "--hidden-size", "96", "--intermediate-size", "64", "--num-experts", "6", "--top-k", "2"),
    *("--seconds", "0.02", "--threads", "1"),
]
RAGGED = ("fp8_block", "bf16")  # formats of any K and I


def shape_in(format: str, hidden: int = 96, intermediate: int = 64, **options: Any) -> problem.Shape:
    """A layer of 5 experts."""
    return problem.Shape("tiny", hidden, intermediate, 5, 3, format=format, **options)


def arrays_of(arrays: reference.ExpertArrays) -> list[np.ndarray]:
    """Everything but biases."""
    parts = [arrays.w13, arrays.w13_scales, arrays.w2, arrays.w2_scales]
    return [a for a in (*parts, arrays.w13_tensor_scale, arrays.w2_tensor_scale) if a is not None]


# ---- the command ----


@pytest.mark.parametrize("routing", problem.ROUTINGS)
def test_every_format_with_every_routing(routing: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--format", "all", "--tokens", "1,5", "--peers", "numpy", "--routing", routing]
    assert main([*TINY, *arguments, "--json", "-"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [result["shape"]["format"] for result in results] == list(FORMATS)
    for result in results:
        assert [row["contender"] for row in result["cells"]] == [mx.active_isa(), "numpy"] * 2
        for row in result["cells"]:
            assert row["difference"] <= report.DIFFERENT
            distinct = np.array(row["call_bytes"]) / result["expert_bytes"]
            assert np.array_equal(distinct, distinct.round())
            # One token has two distinct experts; with a hot expert five tokens have two at least.
            assert distinct.min() >= 2
            assert distinct.max() <= min(6, 2 * row["tokens"])


def test_plot_of_several_formats(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "roofline.png"
    assert main([*TINY, "--format", "nvfp4,bf16", "--tokens", "1", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_format_is_the_shapes_own_or_the_one_asked_for() -> None:
    def shapes(*arguments: str) -> list[tuple[str, str, int]]:
        return [(s.name, s.format, s.num_experts) for s in command._shapes(parse(*arguments))]

    qwen3 = [("qwen3-30b-a3b-fp8", "fp8_block", 128), ("qwen3-30b-a3b", "mxfp4", 128)]
    for names in ("qwen3-30b-a3b-fp8,qwen3-30b-a3b", "F,Q", "f,Qwen3-30B", "Qwen3-30B-FP8,F,Q"):
        assert shapes("--shape", names) == qwen3
    assert shapes("--shape", "G", "--format", "bf16", "--experts", "8") == [("gpt-oss-20b", "bf16", 8)]
    both = shapes("--shape", "G,mixtral", "--format", "mxfp8,nvfp4", "--top-k", "1")
    assert both == [("custom", f, e) for e in (32, 8) for f in ("mxfp8", "nvfp4")]
    assert problem.SHAPES["qwen3-30b-a3b-fp8"].block_shape == (128, 128)
    names = ("qwen3-30b-a3b-fp8", "qwen3-30b-a3b")
    sizes = [replace(problem.SHAPES[name], name="", format="mxfp4") for name in names]
    assert sizes[0] == sizes[1]


def parse(*arguments: str) -> Any:
    """Parsed arguments of the subcommand."""
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    return parser.parse_args(["bench", *arguments])


def test_unknown_format_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["bench", "--format", "int3"])
    assert exit_info.value.code == 2
    assert "argument --format: expected mxfp4, " in capsys.readouterr().err


@pytest.mark.parametrize(("format", "multiple"), [("mxfp4", 32), ("mxfp8", 32), ("nvfp4", 16)])
def test_sizes_are_multiples_of_the_format(format: str, multiple: int) -> None:
    message = f"hidden_size: expected a multiple of {multiple} in {format}, got {multiple + 8}"
    with pytest.raises(ValueError, match=message):
        shape_in(format, hidden=multiple + 8)


def test_peer_without_the_format_is_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contenders.NumpyPeer, "formats", ("bf16",))
    assert main([*TINY, "--format", "bf16,mxfp8", "--tokens", "1", "--peers", "numpy"]) == 0
    out, err = capsys.readouterr()
    assert "custom, mxfp8: left out: numpy, which does not know the format\n" in err
    assert len(re.findall(r"^ +1 +numpy ", out, re.MULTILINE)) == 1
    assert set(contenders.OnnxruntimePeer.formats) == {"mxfp4", "nvfp4"}


def test_memory_is_estimated_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 10 * 10**9)
    flash = problem.SHAPES["deepseek-v4-flash"]
    assert command._plan(flash, [], 1).shape.num_experts == 256  # twice 3.4 GB
    assert capsys.readouterr().err == ""
    plan = command._plan(replace(flash, format="bf16"), [], 1)
    assert 6 <= plan.shape.num_experts < 256
    assert plan.wanted_experts == 256
    assert plan.nbytes == 2 * plan.shape.num_experts * 3 * 4096 * 2048 * 2 < 10 * 10**9
    message = f"deepseek-v4-flash, bf16: {plan.shape.num_experts} experts instead of 256, for 10.0 GB"
    assert message in capsys.readouterr().err

    # The second layer has no room: the first one is not measured in vain.
    monkeypatch.setattr(memory, "available_memory", lambda: 4 * 10**9)
    assert main(["bench", "--shape", "F,mixtral", "--format", "bf16", "--tokens", "1"]) == 1
    out, err = capsys.readouterr()
    assert "roofline" not in out
    assert "memory: expected room for 2 experts of mixtral-8x7b, bf16, got 4.0 GB, enough for" in err


# ---- weights ----


@pytest.mark.parametrize("format", FORMATS)
def test_random_weights_are_ordinary_numbers_and_results_of_order_1(
    format: str, rng: np.random.Generator
) -> None:
    shape = shape_in(format, 512, 256)
    arrays = problem.random_arrays(shape, rng)
    w13, w2 = (dequantized(arrays)[name] for name in ("w13", "w2"))
    assert np.isfinite(w13).all()
    for w, columns in ((w13, 512), (w2, 256)):
        rms = np.sqrt((w**2).mean())
        assert 1 < rms * np.sqrt(columns) < 2.4  # 1.6, which a power of two may miss by sqrt(2)
        assert abs(w.mean()) < 6 * rms / np.sqrt(w.size)  # both signs
        assert len(np.unique(np.abs(w[0, 0]))) >= 8
    for codes in (arrays.w13, arrays.w2):
        if codes.dtype.itemsize == 1 and codes.dtype not in (np.uint8, np.int8):
            assert ((codes.view(np.uint8) & 0x78) != 0).all()  # no subnormal
    router = problem.Router(shape, "uniform", rng)
    batch = router.draw(router.hidden_states(20))
    result = reference.fused_experts_float64(*batch[:1], arrays, *batch[1:])
    assert 0.1 < np.sqrt((result**2).mean()) < 10


@pytest.mark.parametrize("format", FORMATS)
def test_bytes_of_the_roofline_are_those_of_the_checkpoint(format: str, rng: np.random.Generator) -> None:
    shape = shape_in(format, 256, 384, has_bias=True)
    arrays = problem.random_arrays(shape, rng)
    assert 5 * shape.expert_bytes == sum(a.nbytes for a in arrays_of(arrays))
    packed = problem.pack(shape, arrays)
    assert packed.nbytes > 5 * shape.expert_bytes
    assert packed.spec.expert_bytes == shape.expert_bytes


def test_bytes_of_an_expert() -> None:
    weights = 3 * 2880 * 2880
    sizes = {format: replace(problem.SHAPES["gpt-oss-20b"], format=format).expert_bytes for format in FORMATS}
    assert sizes["mxfp4"] == weights * 4.25 / 8
    assert sizes["mxfp8"] == weights * 8.25 / 8
    assert sizes["nvfp4"] == weights * 4.5 / 8 + 3 * 4
    assert sizes["fp8_block"] == weights + 3 * 23 * 23 * 4  # 2880 = 22.5 * 128
    assert sizes["bf16"] == 2 * weights
    assert sizes["int4"] == weights * 4.5 / 8
    assert sizes["int8"] == weights * 8.5 / 8
    assert replace(problem.SHAPES["qwen3-30b-a3b"], format="int4", group_size=128).expert_bytes == (
        3 * 2048 * 768 * 4.125 / 8
    )
    assert FORMATS["fp8_block"].nbytes(20, 30, (None, 32)) == 600 + 4
    assert FORMATS["fp8_block"].nbytes(20, 30, (1, None)) == 600 + 80


def test_demo_counts_the_same_bytes(rng: np.random.Generator) -> None:
    shape = shape_in("mxfp4", 64, 32)
    layer = mx.MoELayer(
        problem.pack(shape, problem.random_arrays(shape, rng)),
        rng.standard_normal((5, 64), np.float32),
        top_k=3,
    )
    hidden = rng.standard_normal((1, 64), np.float32)
    run = _roofline.measure(layer, _roofline.Roofline(layer.experts, 1), [hidden])
    assert run.calls[0].nbytes == 3 * shape.expert_bytes


# ---- contenders ----


def problems() -> list[problem.Shape]:
    """Every format, with sizes that are no multiples of a block where the format takes them."""
    even = [shape_in(format, 96, 64, has_bias=True) for format in FORMATS]
    return even + [shape_in(format, 150, 140) for format in RAGGED]


@pytest.mark.parametrize("name", contenders.PEERS)
@pytest.mark.parametrize("shape", problems(), ids=lambda s: f"{s.format}-{s.hidden_size}")
def test_peers_compute_the_reference(name: str, shape: problem.Shape, rng: np.random.Generator) -> None:
    peer = contenders.PEERS[name]
    if peer.missing() or shape.format not in peer.formats:
        pytest.skip(peer.missing() or "another format")
    arrays = problem.random_arrays(shape, rng)
    router = problem.Router(shape, "uniform", rng)
    batch = router.draw(router.hidden_states(7))
    expected = reference.fused_experts_float64(*batch[:1], arrays, *batch[1:])
    result = peer(shape, arrays, 1).prepare(batch)()
    error = np.linalg.norm(result - expected) / np.linalg.norm(expected)
    if name == "numpy":
        # float32 throughout: sums of at most 150 + 150 terms, errors of 2**-24 each, relative to sums of
        # magnitudes that are at most about sqrt(150) times the result.
        assert error < 300 * 13 * 2.0**-24
    else:
        assert error < report.DIFFERENT
    ours = contenders.Ours(mx.active_isa(), shape, problem.pack(shape, arrays), 1).prepare(batch)()
    # Two roundings to bfloat16.
    assert np.linalg.norm(ours - expected) / np.linalg.norm(expected) < 2 * 2.0**-8


def test_onnxruntime_has_one_tensor_scale_for_gate_and_up(rng: np.random.Generator) -> None:
    if contenders.OnnxruntimePeer.missing():
        pytest.skip(contenders.OnnxruntimePeer.missing())
    shape = shape_in("nvfp4")
    arrays = problem.random_arrays(shape, rng)
    assert arrays.w13_tensor_scale is not None
    arrays.w13_tensor_scale[2, 1] *= 2
    with pytest.raises(ValueError, match="expected the same w13_tensor_scale for gate and up"):
        contenders.OnnxruntimePeer(shape, arrays, 1)


@pytest.mark.parametrize("library", ["/nowhere/libggml.so", None])
def test_llama_cpp_with_another_library(library: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp_peer, "_library", lambda: library or _core.__file__)
    with pytest.raises(ValueError, match=r"llama\.cpp: expected a libggml that has MXFP4, got: /"):
        llama_cpp_peer._load.__wrapped__()


def test_llama_cpp_has_graphs_of_a_limited_size(rng: np.random.Generator) -> None:
    shape = problem.Shape("many", 32, 32, 501, 501)
    with pytest.raises(ValueError, match=r"llama\.cpp: expected top_k of at most 500, got 501"):
        contenders.LlamaCppPeer(shape, problem.random_arrays(shape, rng), 1)


# ---- bench/format_table.py ----


def test_format_table_of_the_figures() -> None:

    def row(contender: str, tokens: int, ms: float, share: float) -> dict[str, Any]:
        return {"contender": contender, "tokens": tokens, "best_ms": ms, "share_of_roofline": share}

    def result(format: str, expert_bytes: int, scale: float) -> dict[str, Any]:
        cells = [
            row(name, tokens, scale * tokens * speed, 0.5)
            for tokens in (1, 64)
            for name, speed in (("avx2", 0.25), ("numpy", 20.0))
        ]
        shape = {"hidden_size": 64, "intermediate_size": 32, "num_experts": 4, "top_k": 2, "format": format}
        names = [{"name": "avx2"}, {"name": "numpy"}]
        return {"shape": shape, "expert_bytes": expert_bytes, "contenders": names, "cells": cells}

    figures = {
        "threads": 2,
        "routing": "zipf",
        "results": [result("mxfp4", 3264, 1), result("bf16", 12288, 4)],
    }
    done = subprocess.run(
        [sys.executable, "bench/format_table.py"],
        input=json.dumps(figures),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    sizes = "hidden_size 64, intermediate_size 32, 4 experts, top_k 2, zipf routing"
    assert done.stdout.split("\n")[:14] == [
        f"{sizes}, avx2, 2 threads:",
        "",
        "| format | bytes per weight | 1 token | 64 tokens |",
        "|---|---|---|---|",
        "| `mxfp4` | 0.5312 | 0.250 ms (50 %) | 16.0 ms (50 %) |",
        "| `bf16` | 2.0000 | 1.00 ms (50 %) | 64.0 ms (50 %) |",
        "",
        f"{sizes}, numpy, 2 threads:",
        "",
        "| format | bytes per weight | 1 token | 64 tokens |",
        "|---|---|---|---|",
        "| `mxfp4` | 0.5312 | 20.0 ms (50 %) | 1280 ms (50 %) |",
        "| `bf16` | 2.0000 | 80.0 ms (50 %) | 5120 ms (50 %) |",
        "",
    ]
