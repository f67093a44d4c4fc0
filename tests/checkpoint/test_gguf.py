"""GGUF files: those that the gguf package writes are read right, everything else is refused by name."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import PARTS, qwen3_weights
from damage import mutate
from golden_gguf import Keys, Tensors, gpt_oss, mixtral, qwen3, write
from golden_layers import check_against_golden, dequantize

import mxfp4moe as mx
from mxfp4moe import checkpoint
from mxfp4moe.checkpoint.gguf.file import GgufFile

gguf = pytest.importorskip("gguf", reason="the gguf package, which writes the files, is not installed")

MODELS = {"mixtral": mixtral, "qwen3": qwen3, "gpt-oss": gpt_oss}
KINDS = ("MXFP4", "BF16", "F16", "F32")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_golden_file(isa: str, tmp_path: Path, name: str, kind: str) -> None:
    architecture, keys, tensors, golden = MODELS[name](kind)
    path = write(tmp_path / "model.gguf", architecture, keys, tensors)
    check_against_golden(mx.MoELayer.from_checkpoint(path), golden)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_read_exactly(tmp_path: Path, kind: str) -> None:
    architecture, keys, tensors, _ = qwen3(kind)
    parts = checkpoint.read_layer(write(tmp_path / "model.gguf", architecture, keys, tensors))
    got, (_, expected) = dequantize(parts.experts), qwen3_weights()
    for part in PARTS:
        assert np.array_equal(got[part], expected[part].values())
    assert parts.router_bias is None
    assert parts.shared_experts is None
    assert parts.routed_scaling_factor == 1


def scaled(tensors: Tensors, parts: tuple[str, ...] = PARTS) -> tuple[Tensors, dict[str, np.ndarray]]:
    """The tensors with a scale for each expert of the matrices `parts`."""
    rng = np.random.default_rng(3)
    count = tensors["blk.0.ffn_gate_inp.weight"].shape[0]
    scales = {part: rng.uniform(0.5, 2, count).astype(np.float32) for part in parts}
    return tensors | {f"blk.0.ffn_{part}_exps.scale": scale for part, scale in scales.items()}, scales


@pytest.mark.parametrize("parts", [PARTS, ("down",), ("up",)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_scales_of_experts(tmp_path: Path, name: str, kind: str, parts: tuple[str, ...]) -> None:
    """They multiply the products of an expert, not its biases."""
    architecture, keys, tensors, _ = MODELS[name](kind)
    tensors, scales = scaled(tensors, parts)
    arguments = checkpoint.read_layer(
        write(tmp_path / "model.gguf", architecture, keys, tensors)
    ).experts.arguments()
    got = dict(zip(PARTS, (*arguments["w13_tensor_scale"].T, arguments["w2_tensor_scale"]), strict=True))
    for part in PARTS:
        assert np.array_equal(got[part], scales.get(part, np.ones_like(got[part])))
    without = {n: array for n, array in tensors.items() if not n.endswith(".scale")}
    plain = checkpoint.read_layer(write(tmp_path / "plain.gguf", architecture, keys, without))
    expected = plain.experts.arguments() | {
        "w13_tensor_scale": np.stack([got["gate"], got["up"]], axis=-1),
        "w2_tensor_scale": got["down"],
    }
    layer = mx.MoELayer.from_checkpoint(tmp_path / "model.gguf")
    assert layer.experts == mx.pack_experts(**expected)


@pytest.mark.parametrize("format", ["mxfp4", "mxfp8", "nvfp4", "fp8_block"])
def test_scaled_floats_quantized_while_loaded(tmp_path: Path, format: str) -> None:
    """As the same floats times their scales are, where these are powers of two."""
    architecture, keys, tensors, _ = mixtral("F32")
    tensors, scales = scaled(tensors)
    product = dict(tensors)
    for part in PARTS:
        scale = np.exp2(np.round(np.log2(scales[part]))).astype(np.float32)
        tensors[f"blk.0.ffn_{part}_exps.scale"] = scale
        product[f"blk.0.ffn_{part}_exps.weight"] = (
            tensors[f"blk.0.ffn_{part}_exps.weight"] * scale[:, None, None]
        )
        del product[f"blk.0.ffn_{part}_exps.scale"]
    got, expected = (
        mx.MoELayer.from_checkpoint(write(tmp_path / name, architecture, keys, each), quantize=format)
        for name, each in (("a.gguf", tensors), ("b.gguf", product))
    )
    assert got.experts == expected.experts


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("ffn_gate_inp.scale", (1,)),
        ("ffn_gate_exps.bias", (3, 4)),
        ("ffn_gate_inp_shexp.weight", (64,)),
        ("ffn_up.weight", (8, 8)),
        ("ffn_gate.0.weight", (8, 8)),
        ("exp_probs_b.scale", (1,)),
        ("ffn_down_exps.rotation", (8, 8)),
    ],
)
def test_tensors_of_the_block_that_nobody_reads(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    architecture, keys, tensors, _ = qwen3()
    path = write(
        tmp_path / "model.gguf", architecture, keys, tensors | {f"blk.0.{name}": np.zeros(shape, np.float32)}
    )
    with pytest.raises(ValueError, match=f"model.gguf: expected no tensor .* got 'blk.0.{name}'"):
        checkpoint.read_layer(path)


def test_tensors_that_change_nothing_here(tmp_path: Path) -> None:
    architecture, keys, tensors, golden = qwen3()
    names = (
        "ffn_norm.weight",
        "ffn_up_exps.input_scale",
        "attn_q.scale",
        "attn_norm.weight",
        "post_attention_norm.weight",
    )
    extra = {f"blk.0.{name}": np.ones(4, np.float32) for name in names}
    path = write(tmp_path / "model.gguf", architecture, keys, tensors | extra)
    check_against_golden(mx.MoELayer.from_checkpoint(path), golden)


@pytest.mark.parametrize("scale", [np.ones(2, np.float32), np.ones(9, np.float16)])
def test_wrong_scales_of_experts(tmp_path: Path, scale: np.ndarray) -> None:
    architecture, keys, tensors, _ = qwen3()
    path = write(tmp_path / "model.gguf", architecture, keys, tensors | {"blk.0.ffn_up_exps.scale": scale})
    with pytest.raises(ValueError, match=r"tensor blk.0.ffn_up_exps.scale: expected F32 \[\d+\], got"):
        checkpoint.read_layer(path)


def test_floats_quantized_while_loaded(tmp_path: Path) -> None:
    architecture, keys, tensors, golden = mixtral("BF16")
    path = write(tmp_path / "model.gguf", architecture, keys, tensors)
    check_against_golden(mx.MoELayer.from_checkpoint(path, quantize="mxfp4"), golden)


def test_layers_without_experts_and_what_open_says(tmp_path: Path) -> None:
    architecture, keys, tensors, _ = mixtral()
    moved = {name.replace("blk.0.", "blk.1."): array for name, array in tensors.items()}
    moved["blk.0.ffn_gate.weight"] = np.zeros((64, 256), np.float32)
    opened = checkpoint.open(write(tmp_path / "model.gguf", architecture, keys, moved))
    assert (opened.model_type, opened.num_layers, opened.moe_layers) == ("llama", 2, (1,))
    assert (opened.hidden_size, opened.intermediate_size, opened.num_experts, opened.top_k) == (
        256,
        224,
        8,
        2,
    )
    assert (opened.activation, opened.limit, opened.shared_intermediate_size) == ("silu", None, 0)
    info = opened.describe_layer(1)
    assert (info.format, info.source, info.shared_source) == ("mxfp4", "GGUF MXFP4", None)
    assert info.nbytes == sum(array.nbytes for name, array in moved.items() if "exps" in name)
    with pytest.raises(ValueError, match=r"layer: expected one that has experts \(1\), got 0, a dense layer"):
        opened.read_layer(0)
    with pytest.raises(ValueError, match=r"layer: expected an integer in \[0, 1\], got 2"):
        opened.read_layer(2)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_any_part_of_a_split_file(tmp_path: Path, number: int) -> None:
    architecture, keys, tensors, golden = qwen3()
    name = "model-{:05d}-of-00003.gguf"
    for part in range(3):
        split = {"split.no": part, "split.count": 3}
        some = {key: tensors[key] for key in sorted(tensors)[part::3]}
        write(tmp_path / name.format(part + 1), architecture, keys | split, some)
    check_against_golden(mx.MoELayer.from_checkpoint(tmp_path / name.format(number)), golden)
    (tmp_path / name.format(2)).rename(tmp_path / "other.gguf")
    with pytest.raises(
        ValueError, match=r"other.gguf: expected a name that ends with -<number>-of-00003.gguf"
    ):
        checkpoint.open(tmp_path / "other.gguf")
    with pytest.raises(FileNotFoundError, match="model-00002-of-00003.gguf: expected a file, got nothing"):
        checkpoint.open(tmp_path / name.format(1))


def deepseek2(tmp_path: Path, extra: Keys, bias: bool = True) -> checkpoint.LayerDescription:
    """A layer of random floats with a shared expert and the metadata `extra`."""
    rng = np.random.default_rng(0)
    shapes = {"gate": (96, 64), "up": (96, 64), "down": (64, 96)}
    tensors = {f"blk.0.ffn_{p}_exps.weight": rng.random((8, *s), np.float32) for p, s in shapes.items()}
    tensors |= {f"blk.0.ffn_{p}_shexp.weight": rng.random(s, np.float32) for p, s in shapes.items()}
    tensors["blk.0.ffn_gate_inp.weight"] = rng.random((8, 64), np.float32)
    if bias:
        tensors["blk.0.exp_probs_b.bias"] = np.arange(8, dtype=np.float32)
    keys = {"expert_count": 8, "expert_used_count": 2, **extra}
    keys = {f"deepseek2.{key}": value for key, value in keys.items()}
    return checkpoint.read_layer(write(tmp_path / "model.gguf", "deepseek2", keys, tensors))


def test_deepseek_routing_and_shared_expert(tmp_path: Path) -> None:
    keys = {
        "expert_gating_func": 2,
        "expert_weights_norm": True,
        "expert_weights_scale": 2.5,
        "expert_group_count": 4,
        "expert_group_used_count": 2,
    }
    parts = deepseek2(tmp_path, keys)
    assert parts.routing == "grouped_topk"
    arguments = dict(parts.routing_arguments)
    assert np.array_equal(arguments.pop("correction_bias"), np.arange(8))
    assert arguments == {
        "num_groups": 4,
        "topk_group": 2,
        "renormalize": True,
        "routed_scaling_factor": 2.5,
    }
    assert parts.shared_experts is not None
    assert dequantize(parts.shared_experts)["down"].shape == (1, 64, 96)

    parts = deepseek2(tmp_path, {**keys, "expert_group_count": 1})
    assert (parts.routing, parts.routed_scaling_factor) == ("topk_sigmoid", 1)
    # DeepSeek-V2: softmax over all, not normalized, and the factor multiplies the routed sum.
    parts = deepseek2(tmp_path, {"expert_weights_scale": 16.0, "leading_dense_block_count": 0}, bias=False)
    assert (parts.routing_text, parts.routed_scaling_factor) == ("topk_softmax(renormalize=False)", 16)


WRONG_KEYS: dict[str, tuple[Keys, str]] = {
    "gating unknown": ({"expert_gating_func": 4}, "expert_gating_func: expected 1, 2 or 3 .*, got 4"),
    "softmax with bias": ({"expert_gating_func": 1}, r"expert_gating_func: expected sigmoid .* got 1"),
    "groups": ({"expert_gating_func": 2, "expert_group_count": 3}, "expected a divisor of 8 experts, got 3"),
    "groups kept": (
        {"expert_gating_func": 2, "expert_group_count": 4},
        r"expert_group_used_count: expected an integer in \[1, 4\], got no such key",
    ),
    "scale": ({"expert_weights_scale": float("nan")}, "expert_weights_scale: expected a finite number"),
    "norm": ({"expert_weights_norm": 1}, "expert_weights_norm: expected a bool, got 1"),
    "experts": (
        {"expert_gating_func": 2, "expert_count": 7},
        r"exp_probs_b.bias: expected .* \[7\], got F32 \[8\]",
    ),
    "experts 0": ({"expert_count": 0}, r"expert_count: expected an integer in .*, got 0"),
    "top_k": ({"expert_used_count": 9}, r"expert_used_count: expected an integer in \[1, 8\], got 9"),
    "top_k text": (
        {"expert_used_count": "2"},
        r"expert_used_count: expected an integer in \[1, 8\], got '2'",
    ),
    "hidden": ({"embedding_length": 32}, "embedding_length: expected 64, as the tensors have, got 32"),
    "intermediate": ({"expert_feed_forward_length": 32}, "expected 96, as the tensors have, got 32"),
}


@pytest.mark.parametrize("case", WRONG_KEYS)
def test_wrong_metadata_is_refused(tmp_path: Path, case: str) -> None:
    keys, message = WRONG_KEYS[case]
    with pytest.raises(ValueError, match=f"model.gguf: .*{message}"):
        deepseek2(tmp_path, keys)


def _without(name: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.__delitem__(name)


def _changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: change(tensors[name])})


GATE = "blk.0.ffn_gate_exps.weight"
WRONG_TENSORS: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "router missing": (
        _without("blk.0.ffn_gate_inp.weight"),
        "expected a tensor blk.0.ffn_gate_inp.weight, got none",
    ),
    "gate missing": (_without(GATE), f"expected a tensor {GATE}, got none among 7"),
    "down missing": (_without("blk.0.ffn_down_exps.weight"), "a tensor blk.0.ffn_down_exps.weight, got none"),
    "bias missing": (_without("blk.0.ffn_up_exps.bias"), "a tensor blk.0.ffn_up_exps.bias, got none"),
    "router bias missing": (
        _without("blk.0.ffn_gate_inp.bias"),
        "a tensor blk.0.ffn_gate_inp.bias, got none",
    ),
    "router shape": (
        _changed("blk.0.ffn_gate_inp.weight", lambda a: a[:4]),
        r"ffn_gate_inp.weight: expected F32 or F16 or BF16 \[5, 96\], got F32 \[4, 96\]",
    ),
    "gate flat": (
        _changed(GATE, lambda a: a[0]),
        r"ffn_gate_exps.weight: expected .* \[5, 160, 96\], got MXFP4 \[160, 96\]",
    ),
    "up of another size": (
        _changed("blk.0.ffn_up_exps.weight", lambda a: a[:, :32]),
        r"ffn_up_exps.weight: expected .* \[5, 160, 96\], got MXFP4 \[5, 32, 96\]",
    ),
    "mixed types": (
        _changed("blk.0.ffn_up_exps.weight", lambda a: np.zeros((5, 160, 96), np.float32)),
        "expected gate and up both in floats, .*, got MXFP4 and F32",
    ),
    "integers": (
        _changed("blk.0.ffn_up_exps.weight", lambda a: np.zeros((5, 160, 96), np.int32)),
        r"ffn_up_exps.weight: expected F32 or F16 or BF16 or MXFP4 .*, got I32 \[5, 160, 96\]",
    ),
    "bias integer": (
        _changed("blk.0.ffn_up_exps.bias", lambda a: a.astype(np.int16)),
        r"ffn_up_exps.bias: expected F32 or F16 or BF16 \[5, 160\], got type 25",
    ),
}


@pytest.mark.parametrize("case", WRONG_TENSORS)
def test_wrong_tensors_are_refused(tmp_path: Path, case: str) -> None:
    change, message = WRONG_TENSORS[case]
    architecture, keys, tensors, _ = gpt_oss()
    change(tensors)
    path = write(tmp_path / "model.gguf", architecture, keys, tensors)
    with pytest.raises(ValueError, match=f"model.gguf.*{message}"):
        checkpoint.read_layer(path)


def test_a_file_may_have_any_name(tmp_path: Path) -> None:
    architecture, keys, tensors, _ = mixtral()
    path = write(tmp_path / "model.gguf", architecture, keys, tensors)
    assert checkpoint.open(path.rename(tmp_path / "sha256-4d4f45")).model_type == architecture


def test_other_architectures_and_files_are_refused(tmp_path: Path) -> None:
    _, keys, tensors, _ = mixtral()
    path = write(tmp_path / "model.gguf", "bert", keys, tensors)
    with pytest.raises(ValueError, match="general.architecture: expected 'afmoe', 'arctic', .*, got 'bert'"):
        checkpoint.open(path)
    big = write(tmp_path / "big.gguf", "llama", {}, {}, endianess=gguf.GGUFEndian.BIG)
    for content, message in (
        (b"", "expected a GGUF file, got a file of 0 bytes"),
        (b"safetensors" * 9, "expected a GGUF file, got one that does not begin with GGUF"),
        (path.read_bytes()[:200], "expected .*, got "),
        (big.read_bytes(), "version: expected 2 or 3, little-endian, got 50331648"),
    ):
        (tmp_path / "x.gguf").write_bytes(content)
        with pytest.raises(ValueError, match=f"x.gguf.*{message}"):
            checkpoint.open(tmp_path / "x.gguf")
    with pytest.raises(FileNotFoundError, match="expected a file, got nothing"):
        checkpoint.open(tmp_path / "nothing.gguf")
    with pytest.raises(ValueError, match="expected a file, got a directory"):
        (tmp_path / "folder.gguf").mkdir()
        checkpoint.open(tmp_path / "folder.gguf")


def test_huge_counts_are_refused_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", "llama", {"key": [1, 2, 3]}, {"t": np.zeros((2, 32), np.float32)})
    content = path.read_bytes()
    count = content.index(b"key") + 3 + 4 + 4  # type of the value, type of the elements
    for position in (8, 16, count):
        for number in (2**40, 2**63 - 1, 2**64 - 1):
            path.write_bytes(content[:position] + struct.pack("<Q", number) + content[position + 8 :])
            with pytest.raises(ValueError, match=f"expected at most .*, got {number}"):
                GgufFile(path)
            path.unlink()


def test_mutated_file_is_refused_or_read_in_full(tmp_path: Path, rng: np.random.Generator) -> None:
    architecture, keys, tensors, _ = gpt_oss()
    content = write(tmp_path / "model.gguf", architecture, keys, tensors).read_bytes()
    num_refused = 0
    for number in range(600):
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(mutate(content[:2048], rng) + content[2048:])
        try:
            parts = checkpoint.read_layer(path)
        except (ValueError, TypeError, OSError) as error:
            num_refused += 1
            assert "expected" in str(error)
        else:
            with np.errstate(over="ignore", invalid="ignore"):  # a scale may have become 255
                arrays = dequantize(parts.experts).values()
            assert all(len(array) == parts.num_experts for array in arrays)
        path.unlink()
    assert num_refused > 200
