"""``mxfp4moe generate`` and ``chat``: texts and ids, streams, templates, and what is missing."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import whole_models

import mxfp4moe as mx
from mxfp4moe import cli
from mxfp4moe.cli._generate.stream import IdStream, TextStream
from mxfp4moe.cli._generate.texts import missing

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
needs_texts = pytest.mark.skipif(
    any(map(missing, ("tokenizers", "jinja2"))), reason="needs the extra mxfp4moe[generate]"
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return whole_models.load("gpt_oss").write(tmp_path / "model")


@pytest.fixture
def talking(model: Path) -> Path:
    whole_models.write_tokenizer(model, TEMPLATE)
    return model


def run(*arguments: object) -> int:
    return cli.main(["generate", *map(str, arguments)])


def test_ids(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--checkpoint", model, "--ids", "5,17", "42", "--max-new-tokens", 6) == 0
    out, err = capsys.readouterr()
    lm = mx.CausalLM.from_checkpoint(model)
    assert [int(word) for word in out.split()] == list(lm.generate([5, 17, 42], max_new_tokens=6))
    assert "tokens of the prompt" in err


def test_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--temperature", 1.5, "--top-p", 0.9, "--top-k", 50, "--min-p", 0.01, "--seed", 3]
    arguments = ["--checkpoint", model, "--ids", 5, 17, "--max-new-tokens", 8, "--json", *options]
    results = []
    for threads in (1, 2):
        assert run(*arguments, "--threads", threads) == 0
        results.append(json.loads(capsys.readouterr().out))
    result = results[0]
    assert result["ids"] == results[1]["ids"]
    lm = mx.CausalLM.from_checkpoint(model)
    expected = lm.generate(
        [5, 17], max_new_tokens=8, temperature=1.5, top_p=0.9, top_k=50, min_p=0.01, seed=3
    )
    assert result["ids"] == list(expected)
    assert result["prompt_ids"] == [5, 17]
    assert result["text"] == " ".join(map(str, result["ids"]))
    assert result["prompt_tokens"] == 2
    assert 0 < result["bytes_per_token"] < lm.nbytes + 10**6
    for key in ("tokens_per_second", "prompt_tokens_per_second", "roofline_share"):
        assert result[key] > 0


def test_one_token_has_no_speed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--checkpoint", model, "--ids", 5, "--max-new-tokens", 1, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["ids"]) == 1
    assert result["tokens_per_second"] is None


def test_stop_ids(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--checkpoint", model, "--ids", 5, 17, "--max-new-tokens", 9) == 0
    ids = capsys.readouterr().out.split()
    assert run("--checkpoint", model, "--ids", 5, 17, "--max-new-tokens", 9, "--stop", ids[3]) == 0
    assert capsys.readouterr().out.split() == ids[: ids.index(ids[3]) + 1]


@needs_texts
def test_raw_text(talking: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--checkpoint", talking, "--raw", "Hello", "--max-new-tokens", 12, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["prompt_ids"] == [3 + ord(c) - 33 for c in "Hello"]
    assert run("--checkpoint", talking, "--raw", "Hello", "--max-new-tokens", 12) == 0
    assert capsys.readouterr().out == result["text"] + "\n"
    visible = [chr(33 + token - 3) for token in result["ids"] if token >= 3]
    assert result["text"] == "".join(visible)


@needs_texts
def test_chat_template(talking: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def prompt(*arguments: object) -> str:
        assert run("--checkpoint", talking, *arguments, "--max-new-tokens", 1, "--json") == 0
        ids = json.loads(capsys.readouterr().out)["prompt_ids"]
        assert ids[0] == 1
        return "".join(chr(33 + token - 3) for token in ids[1:])

    assert prompt("Hi") == "u:Hi;a:"
    assert prompt("Hi", "--system", "Be") == "s:Be;u:Hi;a:"
    (talking / "chat_template.jinja").write_text("{{ bos_token }}[{{ messages[-1].content }}]")
    assert prompt("Hi") == "[Hi]"
    (talking / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "{{ bos_token }}d"}]
    (talking / "tokenizer_config.json").write_text(json.dumps({"chat_template": named, "bos_token": "<bos>"}))
    assert prompt("Hi") == "d"


@needs_texts
def test_standard_input(
    talking: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello"))
    assert run("--checkpoint", talking, "--raw", "-", "--max-new-tokens", 3, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["prompt_ids"]) == 5


@needs_texts
@pytest.mark.parametrize(
    ("template", "match"),
    [
        ("{% if %}", "chat template: "),
        ("{{ raise_exception('no system') }}", "chat template: no system"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "chat template: "),
        ("{{ nothing.there.at_all }}", "chat template: "),
    ],
)
def test_wrong_templates(
    talking: Path, capsys: pytest.CaptureFixture[str], template: str, match: str
) -> None:
    """A template comes with the model, and can do nothing but make a text."""
    (talking / "chat_template.jinja").write_text(template)
    assert run("--checkpoint", talking, "Hi") == 1
    err = capsys.readouterr().err
    assert match in err
    assert str(talking) in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "match"),
    [
        (["--ids", "x"], 2, "argument --ids: expected token ids, got 'x'"),
        (["--ids", "97"], 1, "input_ids: expected ids in [0, 96], got 97"),
        (["--ids", "1", "--max-new-tokens", "256"], 1, "max_new_tokens: expected at most 255 after 1 tokens"),
        (["--ids", "1", "--stop", "end"], 2, "argument --stop: expected token ids, got 'end'"),
        ([], 2, "expected either PROMPT or --ids"),
        (["Hi", "--ids", "1"], 2, "expected either PROMPT or --ids"),
        (["--ids", "1", "--system", "Be"], 2, "argument --system: expected a text, not --ids"),
        (["Hi", "--raw", "--system", "Be"], 2, "argument --system: expected no --raw"),
        (["--ids", "1", "--top-p", "0"], 2, "argument --top-p: expected a number from 0 to 1"),
        (["--ids", "1", "--temperature", "nan"], 2, "argument --temperature: expected a number from 0 to"),
        (["Hi"], 1, "expected a tokenizer.json, got none (generate --ids takes token ids instead of a text)"),
    ],
)
def test_wrong_arguments(
    model: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, match: str
) -> None:
    try:
        found = run("--checkpoint", model, *arguments)
    except SystemExit as exit:
        found = int(exit.code or 0)
    assert found == status
    assert match in capsys.readouterr().err


@pytest.mark.parametrize("command", [["generate", "Hi"], ["generate", "--ids", "1"], ["chat"]])
def test_a_missing_model_says_how_to_get_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert cli.main([command[0], "--checkpoint", str(tmp_path / "nope"), *command[1:]]) == 1
    assert "'hf download' gets a model" in capsys.readouterr().err


def test_missing_packages(
    talking: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    assert run("--checkpoint", talking, "Hi") == 1
    expected = "the package tokenizers is not installed (pip install 'mxfp4moe[generate]')"
    assert expected in capsys.readouterr().err
    assert run("--checkpoint", talking, "--ids", "5", "--max-new-tokens", 2) == 0


def test_other_models_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {**whole_models.load("mixtral").config, "model_type": "phimoe"}
    path = whole_models.load("mixtral")._replace(config=config).write(tmp_path / "model")
    assert run("--checkpoint", path, "--ids", 1) == 1
    assert "model_type: expected a model type that can be run as a whole" in capsys.readouterr().err


def decode(ids: Sequence[int]) -> str:
    """Ids as bytes."""
    return bytes(ids).decode("utf-8", errors="replace")


def test_no_broken_characters() -> None:
    text = "naïve 🦉 日本"
    stream = TextStream(decode)
    pieces = [stream.add(byte) for byte in text.encode()]
    assert "".join(pieces) + stream.finish() == text == stream.text
    assert all("�" not in piece for piece in pieces)
    for cut in (1, 2, 3):
        stream = TextStream(decode)
        pieces = [stream.add(byte) for byte in "a🦉".encode()[:-cut]]
        assert "".join([*pieces, stream.finish()]) == "a"
    stream = TextStream(decode)
    assert "".join([*map(stream.add, b"a\xffb"), stream.finish()]) == "ab"


def test_texts_that_end_a_stream() -> None:
    def feed(text: str, *stop: str) -> tuple[list[str], bool]:
        stream = TextStream(decode, stop)
        pieces = []
        for byte in text.encode():
            pieces.append(stream.add(byte))
            if stream.stopped:
                break
        return [*pieces, stream.finish()], stream.stopped

    assert "".join(feed("one END two", "END")[0]) == "one "
    assert feed("one END two", "END")[1]
    assert "".join(feed("one EN two", "END")[0]) == "one EN two"
    assert "".join(feed("one EN", "END")[0]) == "one EN"
    pieces, stopped = feed("aab", "ab", "xx")
    assert "".join(pieces) == "a"
    assert stopped
    assert not any("E" in piece for piece in feed("x EEND", "END")[0][:3])


def test_stream_of_ids() -> None:
    stream = IdStream()
    assert [stream.add(5), stream.add(17), stream.finish()] == ["5", " 17", ""]
    assert stream.text == "5 17"


@needs_texts
def test_stop_texts(talking: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--checkpoint", talking, "--raw", "Hello", "--max-new-tokens", 30, "--temperature", 3]
    assert run(*arguments) == 0
    text = capsys.readouterr().out[:-1]
    stop = text[5:7]
    assert run(*arguments, "--stop", stop) == 0
    assert capsys.readouterr().out[:-1] == text[: text.index(stop)]


@needs_texts
def test_chat(talking: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each turn computes its own tokens alone, and gives what the whole conversation would."""
    from mxfp4moe.model.causal_lm import CausalLM

    computed: list[int] = []
    compute = CausalLM._compute

    def counting(self: Any, inputs: Any, *rest: Any) -> Any:
        computed.append(sum(map(len, inputs.sequences)))
        return compute(self, inputs, *rest)

    monkeypatch.setattr(CausalLM, "_compute", counting)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n\nAgain\n"))
    arguments = ["chat", "--checkpoint", str(talking), "--max-new-tokens", "5", "--system", "Be"]
    assert cli.main(arguments) == 0
    first, second = capsys.readouterr().out.splitlines()[:2]
    computed_at_once = [count for count in computed if count > 1]
    computed.clear()
    lm = mx.CausalLM.from_checkpoint(talking)

    def answer(text: str) -> str:
        ids = [1, *(3 + ord(c) - 33 for c in text)]
        tokens = list(lm.generate(ids, max_new_tokens=5))
        return "".join(chr(33 + token - 3) for token in tokens if token >= 3)

    assert first == answer("s:Be;u:Hi;a:")
    again = f"s:Be;u:Hi;a:{first};u:Again;a:"
    assert second == answer(again)
    assert len(computed_at_once) == 2
    assert computed_at_once[1] < len(again) - len("s:Be;u:Hi;")


