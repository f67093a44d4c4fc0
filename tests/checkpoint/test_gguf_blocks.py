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
from mxfp4moe.checkpoint._arrange import Matrix, same_groups
from mxfp4moe.checkpoint.gguf.blocks import BLOCK_TYPES, split_nvfp4
from mxfp4moe.checkpoint.gguf.file import BLOCKS

INTEGERS = [name for name, each in BLOCK_TYPES.items() if each.format.startswith("int")]
# Where blocks have float16 numbers, if not at their beginning alone.
FLOATS_AT = {
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
}
IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def test_nvfp4_blocks_of_gguf() -> None:
    """Every code at every place, and every scale byte; without a sign, and 0 for the code of NaN."""
    scales = np.arange(256, dtype=np.uint8).reshape(64, 1, 4)
    rng = np.random.default_rng(0)
    nibbles = rng.integers(16, size=(64, 4, 16)).astype(np.uint8)
    data = (nibbles[..., :8] | nibbles[..., 8:] << 4).reshape(64, 1, 32)
    codes, got, *_ = split_nvfp4(np.concatenate([scales, data], axis=-1))
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
    for begin in FLOATS_AT.get(name, (0,)) if name in INTEGERS else ():
        scales = rng.uniform(-2, 2, blocks.shape[:-1]).astype("<f2")
        scales[0, 0], scales[-1, -1] = 2.0**-24, 65504
        blocks[..., begin : begin + 2] = scales[..., None].view(np.uint8)
    if name not in INTEGERS:
        blocks[..., 0] = rng.integers(100, 140, blocks.shape[:-1])
    return blocks


