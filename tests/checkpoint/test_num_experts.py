"""More experts than int32 ids can name are refused wherever they come in, before anything is made of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bfloat16_models import BF16, CONFIGS, write_json, write_model
from packed_bytes import with_table
from packed_examples import make_experts

import mxfp4moe as mx
from mxfp4moe import checkpoint, reference

MOST = 2**31 - 1
MANY = MOST + 1
REFUSED = f": expected at most {MOST} experts, got {MANY}"


def many(dtype: Any, *shape: int) -> np.ndarray:
    """Zeros that take the memory of one expert."""
    return np.broadcast_to(np.zeros(shape, dtype), (MANY, *shape))


W13, W2, S13, S2 = ((np.uint8, *shape) for shape in ((64, 16), (32, 16), (64, 1), (32, 1)))


@pytest.mark.parametrize("name", ["w13", "w13_scales", "w2", "w2_scales", "w13_bias", "w2_bias"])
def test_pack_experts(name: str) -> None:
    arrays: dict[str, Any] = {
        key: np.zeros((1, *spec[1:]), spec[0])
        for key, spec in {"w13": W13, "w13_scales": S13, "w2": W2, "w2_scales": S2}.items()
    }
    shapes = {"w13_bias": (np.float32, 64), "w2_bias": (np.float32, 32)}
    arrays[name] = (
        many(*shapes[name]) if name in shapes else many(arrays[name].dtype, *arrays[name].shape[1:])
    )
    with pytest.raises(ValueError, match=re.escape(name + REFUSED)):
        mx.pack_experts(**arrays)


@pytest.mark.parametrize("position", [0, 1])
def test_pack_experts_as_a_pair(position: int) -> None:
    halves = [np.zeros((1, 32, 16), np.uint8)] * 2
    halves[position] = many(np.uint8, 32, 16)
    scales = (np.zeros((1, 32, 1), np.uint8),) * 2
    w2 = np.zeros((1, 32, 16), np.uint8), np.zeros((1, 32, 1), np.uint8)
    with pytest.raises(ValueError, match=re.escape(f"w13[{position}]{REFUSED}")):
        mx.pack_experts(tuple(halves), scales, *w2)


ROUTING: dict[str, Callable[[Any, np.ndarray], Any]] = {
    "topk_softmax": lambda module, x: module.topk_softmax(x, 2),
    "topk_sigmoid": lambda module, x: module.topk_sigmoid(x, 2),
    "topk_sqrt_softplus": lambda module, x: module.topk_sqrt_softplus(x, 2),
    "grouped_topk": lambda module, x: module.grouped_topk(x, 2, num_groups=2, topk_group=1),
    "hash_topk": lambda module, x: module.hash_topk(x, np.zeros(1, np.int64), np.zeros((3, 2), np.int64)),
}


@pytest.mark.parametrize("module", [mx, reference])
@pytest.mark.parametrize("name", ROUTING)
def test_routing(module: Any, name: str) -> None:
    logits = np.broadcast_to(np.float32(0), (1, MANY))
    with pytest.raises(ValueError, match="logits" + REFUSED):
        ROUTING[name](module, logits)


def test_expert_map(rng: np.random.Generator) -> None:
    experts = make_experts(rng, "mxfp4")
    x, ids = np.zeros((1, experts.hidden_size), np.float32), np.zeros((1, 1), np.int64)
    with pytest.raises(ValueError, match="expert_map" + REFUSED):
        mx.fused_experts(x, experts, np.ones((1, 1), np.float32), ids, expert_map=many(np.int8))


@pytest.mark.parametrize("count", [MANY, 2**40])
def test_packed_file(tmp_path: Path, rng: np.random.Generator, count: int) -> None:
    experts = make_experts(rng, "mxfp4")
    experts.save(tmp_path / "a")
    before = f'"num_experts": {experts.num_experts}'

    def edit(table: dict[str, Any]) -> bytes:
        text = json.dumps(table)
        assert text.count(before) == 1
        return text.replace(before, f'"num_experts": {count}').encode()

    (tmp_path / "b").write_bytes(with_table((tmp_path / "a").read_bytes(), edit))
    expected = re.escape(f"num_experts: expected a multiple of 1 in [1, {MOST}], got {count}")
    with pytest.raises(ValueError, match=expected):
        mx.PackedExperts.open(tmp_path / "b")


@pytest.mark.parametrize("model_type", CONFIGS)
def test_config(tmp_path: Path, rng: np.random.Generator, model_type: str) -> None:
    write_model(tmp_path, rng, model_type)
    config = json.loads((tmp_path / "config.json").read_text())
    (name,) = config.keys() & {"num_experts", "num_local_experts"}
    write_json(tmp_path / "config.json", config | {name: MANY})
    with pytest.raises(ValueError, match=rf"config.json: {name}: expected an integer in .*, got {MANY}"):
        checkpoint.open(tmp_path)


def test_gguf(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf package, which writes the file, is not installed")
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "qwen3moe")
    writer.add_uint32("qwen3moe.expert_count", MANY)
    writer.add_tensor("blk.0.ffn_gate_inp.weight", np.zeros((2, 32), BF16).view(np.uint16).view(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=rf"qwen3moe.expert_count: expected .*{MOST}.*, got {MANY}"):
        checkpoint.open(tmp_path / "a.gguf")
