"""The options of all commands: one word each, help that is complete, names in any case."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from packed_examples import K, make_layer

import mxfp4moe as mx
from mxfp4moe import cli

COMMANDS = (
    "info",
    "selftest",
    "demo",
    "bench",
    "inspect",
    "quantize",
    "pack",
    "run",
    "generate",
    "chat",
    "config",
)
NOT_COMPUTING = ("config",)
ALIASES = {"--num-threads": "--threads", "--experts": "--num-experts"}


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    actions = cli._parser()._actions
    (subparsers,) = (action for action in actions if isinstance(action, argparse._SubParsersAction))
    return dict(subparsers.choices)


def options(command: str) -> Iterator[argparse.Action]:
    """The arguments of a command that help shows, without -h."""
    for action in parsers()[command]._actions:
        if action.help != argparse.SUPPRESS and "--help" not in action.option_strings:
            yield action


def test_commands() -> None:
    assert tuple(parsers()) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_80_columns(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for arguments in ([command, "--help"], ["--help"]):
        with pytest.raises(SystemExit) as exit_info:
            cli.main(arguments)
        assert exit_info.value.code == 0
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_sentences_that_say_the_default(command: str) -> None:
    assert parsers()[command].description
    for action in options(command):
        text = action.help or ""
        assert re.fullmatch(r"[A-Z].*\.", text), (action.option_strings, text)
        if action.option_strings:
            assert ("Default: " in text) != action.required, (action.option_strings, text)
            assert ("Required." in text) == action.required


def test_help_shows_one_word_for_each_option() -> None:
    for command in COMMANDS:
        flags = [flag for action in options(command) for flag in action.option_strings]
        assert "--threads" in flags or command in NOT_COMPUTING
        # Experts that are named, not counted, are --experts.
        assert not {alias for alias, flag in ALIASES.items() if flag in flags} & set(flags)
        assert all(len(action.option_strings) <= 1 for action in options(command))


def test_option_of_several_commands_has_one_help() -> None:
    """Unless it is about another thing, which is then listed here."""
    different = {"--hidden-size", "--intermediate-size", "--num-experts", "--top-k"}  # other defaults
    different |= {"--tokens", "--format", "--json", "--layer", "--checkpoint", "--model", "--layers"}
    different.add("--activation-format")  # several of them for bench
    texts: dict[str, set[str]] = {}
    for command in COMMANDS:
        for action in options(command):
            for flag in action.option_strings:
                texts.setdefault(flag, set()).add(action.help or "")
    assert {flag for flag, helps in texts.items() if len(helps) > 1} <= different


@pytest.mark.parametrize("command", COMMANDS)
def test_aliases_are_taken(command: str) -> None:
    known = {flag for action in parsers()[command]._actions for flag in action.option_strings}
    assert "--num-threads" in known or command in NOT_COMPUTING
    assert "--experts" in known or "--num-experts" not in known
    required = {"inspect": ["x"], "quantize": ["x", "y"], "pack": ["x", "y"]}.get(command, [])
    if command in ("generate", "chat"):
        required = ["--checkpoint", "x"]
    if command == "run":
        required = ["--checkpoint", "x", "--input", "x", "--output", "y"]
    for alias, flag in ALIASES.items():
        if flag in known:
            parsed = [cli._parser().parse_args([command, *required, word, "3"]) for word in (alias, flag)]
            assert getattr(parsed[0], flag[2:].replace("-", "_")) == 3
            assert {**vars(parsed[0]), "parser": 0} == {**vars(parsed[1]), "parser": 0}


def test_threads_are_those_of_the_whole_command(capsys: pytest.CaptureFixture[str]) -> None:
    before = mx.get_num_threads()
    for word in ("--threads", "--num-threads"):
        assert cli.main(["info", word, str(before + 1)]) == 0
        assert f"number: {before + 1}\n" in capsys.readouterr().out
    assert mx.get_num_threads() == before
    assert cli.main(["info"]) == 0
    assert f"number: {before}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "attribute", "expected"),
    [
        (["quantize", "x", "y", "--format", "FP8_Block"], "format", "fp8_block"),
        (["quantize", "x", "y", "--layout", "GPT-OSS"], "layout", "gpt-oss"),
        (["quantize", "x", "y", "--scale-rule", "RCEIL"], "scale_rule", "rceil"),
        (["pack", "x", "y", "--quantize", "MXFP4"], "quantize", "mxfp4"),
        (["bench", "--isa", "AVX2,Portable"], "isa", ["avx2", "portable"]),
        (["bench", "--routing", "Zipf"], "routing", "zipf"),
        (["bench", "--peers", "NumPy,ONNXRuntime"], "peers", ["numpy", "onnxruntime"]),
        (["bench", "--format", "BF16"], "format", ["bf16"]),
        (["bench", "--json"], "json", "-"),
        (["bench"], "json", None),
    ],
)
def test_names_in_any_case(arguments: list[str], attribute: str, expected: object) -> None:
    assert getattr(cli._parser().parse_args(arguments), attribute) == expected


def test_isa_of_bench_in_any_case(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--hidden-size", "32", "--intermediate-size", "32", "--experts", "2", "--top-k", "1"]
    arguments = ["bench", *sizes, "--seconds", "1e-6", "--tokens", "1", "--threads", "1"]
    assert cli.main([*arguments, "--isa", mx.active_isa().upper()]) == 0
    assert mx.active_isa() in capsys.readouterr().out


def test_threads_reach_what_is_computed(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    call = mx.MoELayer.__call__

    def recorded(self: mx.MoELayer, *args: object, **how: object) -> object:
        seen.append(mx.get_num_threads())
        return call(self, *args, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(mx.MoELayer, "__call__", recorded)
    make_layer(rng, "default").save(tmp_path / "layer")
    np.save(tmp_path / "x.npy", np.ones((1, K), np.float32))
    files = ["--input", str(tmp_path / "x.npy"), "--output", str(tmp_path / "y.npy")]
    assert cli.main(["run", "--checkpoint", str(tmp_path / "layer"), *files, "--threads", "7"]) == 0
    assert seen == [7]
