"""Models whose matrices are quantized, attention among them: each is used as it is stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import whole_models

import mxfp4moe as mx
from mxfp4moe.checkpoint.safetensors import save_file
from mxfp4moe.cli._synthetic import SyntheticCheckpoint
from mxfp4moe.cli._synthetic_model import Qwen3Moe


def test_fp8_attention(isa: str, tmp_path: Path) -> None:
    """As Qwen3-FP8 has it: every matrix of the layers but routers, in blocks of 128 x 128."""
    folder = whole_models.load("qwen3_moe")
    tensors: dict[str, Any] = {}
    for name, array in folder.tensors.items():
        is_matrix = name.endswith("_proj.weight")
        if is_matrix:
            array, scales = mx.quantize_fp8_block(array.astype(np.float32))
            tensors[f"{name}_scale_inv"] = scales
        tensors[name] = array
    quantization = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    config = {**folder.config, "quantization_config": quantization}
    path = folder._replace(config=config, tensors=tensors).write(tmp_path / "model")
    lm = mx.CausalLM.from_checkpoint(path)
    attention = lm._decoder.layers[1].attention
    assert [each.format for each in attention.matrices] == ["fp8_block"] * 4
    for name, matrix in zip("qkvo", attention.matrices, strict=True):
        full = f"model.layers.1.self_attn.{name}_proj.weight"
        unpacked = matrix.unpack()
        assert unpacked.weight.tobytes() == tensors[full].tobytes()
        assert np.array_equal(unpacked.scales, tensors[f"{full}_scale_inv"])
    assert lm._decoder.layers[1].block.format == "fp8_block"  # type: ignore[union-attr]
    assert lm._decoder.head.format == "bf16"
    ids = whole_models.input_ids("qwen3_moe")[0]
    cache = lm.new_cache()
    pieces = [lm(part, cache) for part in np.split(ids, [7, 8])]
    assert np.array_equal(np.concatenate(pieces), lm(ids))
    with pytest.raises(
        ValueError, match="self_attn: quantize_dense: expected None for a matrix in fp8_block"
    ):
        mx.CausalLM.from_checkpoint(path, quantize_dense="mxfp8")


def test_mxfp4_experts_of_compressed_tensors(isa: str, tmp_path: Path) -> None:
    model = Qwen3Moe(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, vocab_size=50,
    )  # fmt: skip
    SyntheticCheckpoint(model, 0).write(tmp_path, lambda num_bytes: None)
    lm = mx.CausalLM.from_checkpoint(tmp_path, quantize_dense="mxfp8")
    formats = {matrix.format for layer in lm._decoder.layers for matrix in layer.attention.matrices}
    assert formats == {"mxfp8"} == {lm._decoder.head.format}
    blocks = [layer.block for layer in lm._decoder.layers]
    assert {block.experts.format for block in blocks if isinstance(block, mx.MoELayer)} == {"mxfp4"}
    ids = np.arange(1, 20)
    assert np.array_equal(lm([ids[:4], ids])[1], lm(ids))


def test_float16_and_float32(tmp_path: Path) -> None:
    """Floats of other dtypes are rounded to bfloat16; an embedding is used as it is."""
    folder = whole_models.load("olmoe")
    ids = folder.golden["input_ids"]
    expected = mx.CausalLM.from_checkpoint(folder.write(tmp_path / "bfloat16"))(ids)
    for dtype in (np.float16, np.float32):
        tensors = dict(folder.tensors)
        for name, array in folder.tensors.items():
            if np.array_equal(array.astype(dtype), array):  # float16 does not hold all of them
                tensors[name] = array.astype(dtype)
        path = folder._replace(tensors=tensors).write(tmp_path / np.dtype(dtype).name)
        lm = mx.CausalLM.from_checkpoint(path)
        assert lm._decoder.embedding.dtype == dtype
        assert np.array_equal(lm(ids), expected)


def test_one_file_or_many(tmp_path: Path) -> None:
    folder = whole_models.load("mixtral")
    one = mx.CausalLM.from_checkpoint(folder.write(tmp_path / "one"))
    many = tmp_path / "many"
    many.mkdir()
    (many / "config.json").write_text(json.dumps(folder.config))
    weight_map = {}
    for number, name in enumerate(folder.tensors):
        weight_map[name] = f"model-{number % 5}.safetensors"
    for file in set(weight_map.values()):
        save_file(many / file, {n: a for n, a in folder.tensors.items() if weight_map[n] == file})
    (many / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    ids = folder.golden["input_ids"]
    assert np.array_equal(mx.CausalLM.from_checkpoint(many)(ids), one(ids))
