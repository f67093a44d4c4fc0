"""MoELayer: a golden checkpoint gives the golden result; routing does not depend on the batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from paths import DATA

import mxfp4moe as mx
from mxfp4moe import reference
from mxfp4moe.checkpoint.safetensors import save_file
from mxfp4moe.cli._synthetic import GptOssShape, SyntheticCheckpoint

GOLDEN = DATA / "gptoss_h96_i160_e5_k3.npz"
MLP = "model.layers.7.mlp"
BFLOAT16 = ml_dtypes.bfloat16


def write_golden(folder: Path, num_files: int) -> dict[str, np.ndarray]:
    """Write the golden layer as layer 7 of a model folder of `num_files` files; return its arrays."""
    with np.load(GOLDEN) as file:
        golden = dict(file)
    tensors = {
        f"{MLP}.router.{name}": golden[f"router_{name}"].astype(BFLOAT16) for name in ("weight", "bias")
    }
    for name in ("gate_up_proj", "down_proj"):
        for part in ("blocks", "scales"):
            tensors[f"{MLP}.experts.{name}_{part}"] = golden[f"{name}_{part}"]
        tensors[f"{MLP}.experts.{name}_bias"] = golden[f"{name}_bias"].astype(BFLOAT16)
    if num_files == 1:
        save_file(folder / "model.safetensors", tensors)
    else:
        weight_map = {}
        for number in range(num_files):
            file_name = f"model-{number + 1:05d}-of-{num_files:05d}.safetensors"
            names = sorted(tensors)[number::num_files]
            save_file(folder / file_name, {name: tensors[name] for name in names})
            weight_map |= dict.fromkeys(names, file_name)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    shape = json.loads(str(golden["config"]))
    config = {
        "model_type": "gpt_oss",
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["intermediate"],
        "num_local_experts": shape["experts"],
        "num_experts_per_tok": shape["topk"],
        "swiglu_limit": shape["limit"],
        "num_hidden_layers": 24,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return golden


@pytest.fixture
def small_layer(tmp_path: Path) -> mx.MoELayer:
    """A random layer of 8 experts, two for each token."""
    shape = GptOssShape(hidden_size=320, intermediate_size=64, num_experts=8, top_k=2)
    SyntheticCheckpoint(shape, seed=1).write(tmp_path, lambda num_bytes: None)
    return mx.MoELayer.from_checkpoint(tmp_path)


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got.astype(np.float64) - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("num_files", [1, 3])
def test_golden_checkpoint(isa: str, tmp_path: Path, num_files: int) -> None:
    golden = write_golden(tmp_path, num_files)
    layer = mx.MoELayer.from_checkpoint(tmp_path, layer=7)
    hidden_states = golden["hidden_states"]
    topk_weights, topk_ids = layer.route(hidden_states)
    order = np.argsort(topk_ids, axis=-1)
    assert np.array_equal(np.take_along_axis(topk_ids, order, -1), golden["topk_ids"])
    # Logits are float32 sums of 96 products, here and there in another order; a softmax weight changes
    # relatively by at most twice what a logit does.
    logit_error = 2 * 96 * 2.0**-24 * (np.abs(hidden_states) @ np.abs(golden["router_weight"]).T).max()
    got = np.take_along_axis(topk_weights, order, -1)
    np.testing.assert_allclose(got, golden["topk_weights"], rtol=2 * logit_error + 2.0**-20, atol=0)
    for dtype, allowed in ((BFLOAT16, 2.8e-3), (np.float32, 2.2e-3)):
        result = layer(hidden_states.astype(dtype))
        assert result.dtype == dtype
        assert relative_error(result, golden["expected"]) <= allowed


def test_attributes_and_repr(tmp_path: Path) -> None:
    golden = write_golden(tmp_path, 1)
    layer = mx.MoELayer.from_checkpoint(tmp_path, layer=7)
    assert (layer.hidden_size, layer.intermediate_size, layer.num_experts, layer.top_k) == (96, 160, 5, 3)
    assert (layer.activation, layer.alpha, layer.limit) == ("swigluoai", None, 7.0)
    assert np.array_equal(layer.router_weight, golden["router_weight"])
    assert layer.router_bias is not None
    assert np.array_equal(layer.router_bias, golden["router_bias"])
    assert not layer.router_weight.flags.writeable
    assert not layer.router_bias.flags.writeable
    parts = layer.experts.unpack()
    assert np.array_equal(parts.w13, golden["gate_up_proj_blocks"].reshape(5, 320, 48))
    for text in ("layer=7", "num_experts=5", "top_k=3", "hidden_size=96", "intermediate_size=160", "'mxfp4'"):
        assert text in repr(layer)


def test_call_is_route_and_fused_experts(
    isa: str, small_layer: mx.MoELayer, rng: np.random.Generator
) -> None:
    hidden_states = rng.standard_normal((6, 320), np.float32).astype(BFLOAT16)
    expected = mx.fused_experts(
        hidden_states, small_layer.experts, *small_layer.route(hidden_states), activation="swigluoai"
    )
    assert small_layer(hidden_states).tobytes() == expected.tobytes()
    assert small_layer(hidden_states, num_threads=1).tobytes() == expected.tobytes()
    out = np.full((6, 320), np.nan, BFLOAT16)
    assert small_layer(hidden_states, out=out) is out
    assert out.tobytes() == expected.tobytes()
    assert small_layer(hidden_states, out=hidden_states) is hidden_states
    assert hidden_states.tobytes() == expected.tobytes()


def test_checkpoint_limit_is_used(isa: str, tmp_path: Path) -> None:
    golden = write_golden(tmp_path, 1)
    results = []
    for limit in (7.0, 0.5):
        config = json.loads((tmp_path / "config.json").read_text()) | {"swiglu_limit": limit}
        (tmp_path / "config.json").write_text(json.dumps(config))
        layer = mx.MoELayer.from_checkpoint(tmp_path, layer=7)
        assert layer.limit == limit
        results.append(layer(golden["hidden_states"]))
    assert relative_error(results[1], results[0]) > 0.1


@pytest.mark.parametrize("leading", [(), (0,), (1,), (2, 3), (2, 0, 3), (1, 2, 1)])
def test_any_leading_shape(
    small_layer: mx.MoELayer, rng: np.random.Generator, leading: tuple[int, ...]
) -> None:
    hidden_states = rng.standard_normal((*leading, 320), np.float32)
    result = small_layer(hidden_states)
    assert result.shape == hidden_states.shape
    topk_weights, topk_ids = small_layer.route(hidden_states)
    assert topk_weights.shape == topk_ids.shape == (*leading, 2)
    assert (topk_weights.dtype, topk_ids.dtype) == (np.float32, np.int32)
    flat = small_layer(hidden_states.reshape(-1, 320))
    assert result.tobytes() == flat.tobytes()


@pytest.mark.parametrize("hidden_size", [32, 96, 2880, 8192, 8192 + 32])
def test_logits_do_not_depend_on_the_batch(rng: np.random.Generator, hidden_size: int) -> None:
    layer = layer_of(rng, hidden_size)
    hidden_states = rng.standard_normal((1030, hidden_size), np.float32).astype(BFLOAT16)
    logits = layer.router_logits(hidden_states)
    assert logits.dtype == np.float32
    for size in (1, 2, 3, 7, 16, 33, 1029):
        begin = int(rng.integers(len(hidden_states) - size))
        part = layer.router_logits(hidden_states[begin : begin + size].copy())
        assert part.tobytes() == logits[begin : begin + size].tobytes()
    # Where it stands in memory makes no difference either.
    memory = np.zeros(hidden_size + 64, BFLOAT16)
    for offset in (0, 1, 3, 8, 31):
        row = memory[offset : offset + hidden_size]
        row[:] = hidden_states[5]
        assert layer.router_logits(row).tobytes() == logits[5].tobytes()
    strided = np.repeat(hidden_states[:9], 2, axis=0)[::2]
    assert layer.router_logits(strided).tobytes() == logits[:9].tobytes()
    assert layer.router_logits(hidden_states[8::-1]).tobytes() == logits[8::-1].tobytes()


@pytest.mark.parametrize("dtype", [BFLOAT16, np.float16, np.float32])
def test_logits_match_the_reference(rng: np.random.Generator, dtype: Any) -> None:
    layer = layer_of(rng, 2880)
    hidden_states = rng.standard_normal((20, 2880), np.float32).astype(dtype)
    expected = reference.router_logits(hidden_states, layer.router_weight, layer.router_bias)
    # Sums of n float32 terms in any order: n eps sum |x w|; then one rounding for the bias.
    magnitude = np.abs(reference.round_bfloat16(hidden_states)) @ np.abs(layer.router_weight).T
    bound = 2880 * 2.0**-24 * magnitude + 2.0**-23 * np.abs(expected)
    assert (np.abs(layer.router_logits(hidden_states) - expected) <= bound).all()


def layer_of(rng: np.random.Generator, hidden_size: int) -> mx.MoELayer:
    """A layer of four experts with a random router, made from arrays."""
    num_experts = 4
    matrices = []
    for rows, columns in ((64, hidden_size), (hidden_size, 32)):
        matrices.append(rng.integers(0, 256, (num_experts, rows, columns // 2), np.uint8))
        matrices.append(np.full((num_experts, rows, columns // 32), 120, np.uint8))
    weight = rng.standard_normal((num_experts, hidden_size), np.float32).astype(BFLOAT16)
    experts = mx.pack_experts(*matrices, format="mxfp4")
    return mx.MoELayer(experts, weight, np.arange(num_experts, dtype=np.float32), top_k=2)


def test_threads_do_not_change_routing(isa: str, small_layer: mx.MoELayer, rng: np.random.Generator) -> None:
    hidden_states = rng.standard_normal((37, small_layer.hidden_size)).astype(np.float32)
    expected = [small_layer.router_logits(hidden_states), *small_layer.route(hidden_states)]
    for count in (1, 2, 5):
        got = [
            small_layer.router_logits(hidden_states, num_threads=count),
            *small_layer.route(hidden_states, num_threads=count),
        ]
        assert [array.tobytes() for array in got] == [array.tobytes() for array in expected]
    for function in (small_layer.router_logits, small_layer.route):
        with pytest.raises(ValueError, match="num_threads: expected"):
            function(hidden_states, num_threads=0)
        with pytest.raises(TypeError):
            function(hidden_states, None, 1)


def test_token_is_bit_identical_in_any_batch(
    isa: str, small_layer: mx.MoELayer, rng: np.random.Generator
) -> None:
    hidden_states = rng.standard_normal((40, 320), np.float32).astype(BFLOAT16)
    whole = small_layer(hidden_states)
    for token in (0, 17, 39):
        assert small_layer(hidden_states[token]).tobytes() == whole[token].tobytes()


def test_layer_from_arrays_without_bias(rng: np.random.Generator) -> None:
    base = layer_of(rng, 64)
    layer = mx.MoELayer(base.experts, base.router_weight, top_k=4, activation="gelu")
    assert layer.router_bias is None
    hidden_states = np.ones((2, 64), np.float32)
    assert np.array_equal(layer.router_logits(hidden_states)[0], layer.router_logits(hidden_states)[1])
    expected = mx.fused_experts(hidden_states, base.experts, *layer.route(hidden_states), activation="gelu")
    assert layer(hidden_states).tobytes() == expected.tobytes()


WRONG_CALLS: dict[str, tuple[Any, type[Exception], str]] = {
    "wrong width": (np.zeros((2, 319), np.float32), ValueError, r"shape \(..., 320\), got shape \(2, 319\)"),
    "scalar": (np.float32(1), ValueError, r"hidden_states: expected shape \(..., 320\), got shape \(\)"),
    "float64": (np.zeros((2, 320)), TypeError, "hidden_states: expected an array of bfloat16, .* float64"),
    "integers": (
        np.zeros((2, 320), np.int32),
        TypeError,
        "hidden_states: expected an array of bfloat16, .* int32",
    ),
    "masked": (
        np.ma.zeros((2, 320), np.float32),
        TypeError,
        "hidden_states: expected an array without a mask",
    ),
    "objects": (np.zeros((2, 320), object), TypeError, "hidden_states: expected an array of bfloat16"),
    "None": (None, TypeError, "hidden_states: expected an array of bfloat16, .*, got None"),
    "text": ("hidden", TypeError, "hidden_states: expected an array of bfloat16"),
}


@pytest.mark.parametrize("case", WRONG_CALLS)
def test_wrong_call_is_refused(small_layer: mx.MoELayer, case: str) -> None:
    hidden_states, error, message = WRONG_CALLS[case]
    with pytest.raises(error, match=message):
        small_layer(hidden_states)
    with pytest.raises(error, match=message):
        small_layer.route(hidden_states)


def test_nan_in_a_token_is_refused_by_the_router(small_layer: mx.MoELayer) -> None:
    hidden_states = np.ones((3, 320), np.float32)
    hidden_states[1, 5] = np.nan
    with pytest.raises(
        ValueError, match=r"router_logits: expected finite values or -inf, got nan at position \(1, 0\)"
    ):
        small_layer(hidden_states)


def test_big_endian_and_strided_hidden_states(small_layer: mx.MoELayer, rng: np.random.Generator) -> None:
    hidden_states = rng.standard_normal((4, 320), np.float32)
    expected = small_layer(hidden_states)
    for same in (
        hidden_states.astype(">f4"),
        np.asfortranarray(hidden_states),
        np.repeat(hidden_states, 2, axis=1)[:, ::2],
    ):
        assert np.array_equal(small_layer(same), expected)


def test_wrong_construction_is_refused(rng: np.random.Generator) -> None:
    layer = layer_of(rng, 64)
    weight = np.zeros((4, 64), np.float32)
    with pytest.raises(TypeError, match="experts: expected PackedExperts, got None"):
        mx.MoELayer(None, weight, top_k=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"router_weight: expected shape \(4, 64\), got shape \(64, 4\)"):
        mx.MoELayer(layer.experts, weight.T, top_k=2)
    with pytest.raises(TypeError, match="router_weight: expected an array of float32, .* int64"):
        mx.MoELayer(layer.experts, np.zeros((4, 64), int), top_k=2)
    with pytest.raises(ValueError, match=r"router_bias: expected shape \(4,\), got shape \(5,\)"):
        mx.MoELayer(layer.experts, weight, np.zeros(5, np.float32), top_k=2)
    for top_k in (0, 5):
        with pytest.raises(ValueError, match=rf"top_k: expected an integer in \[1, 4\], got {top_k}"):
            mx.MoELayer(layer.experts, weight, top_k=top_k)
    with pytest.raises(TypeError, match="top_k: expected an integer, got 2.0"):
        mx.MoELayer(layer.experts, weight, top_k=2.0)  # type: ignore[arg-type]
    for options, error, message in (
        ({"activation": "relu"}, ValueError, "activation: expected 'silu', .* got 'relu'"),
        ({"alpha": 1.0}, ValueError, "alpha: expected None with activation 'silu', got 1.0"),
        ({"limit": 0}, ValueError, "limit: expected a number above 0 .* got 0.0"),
        ({"routing": 3}, TypeError, "routing: expected the name of a routing function, or a function, got 3"),
    ):
        with pytest.raises(error, match=message):
            mx.MoELayer(layer.experts, weight, top_k=1, **options)
