"""The command line: results, exit status, one-line errors, and nothing left behind."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from packed_examples import make_layer

import mxfp4moe as mx
from mxfp4moe._progress import ProgressBar
from mxfp4moe.cli import _roofline, _scratch, _synthetic, main
from mxfp4moe.cli._text import table
from mxfp4moe.formats import FORMATS

SMALL = ["demo", "--hidden-size", "256", "--intermediate-size", "128", "--num-experts", "6", "--top-k", "2"]
SMALL += ["--tokens", "20", "--steps", "4"]
COMMAND = [sys.executable, "-m", "mxfp4moe"]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made, in this process and in those that it starts."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_info_prints_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    mx.show_config()
    assert printed == capsys.readouterr().out
    assert mx.active_isa() in printed


def test_module_runs_the_command() -> None:
    done = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"mxfp4moe {mx.__version__}\n"
    assert done.stderr == ""


def unwrapped(text: str) -> str:
    """The text in one line."""
    return " ".join(text.split())


def test_demo_computes_checks_and_cleans_up(temporary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SMALL) == 0
    printed, err = capsys.readouterr()
    assert max(map(len, printed.splitlines())) <= max(80, len(str(temporary)) + 60)
    out = unwrapped(printed)
    size = _synthetic.SyntheticCheckpoint(_synthetic.GptOssShape(256, 128, 6, 2), 0).nbytes / 1e6
    assert f"Writing a one-layer gpt-oss checkpoint: {size:.1f} MB in {temporary}" in out
    assert "num_experts=6, top_k=2, hidden_size=256, intermediate_size=128" in out
    assert re.search(
        rf"Machine: {mx.active_isa()}, \d+ threads, reads up to [\d.]+ GB/s, computes up to [\d.]+ TFLOP/s",
        out,
    )
    assert re.search(r"^prefill +20 +3( +[\d.]+){4} +\d+ % +\d+ %$", printed, re.MULTILINE)
    assert re.search(r"^decode +1 +4( +[\d.]+){4} +\d+ % +\d+ %$", printed, re.MULTILINE)
    assert re.search(
        r"Check of 4 tokens .* relative L2 error \d\.\d\de-03, at most 2.6e-03 allowed: correct", out
    )
    assert f"100 % of {size:.1f} MB" in err
    assert list(temporary.iterdir()) == []


def test_demo_keeps_a_checkpoint_that_it_can_take_again(
    temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, "--keep", "--seed", "3", "--threads", "1"]) == 0
    kept = re.search(r"^Kept (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert kept is not None
    folder = Path(kept[1])
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert mx.MoELayer.from_checkpoint(folder).top_k == 2
    assert main(["demo", "--checkpoint", str(folder), "--layer", "0", "--tokens", "5", "--steps", "2"]) == 0
    out, err = capsys.readouterr()
    assert "Writing" not in out
    assert "correct" in out
    assert err == ""
    assert folder.is_dir()


def test_demo_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    contents = []
    for number, seed in enumerate((5, 5, 6)):
        folder = tmp_path / str(number)
        folder.mkdir()
        shape = _synthetic.GptOssShape(64, 32, 3, 2)
        _synthetic.SyntheticCheckpoint(shape, seed).write(folder, lambda num_bytes: None)
        contents.append([path.read_bytes() for path in sorted(folder.iterdir())])
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


@pytest.mark.parametrize("sizes", [(2880, 2880, 2), (256, 1024, 4), (64, 32, 8)])
def test_demo_results_are_of_order_one(
    tmp_path: Path, rng: np.random.Generator, sizes: tuple[int, int, int]
) -> None:
    hidden_size, intermediate_size, num_experts = sizes
    shape = _synthetic.GptOssShape(hidden_size, intermediate_size, num_experts, 2)
    _synthetic.SyntheticCheckpoint(shape, 0).write(tmp_path, lambda num_bytes: None)
    layer = mx.MoELayer.from_checkpoint(tmp_path)
    result = layer(rng.standard_normal((16, hidden_size), np.float32))
    assert 0.2 < np.sqrt(np.mean(result**2)) < 10


@pytest.mark.parametrize("seed", range(8))
def test_few_numbers_are_judged_by_the_roundings_of_the_contract(temporary: Path, seed: int) -> None:
    sizes = ["--hidden-size", "32", "--intermediate-size", "32", "--num-experts", "1", "--top-k", "1"]
    assert main(["demo", *sizes, "--tokens", "1", "--steps", "1", "--seed", str(seed)]) == 0


def test_second_interrupt_does_not_stop_the_removal(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, num_bytes: int) -> None:
        raise KeyboardInterrupt

    def remove(folder: Path) -> None:
        signal.raise_signal(signal.SIGINT)
        rmtree(folder)

    rmtree = _scratch.shutil.rmtree
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(ProgressBar, "advance", fail)
    monkeypatch.setattr(_scratch.shutil, "rmtree", remove)
    try:
        assert main(SMALL) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(temporary.iterdir()) == []


def test_wrong_results_are_reported(
    temporary: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = mx.MoELayer.__call__
    monkeypatch.setattr(mx.MoELayer, "__call__", lambda *args, **options: 1.01 * compute(*args, **options))
    assert main(SMALL) == 1
    out = unwrapped(capsys.readouterr().out)
    assert re.search(r"relative L2 error 1\.\d\de-02, at most 2\.\de-03 allowed: WRONG", out)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["nothing"], "invalid choice: 'nothing'"),
        (["info", "--keep"], "unrecognized arguments: --keep"),
        (["demo", "--tokens", "0"], "argument --tokens: expected an integer of at least 1, got 0"),
        (["demo", "--threads", "1025"], "argument --threads: expected an integer in [1, 1024], got 1025"),
        (["demo", "--steps", "-1"], "argument --steps: expected an integer of at least 1, got -1"),
        (["demo", "--threads", "two"], "argument --threads: invalid integer value: 'two'"),
        (["demo", "--layer", "1"], "--layer needs --checkpoint"),
        (["demo", "--checkpoint", "x", "--keep"], "--keep applies to the checkpoint that is written"),
        (["demo", "--checkpoint", "x", "--top-k", "2"], "--top-k applies to the checkpoint that is written"),
    ],
)
def test_wrong_usage_is_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden-size", "65"], "hidden_size: expected a multiple of 32, got 65"),
        (["--num-experts", "3"], "top_k: expected at most num_experts = 3, got 4"),
        (["--checkpoint", "/nowhere"], "/nowhere: expected a model folder, got nothing at that path"),
        (["--hidden-size", "320000000", "--intermediate-size", "320000000"], "MB of free space, got "),
    ],
)
def test_user_error_is_one_line_and_status_1(
    temporary: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["demo", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mxfp4moe: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert list(temporary.iterdir()) == []


def test_full_disk_is_noticed_before_writing(
    temporary: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(_scratch.shutil, "disk_usage", lambda path: usage(10**9, 0, 400 * 10**6))
    assert main(["demo"]) == 1
    assert "expected 423.8 MB of free space, got 400.0 MB" in capsys.readouterr().err
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()]
)
def test_failure_while_writing_leaves_nothing_behind(
    temporary: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(self: Any, num_bytes: int) -> None:
        assert any(temporary.glob("*/.model*"))
        raise error

    monkeypatch.setattr(ProgressBar, "advance", fail)
    status = main(SMALL)
    assert status == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert capsys.readouterr().err.count("\n") == 1
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signal_ends_the_demo_cleanly(temporary: Path, number: signal.Signals, status: int) -> None:
    # This process may have been started with SIGINT or SIGHUP ignored, which children inherit.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "signal.signal(signal.SIGHUP, signal.SIG_DFL); "
    code += "from mxfp4moe.cli import main; sys.exit(main())"
    endless = [sys.executable, "-c", code, *SMALL, "--steps", "20000"]
    with subprocess.Popen(endless, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Loaded"):
                break
        assert len(list(temporary.iterdir())) == 1
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in err
    assert ("interrupted" in err) == (number == signal.SIGINT)
    assert list(temporary.iterdir()) == []


def test_reader_that_has_gone_is_no_complaint() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(
            [*COMMAND, "info"], stdout=write_end, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(write_end)
    assert done.returncode == 1
    assert done.stderr == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    progress = ProgressBar("writing", 8_000_000)
    for _ in range(8):
        progress.advance(1_000_000)
    shown = sys.stderr.getvalue()
    assert shown.count("\r") == 8
    assert shown.count("\n") == 1
    assert shown.endswith(f"100 % of 8.0 MB [{'#' * 40}]\n")
    assert f"\rwriting  50 % of 8.0 MB [{'#' * 20}{' ' * 20}]" in shown


def test_progress_is_a_few_lines_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressBar("writing", 1000)
    for _ in range(1000):
        progress.advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"writing {percent:3d} % of 0.0 MB" for percent in (25, 50, 75, 100)]


def test_roofline_counts_distinct_experts_and_flops(tmp_path: Path, rng: np.random.Generator) -> None:
    shape = _synthetic.GptOssShape(64, 32, 6, 2)
    _synthetic.SyntheticCheckpoint(shape, 0).write(tmp_path, lambda num_bytes: None)
    layer = mx.MoELayer.from_checkpoint(tmp_path)
    roofline = _roofline.Roofline(layer.experts, num_threads=1)
    batches = [rng.standard_normal((m, 64), np.float32).astype(ml_dtypes.bfloat16) for m in (1, 3, 50)]
    measured = _roofline.measure(layer, roofline, batches)
    assert [len(result) for result in measured.results] == [1, 3, 50]
    for call, batch in zip(measured.calls, batches, strict=True):
        num_distinct = len(set(layer.route(batch)[1].ravel().tolist()))
        assert call.nbytes == num_distinct * 3 * 64 * 32 * 17 / 32  # 4.25 bits a weight
        assert call.flops == 2 * len(batch) * 2 * 3 * 64 * 32
        assert call.seconds > 0
    assert len(measured.speeds) == 3
    assert min(min(speed) for speed in measured.speeds) > 0


def test_share_is_of_the_tighter_limit() -> None:
    slow, fast = _roofline.Speed(bandwidth=1.0, peak=10.0), _roofline.Speed(bandwidth=2.0, peak=5.0)
    memory_bound = _roofline.Call(seconds=8.0, nbytes=4.0, flops=10.0)
    compute_bound = _roofline.Call(seconds=2.0, nbytes=1.0, flops=15.0)
    assert memory_bound.share(slow) == 0.5
    assert compute_bound.share(slow) == 0.75
    assert _roofline.best_speed([slow, fast]) == (2.0, 10.0)
    run = _roofline.Run([], [], [memory_bound, compute_bound, memory_bound], [slow, slow, fast])
    assert run.typical == memory_bound
    assert run.shares(slow) == (0.5, 0.75)
    assert run.shares(fast) == (0.25, 1.5)


def test_roofline_counts_shared_experts(rng: np.random.Generator) -> None:
    layer = make_layer(rng, "deepseek v4")
    shared = layer.shared_experts
    assert shared is not None
    batch, ids = rng.standard_normal((3, layer.hidden_size), np.float32), np.array([0, 1, 3])
    (call,) = _roofline.measure(
        layer, _roofline.Roofline(layer.experts, 1), [batch], [{"input_ids": ids}]
    ).calls
    num_distinct = len(set(layer.route(batch, ids)[1].ravel().tolist()))

    def nbytes(experts: mx.PackedExperts) -> float:
        format, sizes = FORMATS[experts.format], (experts.hidden_size, experts.intermediate_size)
        gate_or_up, down = (format.nbytes(*s, experts.block_shape) for s in (sizes[::-1], sizes))
        return 2 * gate_or_up + down

    assert call.nbytes == num_distinct * nbytes(layer.experts) + nbytes(shared)
    slots = 3 * (layer.top_k * layer.intermediate_size + shared.intermediate_size)
    assert call.flops == 2 * 3 * layer.hidden_size * slots


def test_share_above_the_roofline_is_explained() -> None:
    assert _roofline.explain_shares([0.2, 1.0, 1.004]) == ""
    assert "above 100 %" in _roofline.explain_shares([0.2, 1.006])


def test_table_fits_80_columns() -> None:
    columns = {
        "layer": ["0", "11"],
        "routing": ["topk(" + ", ".join(["renormalize=True"] * 8) + ")", "short"],
    }
    lines = table(columns, numbers=["layer"]).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "layer  routing"
    assert lines[1].startswith("    0  topk(renormalize=True, ")
    assert lines[2].startswith("       renormalize=True, ")
    assert lines[-1] == "   11  short"
    narrow = table({"a": ["1"], "b": ["two words"]})
    assert narrow == "a  b\n1  two words"