def k_value(name: str, block: bytes, k: int) -> float:
    """Element `k` of a block of 256, one by one as the type defines it."""
    scale, *least = (float(np.frombuffer(block[at : at + 2], "<f2")[0]) for at in FLOATS_AT[name])
    if name in ("Q4_K", "Q5_K"):
        part, at = divmod(k, 32)
        s = block[4:16]
        factor, minus = s[part % 4], s[part % 4 + 4]
        low = s[part % 4 + 8]
        if part < 4:
            factor, minus = factor & 63, minus & 63
        else:
            factor, minus = low & 15 | factor >> 6 << 4, low >> 4 | minus >> 6 << 4
        codes = block[16:] if name == "Q4_K" else block[48:]
        code = codes[part // 2 * 32 + at] >> 4 * (part % 2) & 15
        if name == "Q5_K":
            code |= (block[16 + at] >> part & 1) << 4
        return scale * factor * code - least[0] * minus
    half, at = divmod(k, 128)
    if name == "Q6_K":
        low = block[64 * half + at % 64] >> 4 * (at // 64) & 15
        high = block[128 + 32 * half + at % 32] >> 2 * (at // 32) & 3
        factor = np.frombuffer(block[192:208], np.int8)[k // 16]
        return scale * int(factor) * (low + 16 * high - 32)
    code = block[(16 if name == "Q2_K" else 32) + 32 * half + at % 32] >> 2 * (at // 32) & 3
    part = k // 16
    if name == "Q2_K":
        return scale * (block[part] & 15) * code - least[0] * (block[part] >> 4)
    factor = block[96 + part % 8] >> 4 * (part // 8) & 15
    factor += (block[104 + part % 4] >> 2 * (part // 4) & 3) << 4
    third = block[k % 32] >> 4 * half + at // 32 & 1
    return scale * (factor - 32) * (code + 4 * third - 4)


def value(name: str, block: bytes, k: int) -> float:
    """Element `k` of a block, one by one as the type defines it."""
    if name.endswith("_K"):
        return k_value(name, block, k)
    scale, offset = (float(number) for number in np.frombuffer(block[:4], "<f2"))
    if name == "Q8_0":
        return scale * int(np.int8(block[2 + k] - 256 * (block[2 + k] > 127)))
    part, at = divmod(k, 32)
    first = {"Q4_0": 2, "Q4_1": 4, "Q5_0": 6, "Q5_1": 8, "IQ4_NL": 2, "IQ4_XS": 8}[name] + 16 * part
    byte = block[first + at % 16]
    code = byte >> 4 if at >= 16 else byte & 15
    if name == "Q4_0":
        return scale * (code - 8)
    if name == "Q4_1":
        return scale * code + offset
    if name == "Q5_0":
        fifth = int.from_bytes(block[2:6], "little") >> at & 1
        return scale * (code + 16 * fifth - 16)
    if name == "Q5_1":
        fifth = int.from_bytes(block[4:8], "little") >> at & 1
        return scale * (code + 16 * fifth) + offset
    if name == "IQ4_XS":
        low = block[4 + part // 2] >> 4 * (part % 2) & 15
        high = int.from_bytes(block[2:4], "little") >> 2 * part & 3
        scale *= low + 16 * high - 32
    return scale * IQ4[code]


def values(name: str, blocks: np.ndarray) -> np.ndarray:
    """All elements of blocks, exactly, of which a float64 holds each."""
    elements, _ = BLOCKS[name]
    columns = blocks.shape[1] * elements
    return np.array(
        [[value(name, row[k // elements].tobytes(), k % elements) for k in range(columns)] for row in blocks]
    )


def packed(name: str, blocks: np.ndarray) -> mx.PackedLinear:
    format, split = BLOCK_TYPES[name]
    matrix = split(blocks)
    return mx.pack_linear(matrix.weight, matrix.scales, format=format, offsets=matrix.offsets)


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_stand_for_the_same_numbers(isa: str, name: str) -> None:
    """To the last bit of float32: as products by unit vectors, of which the first is taken twice."""
    blocks = random_blocks(np.random.default_rng(0), name, 3, 512)
    unit = np.eye(512, dtype=np.float32)
    got = packed(name, blocks)(np.concatenate([unit, unit[:1]]))
    expected = values(name, blocks).astype(np.float32) + np.float32(0)  # -0 is 0 in a sum
    assert np.array_equal(got[:512].T.view(np.uint32), expected.view(np.uint32))
    assert np.array_equal(got[512], got[0])


@pytest.mark.parametrize("name", INTEGERS)
def test_gguf_package_reads_the_same(name: str) -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
    blocks = random_blocks(np.random.default_rng(1), name, 4, 1024)
    expected = gguf.quants.dequantize(blocks.reshape(4, -1), gguf.GGMLQuantizationType[name])
    got = packed(name, blocks)(np.eye(1024, dtype=np.float32)).T
    assert np.array_equal(got, expected)


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
    "Q4_K and Q6_K": {"gate": "Q4_K", "up": "Q4_K", "down": "Q6_K"},
    "Q4_0 and Q4_1": {"gate": "Q4_0", "up": "Q4_1", "down": "Q5_1"},
    "Q3_K and Q5_K and Q2_K": {"gate": "Q3_K", "up": "Q5_K", "down": "Q2_K"},
    "Q6_K and MXFP4": {"gate": "Q6_K", "up": "MXFP4", "down": "Q4_K"},
    "Q8_0 and MXFP4": {"gate": "Q8_0", "up": "MXFP4", "down": "MXFP4"},
}


@pytest.mark.parametrize("name", MIXED)
def test_weights_are_read_exactly(tmp_path: Path, name: str) -> None:
    path, values = write_layer(tmp_path / "model.gguf", MIXED[name])
    experts = checkpoint.read_layer(path).experts
    got = dequantize(experts)
    for part, expected in values.items():
        assert np.array_equal(got[part], expected)
    assert experts.source == f"GGUF {' and '.join(dict.fromkeys(MIXED[name].values()))}"
    types = {part: BLOCK_TYPES[kind].format for part, kind in MIXED[name].items()}
    first = types["gate"] if types["gate"] == types["up"] else "int8"
    assert experts.format == (first if first == types["down"] else (first, types["down"]))
    packed_experts = mx.pack_experts(**experts.arguments())
    assert packed_experts.format == experts.format
    assert mx.pack_experts(**packed_experts.arguments()) == packed_experts


@pytest.mark.parametrize(
    "kinds", [("NVFP4", "Q4_K", "Q8_0"), ("Q5_0", "NVFP4", "Q5_0"), ("MXFP4", "NVFP4", "NVFP4")]
)
def test_types_that_have_no_format_in_common(tmp_path: Path, kinds: tuple[str, str, str]) -> None:
    path, _ = write_layer(tmp_path / "model.gguf", dict(zip(PARTS, kinds, strict=True)))
    message = f"{path}: tensors .*gate and up both in floats, .*, got {' and '.join(kinds[:2])}"
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


@pytest.mark.parametrize("scale", [3e38, np.inf, np.nan])
def test_scales_that_give_no_offsets(scale: float) -> None:
    """Beside a matrix with offsets, others get their own: 128 times a scale, or infinity less infinity."""
    codes, one = np.zeros((1, 32), np.int8), np.ones((1, 1), np.float32)
    parts = [[Matrix(codes, one * np.float32(scale))], [Matrix(codes, one, offsets=one)]]
    with pytest.raises(ValueError, match="scales: expected zero points beside offsets"):
        same_groups(parts, "int8")
