"""Whole models on activations of eight bits: what is computed so, and what stays as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import whole_models
from problems import bfloat16

import mxfp4moe as mx
from mxfp4moe import cli

INT8: dict[str, Any] = {"activation_format": "int8"}
NAMES = ("mixtral", "glm4_moe")  # without and with shared experts, and layers without experts


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dense", [None, "int8", "mxfp8"])
def test_which_matrices(isa: str, rng: np.random.Generator, tmp_path: Path, name: str, dense: Any) -> None:
    source = whole_models.load(name).write(tmp_path / "source")
    options: dict[str, Any] = {"quantize": "int4", "quantize_dense": dense}
    plain = mx.CausalLM.from_checkpoint(source, **options)
    lm = mx.CausalLM.from_checkpoint(source, **options, **INT8)
    assert (plain.activation_format, lm.activation_format) == (None, "int8")
    decoders = plain._decoder, lm._decoder
    rows = rng.standard_normal((3, lm.hidden_size), np.float32)
    possible = INT8 if dense == "int8" else {}
    # The head reads normalized hidden states.
    out = np.empty((3, lm.vocab_size), np.float32)
    lm._decoder.logits(rows, 1, out)
    epsilon, norm = lm._decoder.description.norm_epsilon, lm._decoder.final_norm
    read = mx.rms_norm(rows, norm, eps=epsilon, dtype=bfloat16)
    assert np.array_equal(out, lm._decoder.head(read, out=np.empty_like(out), **possible))
    # Blocks: each is that of the other model with the option.
    for before, after in zip(*(each.layers for each in decoders), strict=True):
        if isinstance(after.block, mx.MoELayer) and isinstance(before.block, mx.MoELayer):
            assert after.block == mx.MoELayer(**{**before.block.arguments(), **INT8})
            continue
        assert isinstance(after.block, mx.PackedExperts)
        lm._decoder._run_block(after, rows, out := np.empty_like(rows), 1)
        read = mx.rms_norm(rows, after.post_norm, eps=epsilon, dtype=bfloat16)
        slots = np.ones((3, 1), np.float32), np.zeros((3, 1), np.int32)
        activation: Any = lm._decoder.description.activation
        expected = mx.fused_experts(
            read, after.block, *slots, activation=activation, out=np.empty_like(rows), **possible
        )
        assert np.array_equal(out, expected)
    # Attention.
    residuals = [rows.copy() for _ in decoders]
    for decoder, residual in zip(decoders, residuals, strict=True):
        cache = [decoder.new_caches("float32")]
        positions = np.arange(3)
        step = mx.model.decoder.Step(positions, (3,), cache, 1)
        decoder._attend(0, residual, positions, step)
    assert np.array_equal(*residuals) == (dense != "int8")


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_however_it_is_called(isa: str, tmp_path: Path, name: str) -> None:
    source = whole_models.load(name).write(tmp_path / "source")
    options: dict[str, Any] = {"quantize": "int4", "quantize_dense": "int8"}
    lm = mx.CausalLM.from_checkpoint(source, **options, **INT8)
    ids = np.ravel(whole_models.input_ids(name))[:8]
    logits = lm(ids)
    cache = lm.new_cache()
    pieces = [*lm(ids[:1], cache), *lm(ids[1:], cache, num_threads=2)]
    assert np.array_equal(pieces, logits)
    assert np.array_equal(lm([ids[:2], ids])[1], logits)
    # The option is one of calls.
    lm.save(tmp_path / "packed")
    plain = mx.CausalLM.from_checkpoint(source, **options)(ids)
    assert not np.array_equal(plain, logits)
    assert np.array_equal(mx.CausalLM.open(tmp_path / "packed")(ids), plain)
    assert np.array_equal(mx.CausalLM.open(tmp_path / "packed", **INT8)(ids), logits)
    limited = mx.CausalLM.open(tmp_path / "packed", memory_limit=lm.nbytes, **INT8)
    assert np.array_equal(limited(ids), logits)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = whole_models.load("mixtral").write(tmp_path / "source")
    lm = mx.CausalLM.from_checkpoint(source, quantize="int4", **INT8)
    command = ["generate", "--checkpoint", str(source), "--ids", "3", "1", "--max-new-tokens", "4"]
    assert cli.main([*command, "--json", "--quantize", "int4", "--activation-format", "int8"]) == 0
    assert json.loads(capsys.readouterr().out)["ids"] == list(lm.generate([3, 1], max_new_tokens=4))


def test_wrong_values(tmp_path: Path) -> None:
    source = whole_models.load("mixtral").write(tmp_path / "source")
    cases: list[tuple[Any, type[Exception], str]] = [
        ("int8", ValueError, "activation_format: expected None for experts of format 'bf16'"),
        ("int4", ValueError, "activation_format: expected 'int8', got 'int4'"),
        (8, TypeError, "activation_format: expected 'int8', got"),
    ]
    for value, error, message in cases:
        with pytest.raises(error, match=message):
            mx.CausalLM.from_checkpoint(source, activation_format=value)
    mx.CausalLM.from_checkpoint(source).save(tmp_path / "packed")
    with pytest.raises(ValueError, match="activation_format: expected None for experts of format 'bf16'"):
        mx.CausalLM.open(tmp_path / "packed", **INT8)
