"""``mxfp4moe inspect``, ``pack`` and ``run``: right results, one-line errors, nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from bfloat16_models import EXPERTS, HIDDEN, LAYERS, TOP_K, write_model
from model_folders import NAMES, load
from packed_examples import make_experts, make_layer

import mxfp4moe as mx
from mxfp4moe._progress import ProgressBar
from mxfp4moe.cli import main

BF16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture
def model(tmp_path: Path, rng: np.random.Generator) -> Path:
    (tmp_path / "model").mkdir()
    write_model(tmp_path / "model", rng, "qwen3_moe")
    return tmp_path / "model"


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error, without the lines of the progress."""
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if " % of " not in line]
    assert len(lines) == 1
    assert lines[0].startswith("mxfp4moe: error: ")
    return lines[0]


# --- inspect ------------------------------------------------------------------------------------------------


def test_inspect_shows_a_model_folder(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == str(model)
    assert "  model type               qwen3_moe" in lines
    assert f"  num experts              {EXPERTS}" in lines
    table = lines[lines.index("") + 1 :]
    assert table[0].split() == ["layer", "format", "MB", "stored", "as", "routing"]
    assert [line.split()[:2] for line in table[1:]] == [[str(n), "bf16"] for n in range(LAYERS)]
    assert all("topk_softmax(renormalize=True)" in line for line in table[1:])
    assert max(map(len, lines[1:])) <= 80


def test_inspect_prints_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["path"] == str(model)
    assert (shown["hidden_size"], shown["num_experts"], shown["top_k"]) == (HIDDEN, EXPERTS, TOP_K)
    nbytes = 2 * EXPERTS * 3 * 32 * HIDDEN
    assert [layer["nbytes"] for layer in shown["layers"]] == [nbytes] * LAYERS
    assert shown["bytes"] == LAYERS * nbytes
    assert "verified_bytes" not in shown


def test_inspect_shows_packed_files(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    make_layer(rng, "minimax").save(tmp_path / "layer")
    make_experts(rng, "fp8_block").save(tmp_path / "experts")
    assert main(["inspect", str(tmp_path / "layer"), "--verify"]) == 0
    out, err = capsys.readouterr()
    assert "topk_sigmoid" in out
    assert "packed bf16" in out
    assert "verified bytes" in out
    assert "verifying 100 %" in err
    assert main(["inspect", str(tmp_path / "experts"), "--verify", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["format"], shown["block_shape"]) == ("fp8_block", [16, 32])
    assert shown["verified_bytes"] == (tmp_path / "experts").stat().st_size


def test_inspect_finds_damage(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    make_experts(rng, "mxfp4").save(tmp_path / "a")
    content = bytearray((tmp_path / "a").read_bytes())
    content[5000] ^= 1
    (tmp_path / "a").write_bytes(content)
    assert main(["inspect", str(tmp_path / "a")]) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "a"), "--verify"]) == 1
    assert f"{tmp_path / 'a'}: expected the checksum" in error_of(capsys)


def test_inspect_errors(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model), "--verify"]) == 1
    assert f"{model}: expected packed files for --verify, got qwen3_moe" in error_of(capsys)
    assert main(["inspect", str(tmp_path / "nothing")]) == 1
    assert "nothing: expected a model folder, got nothing at that path" in error_of(capsys)
    (tmp_path / "text").write_text("hello")
    assert main(["inspect", str(tmp_path / "text")]) == 1
    assert str(tmp_path / "text") in error_of(capsys)