@needs_texts
def test_answers_after_special_tokens(
    talking: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a model thinks is shown, and not said again."""
    from mxfp4moe.model.causal_lm import CausalLM

    def encode(text: str) -> list[int]:
        return [3 + ord(c) - 33 for c in text]

    prompts = []

    def generate(self: Any, ids: list[int], **options: Any) -> Any:
        prompts.append(ids)  # the cache stays empty
        return iter([1, *encode("hmm"), 1, 1, *encode("Yes"), 2])

    monkeypatch.setattr(CausalLM, "generate", generate)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\nAgain\n"))
    assert cli.main(["chat", "--checkpoint", str(talking)]) == 0
    assert capsys.readouterr().out == "hmm\nYes\nhmm\nYes\n\n"
    assert prompts[1][1:] == encode("u:Hi;a:Yes;u:Again;a:")


@needs_texts
def test_chat_needs_a_template(talking: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole_models.write_tokenizer(talking)
    assert cli.main(["chat", "--checkpoint", str(talking)]) == 1
    assert (
        "expected a chat template in chat_template.jinja or tokenizer_config.json" in capsys.readouterr().err
    )


def test_ctrl_c_ends_the_text(model: Path) -> None:
    """What has come until then is printed, whole lines, and no traceback."""
    command = [sys.executable, "-m", "mxfp4moe", "generate", "--checkpoint", str(model), "--ids", "5"]
    command += ["--max-new-tokens", "200", "--temperature", "1", "--stop", "96"]
    script = (
        "import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from mxfp4moe.model import decoder; run = decoder.Decoder.hidden_states\n"
        "def slow(*args): time.sleep(0.1); return run(*args)\n"
        "decoder.Decoder.hidden_states = slow\n"
        "from mxfp4moe.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, *command[3:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = process.stdout.read(1)  # a first token has come
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (first + out).endswith("\n")
    assert all(word.isdigit() for word in (first + out).split())
    assert "Traceback" not in err
    assert "tokens of the prompt" in err
