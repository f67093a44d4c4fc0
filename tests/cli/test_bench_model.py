"""``mxfp4moe bench --model``, on models of small widths."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import assert_same_bits
from small_decoders import SMALL_DECODERS

import mxfp4moe as mx
from mxfp4moe.cli import main
from mxfp4moe.cli._bench import model, models
from mxfp4moe.cli._bench.ggml_blocks import q4_0_blocks, q8_0_blocks, quantize_q8_0
from mxfp4moe.cli._bench.model_gguf import write_gguf
from mxfp4moe.cli._synthetic import SyntheticCheckpoint
from mxfp4moe.cli._synthetic_model import Decoder

COMMAND = ["bench", "--model", "gpt-oss-20b,qwen3-30b-a3b", "--threads", "1", "--seconds", "0.01"]
COMMAND += ["--context", "40,0", "--prefill", "24", "--dense", "bf16,mxfp8"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command builds models of small widths."""
    tiny = {each.title: lambda each=each: each for each in SMALL_DECODERS}
    monkeypatch.setattr(models, "DECODERS", tiny)
    monkeypatch.setattr(model, "DECODERS", tiny)
    monkeypatch.setattr(model, "_READ_BYTES", 1 << 16)


@pytest.mark.usefixtures("small")
def test_every_cell_has_a_row(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    assert main([*COMMAND, "--layers", "1", "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    rows = re.findall(r"^(\w+) +(\d+) mxfp4moe +[\d.]+ +[\d.]+( +[\d.]+ +\d+ %)? +1\.00$", out, re.MULTILINE)
    cells = [("prefill", "24"), ("decode", "0"), ("decode", "40")]
    assert [row[:2] for row in rows] == 4 * cells
    figures = json.loads(path.read_text())
    results = figures["results"]
    assert [(result["model"], result["dense"]) for result in results] == [
        (each.title, dense) for each in SMALL_DECODERS for dense in ("bf16", "mxfp8")
    ]
    for result in results:
        assert result["config"]["num_hidden_layers"] == 1
        assert result["published_layers"] == 2
        for cell in result["cells"]:
            assert cell["tokens_per_s"] == pytest.approx(1 / min(cell["seconds_per_token"]))
            assert cell["tokens_per_s"] >= cell["median_tokens_per_s"] > 0
            if cell["kind"] == "decode":
                share = cell["step_bytes"] * cell["tokens_per_s"] / result["read_bytes_per_s"]
                assert cell["roofline_share"] == pytest.approx(share)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "gpt-4"], "argument --model: expected gpt-oss-20b or qwen3-30b-a3b, got 'gpt-4'"),
        (["--dense", "nvfp4"], "argument --dense: expected bf16, int8, mxfp8"),
        (["--dense", ""], "argument --dense: expected names with commas between them, got ''"),
        (["--peers", "numpy"], "argument --peers: expected llama.cpp or all, got 'numpy'"),
        (["--context", "-1"], "argument --context: "),
        (["--prefill", "0"], "argument --prefill: "),
        (["--layers", "0"], "argument --layers: "),
        (["--shape", "mixtral-8x7b"], "argument --shape: applies to layers, not to --model"),
        (["--isa", "all"], "argument --isa: applies to layers, not to --model"),
        (["--num-experts", "3"], "argument --num-experts: applies to layers, not to --model"),
        (["--tokens", "3"], "argument --tokens: applies to layers, not to --model"),
        (["--routing", "zipf"], "argument --routing: applies to layers, not to --model"),
        (["--group-size", "64"], "argument --group-size: applies to layers, not to --model"),
    ],
)
def test_wrong_options(capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*COMMAND, *options])
    assert caught.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "options", [["--layers", "2"], ["--dense", "int8"], ["--context", "5"], ["--prefill", "5"]]
)
def test_options_of_whole_models_need_one(capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", *options])
    assert caught.value.code == 2
    assert f"argument {options[0]}: needs --model" in capsys.readouterr().err


@pytest.mark.usefixtures("small")
def test_too_many_layers_for_the_memory(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "available_memory", lambda: 10**9)
    assert main([*COMMAND, "--layers", "2"]) == 1
    assert "memory: expected room for 2 layers of gpt-oss-20b, got 1.0 GB" in capsys.readouterr().err


@pytest.mark.parametrize("decoder", SMALL_DECODERS, ids=lambda each: each.title)
def test_gguf_has_the_same_experts(tmp_path: Path, rng: np.random.Generator, decoder: Decoder) -> None:
    pytest.importorskip("gguf")
    SyntheticCheckpoint(decoder, 0).write(tmp_path, lambda num_bytes: None)
    path = tmp_path / "model.gguf"
    write_gguf(tmp_path, decoder, path, "BF16")
    hidden_states = rng.standard_normal((9, decoder.hidden_size), np.float32)
    for number in range(decoder.num_hidden_layers):
        layers = [mx.MoELayer.from_checkpoint(each, layer=number) for each in (tmp_path, path)]
        assert_same_bits(*(layer(hidden_states) for layer in layers))


def test_q8_0_is_quantized_as_by_another_implementation(rng: np.random.Generator) -> None:
    quants = pytest.importorskip("gguf.quants")
    constants = pytest.importorskip("gguf.constants")
    weight = rng.standard_normal((5, 96), np.float32)
    weight[2] = 0
    blocks = quantize_q8_0(weight).reshape(5, -1)
    expected = quants.quantize(weight, constants.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(blocks, expected)


@pytest.mark.parametrize("group_size", [32, 96, None])
@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_blocks_of_integers_are_read_back_by_another_implementation(
    rng: np.random.Generator, kind: str, group_size: int | None
) -> None:
    quants = pytest.importorskip("gguf.quants")
    constants = pytest.importorskip("gguf.constants")
    weight = rng.standard_normal((5, 192), np.float32)
    quantize, dequantize, blocks = {
        "Q4_0": (mx.quantize_int4, mx.dequantize_int4, q4_0_blocks),
        "Q8_0": (mx.quantize_int8, mx.dequantize_int8, q8_0_blocks),
    }[kind]
    codes, scales, _ = quantize(weight, group_size=group_size)
    packed = blocks(codes, scales).reshape(5, -1)
    read = quants.dequantize(packed, constants.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(read, dequantize(codes, scales.astype(np.float16)))


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
@pytest.mark.parametrize("decoder", SMALL_DECODERS, ids=lambda each: each.title)
def test_llama_cpp_computes_the_same_model(tmp_path: Path, decoder: Decoder) -> None:
    """It rounds activations to 8 bits, which is what differs."""
    from mxfp4moe.cli._bench.llama_cpp_model import LlamaCppModel

    SyntheticCheckpoint(decoder, 0).write(tmp_path, lambda num_bytes: None)
    write_gguf(tmp_path, decoder, tmp_path / "model.gguf", "BF16")
    peer = LlamaCppModel(tmp_path / "model.gguf", 256, 1)
    ids = np.arange(40)
    ours = mx.CausalLM.from_checkpoint(tmp_path)(ids, last_only=True)[0]
    theirs = peer.extend(ids)
    assert np.linalg.norm(ours - theirs) <= 0.1 * np.linalg.norm(ours)


def test_bytes_of_a_step_are_those_of_the_tensors(tmp_path: Path) -> None:
    """All tensors of a layer but the experts that are not chosen and norms; the head, a row of the embedding.

    The parts of a matrix begin at multiples of 4096 bytes.
    """
    decoder: Any = SMALL_DECODERS[1]
    SyntheticCheckpoint(decoder, 0).write(tmp_path, lambda num_bytes: None)
    ours = model.Ours(mx.CausalLM.from_checkpoint(tmp_path), 1)
    hidden, inner, heads, keys = 128, 64, 4 * 32, 2 * 32
    attention = 2 * (2 * heads * hidden + 2 * keys * hidden)
    experts = decoder.num_experts_per_tok * 3 * hidden * inner * 17 // 32
    layer = attention + experts + 4 * 8 * hidden + 101 * 4 * 2 * keys
    exact = 2 * layer + 2 * 300 * hidden + 2 * hidden
    num_parts = 1 + 2 * (2 + 4)  # weights of matrices; weights and scales of experts
    assert exact <= ours.step_bytes(100) < exact + 4096 * num_parts