# --- pack ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--quantize", "mxfp4"]])
def test_packed_folder_computes_the_same(
    model: Path,
    tmp_path: Path,
    rng: np.random.Generator,
    options: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "packed"
    assert main(["pack", str(model), str(folder), *options]) == 0
    out, err = capsys.readouterr()
    assert f"{folder}: {LAYERS} layers, " in out
    assert f"packing 100 % of {LAYERS} layers" in err
    assert sorted(path.name for path in folder.iterdir()) == [
        "layer-00000.packed",
        "layer-00001.packed",
        "packed_layers.json",
    ]
    x = rng.standard_normal((5, HIDDEN), np.float32)
    quantize = options[1] if options else None
    for packed, loaded in zip(mx.load_layers(folder), mx.load_layers(model, quantize=quantize), strict=True):
        assert packed.experts == loaded.experts
        assert packed.layer_number == loaded.layer_number
        assert np.array_equal(packed(x), loaded(x))
    assert main(["inspect", str(folder), "--verify"]) == 0
    assert main(["pack", str(model), str(folder)]) == 1
    assert "packed: expected nothing at that path, got a folder" in capsys.readouterr().err
    assert main(["pack", str(model), str(folder), "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == list(range(LAYERS))


@pytest.mark.parametrize("name", ["packed/", "packed/.", "packed/../packed"])
def test_a_folder_is_replaced_whatever_it_is_called(model: Path, tmp_path: Path, name: str) -> None:
    assert main(["pack", str(model), str(tmp_path / "packed")]) == 0
    assert main(["pack", str(model), f"{tmp_path}/{name}", "--force"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "packed"]
    assert len(mx.load_layers(tmp_path / "packed")) == LAYERS


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt(), ValueError("bad")])
def test_failure_of_pack_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(self: Any, amount: float) -> None:
        raise error

    monkeypatch.setattr(ProgressBar, "advance", fail)
    status = main(["pack", str(model), str(tmp_path / "packed")])
    assert status == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_pack_cleanly(model: Path, tmp_path: Path, number: signal.Signals, status: int) -> None:
    code = (
        "import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from mxfp4moe.cli import main; from mxfp4moe._progress import ProgressBar\n"
        "ProgressBar.advance = lambda self, n: (print('working', flush=True), time.sleep(30))\n"
        "sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "pack", str(model), str(tmp_path / "packed")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        assert len(list(tmp_path.iterdir())) == 2
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# --- run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16])
def test_run_computes_a_layer(model: Path, tmp_path: Path, rng: np.random.Generator, dtype: Any) -> None:
    x = rng.standard_normal((2, 3, HIDDEN)).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    expected = mx.MoELayer.from_checkpoint(model, 1)(x)
    assert main(["pack", str(model), str(tmp_path / "packed")]) == 0
    for checkpoint, layer in (
        (model, ["--layer", "1"]),
        (tmp_path / "packed", ["--layer", "1", "--threads", "1"]),
        (tmp_path / "packed" / "layer-00001.packed", []),
    ):
        files = ["--input", str(tmp_path / "x.npy"), "--output", str(tmp_path / "y.npy")]
        assert main(["run", "--checkpoint", str(checkpoint), *layer, *files]) == 0
        y = np.load(tmp_path / "y.npy")
        assert y.dtype == (np.dtype("V2") if dtype == BF16 else dtype)
        assert (y.shape, y.tobytes()) == (expected.shape, expected.tobytes())
        (tmp_path / "y.npy").unlink()


def test_run_takes_token_ids(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = make_layer(rng, "deepseek v4")
    layer.save(tmp_path / "layer")
    x, ids = rng.standard_normal((4, 64), np.float32), np.array([3, 0, 1, 2])
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "ids.npy", ids)
    command = ["run", "--checkpoint", str(tmp_path / "layer"), "--input", str(tmp_path / "x.npy")]
    command += ["--output", str(tmp_path / "y.npy")]
    assert main([*command, "--input-ids", str(tmp_path / "ids.npy")]) == 0
    assert np.array_equal(np.load(tmp_path / "y.npy"), layer(x, ids))
    assert main(command) == 1
    assert f"{tmp_path / 'x.npy'}: input_ids: expected token ids" in error_of(capsys)


def test_run_takes_what_the_router_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load("gemma4")
    folder, inputs = model.write(tmp_path / "model"), model.inputs(np.float32)
    command = ["run", "--checkpoint", str(folder), "--output", str(tmp_path / "y.npy")]
    for option, name in (("--input", "hidden_states"), ("--router-hidden-states", "router_hidden_states")):
        np.save(tmp_path / f"{name}.npy", inputs[name])
        command += [option, str(tmp_path / f"{name}.npy")]
    assert main(command) == 0
    layer = mx.MoELayer.from_checkpoint(folder, model.layer)
    assert np.array_equal(np.load(tmp_path / "y.npy"), layer(**inputs))
    assert main(command[:-2]) == 1
    assert "hidden_states.npy: router_hidden_states: expected the array" in error_of(capsys)


@pytest.mark.parametrize("name", NAMES)
def test_inspect_shows_every_model_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    model = load(name)
    folder = model.write(tmp_path)
    if len(mx.checkpoint.open(folder).moe_layers) > 1:  # of others, the folder has but one layer
        return
    assert main(["inspect", str(folder), "--json"]) == 0
    (layer,) = json.loads(capsys.readouterr().out)["layers"]
    assert layer["layer"] == model.layer
    assert layer["routing"] == mx.checkpoint.read_layer(folder, model.layer).routing_text


def as_pickle(path: Path) -> None:
    np.save(path, np.array([{}], object), allow_pickle=True)


def as_archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, x=np.zeros(3))


WRONG_INPUTS: dict[str, tuple[Any, str]] = {
    "nothing": (lambda path: None, "expected a file, got nothing at that path"),
    "a pipe": (os.mkfifo, "expected a file, got a special file"),
    "empty": (lambda path: path.write_bytes(b""), "expected an array in a .npy file, got"),
    "text": (lambda path: path.write_text("hello"), "expected an array in a .npy file, got"),
    "objects": (as_pickle, "expected an array in a .npy file, got"),
    "an archive": (as_archive, "expected an array in a .npy file, got an archive of arrays"),
    "cut off": (
        lambda path: (np.save(path, np.zeros((9, HIDDEN))), path.write_bytes(path.read_bytes()[:-9])),
        "expected an array in a .npy file, got",
    ),
    "header of nonsense": (
        lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x10\x00((((((((((((((((\n"),
        "expected an array in a .npy file, got",
    ),
    "float64": (
        lambda path: np.save(path, np.zeros((2, HIDDEN))),
        "hidden_states: expected an array of bfloat16",
    ),
    "another size": (
        lambda path: np.save(path, np.zeros((2, 63), np.float32)),
        r"hidden_states: expected shape (..., 64), got shape (2, 63)",
    ),
    "NaN": (lambda path: np.save(path, np.full((2, HIDDEN), np.nan, np.float32)), "expected"),
}


@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_wrong_input_of_run_is_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    make, message = WRONG_INPUTS[case]
    make(tmp_path / "x.npy")
    output = tmp_path / "y.npy"
    output.write_text("before")
    command = ["run", "--checkpoint", str(model), "--layer", "0", "--input", str(tmp_path / "x.npy")]
    assert main([*command, "--output", str(output)]) == 1
    error = error_of(capsys)
    assert str(tmp_path / "x.npy") in error
    assert message in error
    assert output.read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} <= {"model", "x.npy", "y.npy"}


def test_wrong_layer_and_output_of_run(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, HIDDEN), np.float32))
    command = ["run", "--checkpoint", str(model), "--input", str(tmp_path / "x.npy"), "--output"]
    assert main([*command, str(tmp_path / "y.npy"), "--layer", "2"]) == 1
    assert "layer: expected an integer in [0, 1], got 2" in error_of(capsys)
    assert main([*command, str(tmp_path / "no" / "y.npy")]) == 1
    assert str(tmp_path / "no") in error_of(capsys)
    with pytest.raises(SystemExit) as exit_info:
        main(["run", "--checkpoint", str(model)])
    assert exit_info.value.code == 2


@pytest.mark.parametrize(
    ("command", "limit"), [("run", 200), ("run", 1024), ("quantize", 9000), ("pack", 9000)]
)
def test_full_disk_leaves_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, limit: int
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((5, HIDDEN), np.float32))
    arguments = [str(model), str(tmp_path / "out")]
    if command == "run":
        arguments = ["--checkpoint", str(model), "--input", str(tmp_path / "x.npy"), "--output", arguments[1]]
    before = sorted(tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        assert main([command, *arguments]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = error_of(capsys)
    assert "File too large" in error
    assert str(tmp_path) in error
    assert sorted(tmp_path.iterdir()) == before


def test_gguf_files(tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gguf", reason="the gguf package, which writes the file, is not installed")
    from golden_gguf import mixtral, write

    path = write(tmp_path / "model.gguf", *mixtral()[:3])
    assert main(["inspect", str(path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["layers"]
    assert (row["format"], row["layer"]) == ("mxfp4", 0)
    assert main(["pack", str(path), str(tmp_path / "packed")]) == 0
    layer = mx.MoELayer.from_checkpoint(path)
    x = rng.standard_normal((3, layer.hidden_size), np.float32)
    np.save(tmp_path / "x.npy", x)
    for checkpoint in (path, tmp_path / "packed"):
        files = ["--input", str(tmp_path / "x.npy"), "--output", str(tmp_path / "y.npy")]
        assert main(["run", "--checkpoint", str(checkpoint), *files]) == 0
        assert np.array_equal(np.load(tmp_path / "y.npy"), layer(x))
