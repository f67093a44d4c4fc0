"""Types of blocks of GGUF files: every code at every place, and the scales."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from checkpoints import PARTS, Tensors
from golden_gguf import write
from golden_layers import dequantize

import mxfp4moe as mx
from mxfp4moe import checkpoint
from mxfp4moe.checkpoint.gguf.blocks import BLOCK_TYPES, split_nvfp4
from mxfp4moe.checkpoint.gguf.file import BLOCKS

INTEGERS = [name for name, each in BLOCK_TYPES.items() if each.format.startswith("int")]
IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def test_nvfp4_blocks_of_gguf() -> None:
    """Every code at every place, and every scale byte; without a sign, and 0 for the code of NaN."""
    scales = np.arange(256, dtype=np.uint8).reshape(64, 1, 4)
    rng = np.random.default_rng(0)
    nibbles = rng.integers(16, size=(64, 4, 16)).astype(np.uint8)
    data = (nibbles[..., :8] | nibbles[..., 8:] << 4).reshape(64, 1, 32)
    codes, got = split_nvfp4(np.concatenate([scales, data], axis=-1))
    assert np.array_equal(np.stack([codes & 15, codes >> 4], axis=-1).reshape(64, 4, 16), nibbles)
    bytes_ = scales.reshape(64, 4)
    expected = (bytes_ & 0x7F).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    expected[bytes_ == 0x7F] = 0
    assert np.array_equal(got.astype(np.float32), expected, equal_nan=True)
    assert np.isnan(expected).sum() == 1  # 0xFF, which stands for no number


def random_blocks(rng: np.random.Generator, name: str, rows: int, columns: int) -> np.ndarray:
    """Any bytes, but finite scales."""
    elements, nbytes = BLOCKS[name]
    blocks = rng.integers(256, size=(rows, columns // elements, nbytes)).astype(np.uint8)
    scales = rng.uniform(-2, 2, blocks.shape[:-1]).astype("<f2")
    scales[0, 0], scales[-1, -1] = 2.0**-24, 65504
    if name in INTEGERS:
        blocks[..., :2] = scales[..., None].view(np.uint8)
    else:
        blocks[..., 0] = rng.integers(100, 140, blocks.shape[:-1])
    return blocks


def value(name: str, block: bytes, k: int) -> float:
    """Element `k` of a block, one by one as the type defines it."""
    scale = float(np.frombuffer(block[:2], "<f2")[0])
    if name == "Q8_0":
        return scale * int(np.int8(block[2 + k] - 256 * (block[2 + k] > 127)))
    part, at = divmod(k, 32)
    first = {"Q4_0": 2, "Q5_0": 6, "IQ4_NL": 2, "IQ4_XS": 8}[name] + 16 * part
    byte = block[first + at % 16]
    code = byte >> 4 if at >= 16 else byte & 15
    if name == "Q4_0":
        return scale * (code - 8)
    if name == "Q5_0":
        fifth = int.from_bytes(block[2:6], "little") >> at & 1
        return scale * (code + 16 * fifth - 16)
    if name == "IQ4_XS":
        low = block[4 + part // 2] >> 4 * (part % 2) & 15
        high = int.from_bytes(block[2:4], "little") >> 2 * part & 3
        scale *= low + 16 * high - 32
    return scale * IQ4[code]


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_stand_for_the_same_numbers(name: str) -> None:
    blocks = random_blocks(np.random.default_rng(0), name, 3, 512)
    codes, scales = BLOCK_TYPES[name].split(blocks)
    assert scales.shape == (3, 16)
    if BLOCK_TYPES[name].format == "int4":
        assert codes.dtype == np.uint8
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(3, -1).astype(np.int8) - np.int8(8)
    assert codes.dtype == np.int8
    got = codes.astype(np.float64) * np.repeat(scales.astype(np.float64), 32, axis=1)
    elements, _ = BLOCKS[name]
    expected = [
        [value(name, row[k // elements].tobytes(), k % elements) for k in range(512)] for row in blocks
    ]
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("name", INTEGERS)
def test_gguf_package_reads_the_same(name: str) -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
    blocks = random_blocks(np.random.default_rng(1), name, 4, 1024)
    codes, scales = BLOCK_TYPES[name].split(blocks)
    if BLOCK_TYPES[name].format == "int4":
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(4, -1).astype(np.int8) - np.int8(8)
    expected = gguf.quants.dequantize(blocks.reshape(4, -1), gguf.GGMLQuantizationType[name])
    factors = np.repeat(scales.astype(np.float32), 32, axis=1)
    assert np.array_equal(codes.astype(np.float32) * factors, expected)


EXPERTS, HIDDEN, INTERMEDIATE = 3, 256, 512


def write_layer(path: Path, kinds: dict[str, str], extra: Tensors | None = None) -> tuple[Path, Tensors]:
    """A layer of Qwen3-MoE whose matrices have these types, by part; its weights as gguf reads them."""
    gguf = pytest.importorskip("gguf", reason="the gguf package, which writes the files, is not installed")
    rng = np.random.default_rng(2)
    shapes = {"gate": (INTERMEDIATE, HIDDEN), "up": (INTERMEDIATE, HIDDEN), "down": (HIDDEN, INTERMEDIATE)}
    tensors: Tensors = {"blk.0.ffn_gate_inp.weight": rng.standard_normal((EXPERTS, HIDDEN), np.float32)}
    values, types = {}, {}
    for part, kind in kinds.items():
        rows, columns = shapes[part]
        blocks = random_blocks(rng, kind, EXPERTS * rows, columns).reshape(EXPERTS, rows, -1)
        if kind != "NVFP4":
            values[part] = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
        name = f"blk.0.ffn_{part}_exps.weight"
        tensors[name], types[name] = blocks, kind
    keys = {"embedding_length": HIDDEN, "expert_feed_forward_length": INTERMEDIATE, "block_count": 1}
    keys |= {"expert_count": EXPERTS, "expert_used_count": 2}
    named = {f"qwen3moe.{key}": value for key, value in keys.items()}
    return write(path, "qwen3moe", named, tensors | (extra or {}), types), values


MIXED = {
    **{name: dict.fromkeys(PARTS, name) for name in INTEGERS},
    "Q5_0 and Q8_0": {"gate": "Q5_0", "up": "Q5_0", "down": "Q8_0"},
    "IQ4_XS and IQ4_NL": {"gate": "IQ4_XS", "up": "IQ4_XS", "down": "IQ4_NL"},
    "Q4_0 and Q8_0": {"gate": "Q4_0", "up": "Q4_0", "down": "Q8_0"},
    "Q4_0 and Q5_0 and IQ4_XS": {"gate": "Q4_0", "up": "Q5_0", "down": "IQ4_XS"},
    "MXFP4 and Q8_0": {"gate": "MXFP4", "up": "MXFP4", "down": "Q8_0"},
    "Q8_0 and MXFP4": {"gate": "Q8_0", "up": "MXFP4", "down": "MXFP4"},
}


@pytest.mark.parametrize("name", MIXED)
def test_weights_are_read_exactly(tmp_path: Path, name: str) -> None:
    path, values = write_layer(tmp_path / "model.gguf", MIXED[name])
    experts = checkpoint.read_layer(path).experts
    got = dequantize(experts)
    for part in PARTS:
        assert np.array_equal(got[part], values[part])
    assert experts.source == f"GGUF {' and '.join(dict.fromkeys(MIXED[name].values()))}"


@pytest.mark.parametrize(
    "kinds", [("NVFP4", "NVFP4", "Q8_0"), ("Q5_0", "NVFP4", "Q5_0"), ("MXFP4", "MXFP4", "NVFP4")]
)
def test_types_that_have_no_format_in_common(tmp_path: Path, kinds: tuple[str, str, str]) -> None:
    path, _ = write_layer(tmp_path / "model.gguf", dict(zip(PARTS, kinds, strict=True)))
    message = f"{path}: tensors .*gate, up and down all in floats, .*, got {' and '.join(kinds)}"
    with pytest.raises(ValueError, match=message):
        checkpoint.read_layer(path)


@pytest.mark.parametrize("parts", [(), ("down",), ("gate", "up", "down")])
def test_nvfp4_with_its_separate_scales(tmp_path: Path, parts: tuple[str, ...]) -> None:
    scales = {part: np.linspace(0.5, 3, EXPERTS, dtype=np.float32) + len(part) for part in parts}
    extra = {f"blk.0.ffn_{part}_exps.scale": array for part, array in scales.items()}
    path, _ = write_layer(tmp_path / "model.gguf", dict.fromkeys(PARTS, "NVFP4"), extra)
    arguments = checkpoint.read_layer(path).experts.arguments()
    one = np.ones(EXPERTS, np.float32)
    first = np.stack([scales.get("gate", one), scales.get("up", one)], axis=-1)
    assert np.array_equal(arguments["w13_tensor_scale"], first)
    assert np.array_equal(arguments["w2_tensor_scale"], scales.get("down", one))
    assert mx.pack_experts(**arguments).format == "nvfp4"


def test_scales_of_experts_beside_integers(tmp_path: Path) -> None:
    scale = {"blk.0.ffn_down_exps.scale": np.ones(EXPERTS, np.float32)}
    path, _ = write_layer(tmp_path / "model.gguf", MIXED["Q8_0"], scale)
    message = f"{path}: expected no tensor blk.0.ffn_down_exps.scale beside integers"
    with pytest.raises(ValueError, match=message):
        checkpoint.read_layer(path)
