"""The golden files written out as GGUF files by the gguf package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from checkpoints import Fp4, gguf_blocks, load_golden, mixtral_weights, qwen3_weights

Keys = dict[str, Any]
Tensors = dict[str, np.ndarray]


def store(weights: dict[str, Fp4], kind: str, suffix: str = "exps") -> Tensors:
    """The matrices of layer 0; MXFP4 as bytes."""
    tensors = {}
    for part, matrices in weights.items():
        name = f"blk.0.ffn_{part}_{suffix}.weight"
        if kind == "MXFP4":
            tensors[name] = gguf_blocks(matrices)
        elif kind == "BF16":
            tensors[name] = (matrices.values().view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        else:
            tensors[name] = matrices.values().astype({"F16": np.float16, "F32": np.float32}[kind])
    return tensors


def write(
    path: Path,
    architecture: str,
    keys: Keys,
    tensors: Tensors,
    kinds: Mapping[str, str] = MappingProxyType({}),
    **options: Any,
) -> Path:
    """Write a GGUF file; bytes are as `kinds` says, else MXFP4 blocks if 17 divides a row, else bfloat16."""
    gguf = pytest.importorskip("gguf", reason="the gguf package, which writes the files, is not installed")
    writer = gguf.GGUFWriter(path, architecture, **options)
    for key, value in keys.items():
        add = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
        }
        add.get(type(value), writer.add_array)(key, value)
    for name, array in tensors.items():
        raw = None
        if array.dtype == np.uint8:
            types = gguf.GGMLQuantizationType
            raw = types.MXFP4 if array.shape[-1] % 17 == 0 else types.BF16
            raw = types[kinds[name]] if name in kinds else raw
        writer.add_tensor(name, np.ascontiguousarray(array), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def sizes(architecture: str, golden: dict[str, Any], intermediate_key: str) -> Keys:
    shape = golden["config"]
    values = {
        "block_count": 2,
        "embedding_length": shape["hidden"],
        intermediate_key: shape["intermediate"],
        "expert_count": shape["experts"],
        "expert_used_count": shape["topk"],
    }
    return {f"{architecture}.{key}": value for key, value in values.items()} | {
        "tokenizer.ggml.tokens": ["a", "", "é"],
        "tokenizer.ggml.scores": [0.0, 1.0],
        "nested": [[1, 2], [3]],
        "general.name": "golden",
    }


def mixtral(kind: str = "MXFP4") -> tuple[str, Keys, Tensors, dict[str, Any]]:
    golden, weights = mixtral_weights()
    tensors = store(weights, kind) | {"blk.0.ffn_gate_inp.weight": golden["router_weight"]}
    return "llama", sizes("llama", golden, "feed_forward_length"), tensors, golden


def qwen3(kind: str = "MXFP4") -> tuple[str, Keys, Tensors, dict[str, Any]]:
    golden, weights = qwen3_weights()
    tensors = store(weights, kind) | {"blk.0.ffn_gate_inp.weight": golden["router_weight"]}
    keys = sizes("qwen3moe", golden, "expert_feed_forward_length") | {"qwen3moe.expert_weights_norm": False}
    return "qwen3moe", keys, tensors, golden


def gpt_oss(kind: str = "MXFP4") -> tuple[str, Keys, Tensors, dict[str, Any]]:
    golden = load_golden("gptoss")
    w13, w2 = (golden[f"{name}_proj_blocks"] for name in ("gate_up", "down"))
    s13, s2 = (golden[f"{name}_proj_scales"] for name in ("gate_up", "down"))
    w13, w2 = (w.reshape(*w.shape[:2], -1) for w in (w13, w2))
    gate, up = (Fp4(w13[:, i::2], s13[:, i::2]) for i in range(2))
    tensors = store({"gate": gate, "up": up, "down": Fp4(w2, s2)}, kind)
    bias = golden["gate_up_proj_bias"]
    biases = {"gate_exps": bias[:, 0::2], "up_exps": bias[:, 1::2], "down_exps": golden["down_proj_bias"]}
    tensors |= {f"blk.0.ffn_{name}.bias": array for name, array in biases.items()}
    tensors |= {f"blk.0.ffn_gate_inp.{name}": golden[f"router_{name}"] for name in ("weight", "bias")}
    return "gpt-oss", sizes("gpt-oss", golden, "expert_feed_forward_length"), tensors, golden
