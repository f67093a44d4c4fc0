"""``mxfp4moe demo --model``: written, loaded, generated, removed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mxfp4moe as mx
from mxfp4moe import cli
from mxfp4moe.cli import _demo_model

SMALL = [
    "--hidden-size",
    64,
    "--intermediate-size",
    64,
    "--num-experts",
    4,
    "--top-k",
    2,
    "--vocab-size",
    300,
]


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def run(*arguments: object) -> int:
    return cli.main(["demo", "--model", *map(str, arguments)])


def test_model(isa: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SMALL, "--layers", 2, "--tokens", 9, "--steps", 4) == 0
    out, err = capsys.readouterr()
    text = " ".join(out.split())
    assert "Writing a model of the widths of gpt-oss-20b, 2 of 24 layers" in text
    assert re.search(r"Generated 4 tokens: 9 tokens of the prompt at [\d.]+ tokens/s, then", text)
    assert "of the roofline" in text
    assert text.endswith("and without a cache: the same bits")
    assert "loading 100 % of 2 layers" in err
    assert not list(tmp_path.iterdir())


def test_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SMALL, "--layers", 1, "--tokens", 3, "--steps", 1, "--keep") == 0
    (folder,) = tmp_path.iterdir()
    assert f"Kept {folder}" in capsys.readouterr().out
    lm = mx.CausalLM.from_checkpoint(folder)
    assert (lm.num_layers, lm.vocab_size) == (1, 300)


def test_as_many_layers_as_fit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = cli._parser().parse_args(["demo", "--model", "--hidden-size", "64"])
    model = _demo_model.GptOss(hidden_size=64)
    for layers, expected in ((30, 24), (3, 3), (1, 1)):
        size = model.end_bytes + (layers + 0.5) * model.layer_bytes
        room = int(size / _demo_model.USED_SHARE) + _demo_model._CALL_BYTES
        monkeypatch.setattr(_demo_model, "available_memory", lambda room=room: room)
        monkeypatch.setattr(_demo_model, "_is_in_memory", lambda path: False)
        assert _demo_model.sized(arguments).num_hidden_layers == expected
    monkeypatch.setattr(_demo_model, "available_memory", lambda: 10**6)
    assert run() == 1
    assert "memory and disk: expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--model", "--checkpoint", "x"], "--checkpoint applies to one layer, not to --model"),
        (["--model", "--layer", "0"], "--layer applies to one layer, not to --model"),
        (["--layers", "2"], "--layers needs --model"),
        (["--vocab-size", "2"], "--vocab-size needs --model"),
    ],
)
def test_wrong_options(capsys: pytest.CaptureFixture[str], arguments: list[str], match: str) -> None:
    with pytest.raises(SystemExit):
        cli.main(["demo", *arguments])
    assert match in capsys.readouterr().err
