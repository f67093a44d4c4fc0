"""Layers whose experts take activations of eight bits."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import assert_same_bits, bfloat16

import mxfp4moe as mx

HIDDEN, INTERMEDIATE, LATENT, EXPERTS, TOP_K = 96, 64, 64, 4, 2


def experts(rng: np.random.Generator, hidden: int, count: int, format: str) -> mx.PackedExperts:
    w13 = rng.standard_normal((count, 2 * INTERMEDIATE, hidden), np.float32)
    w2 = rng.standard_normal((count, hidden, INTERMEDIATE), np.float32)
    if format == "bf16":
        return mx.pack_experts(w13, None, w2, None, format="bf16")
    quantize = {"mxfp4": mx.quantize_mxfp4, "int8": mx.quantize_int8}[format]
    w13_codes, w2_codes = quantize(w13), quantize(w2)
    return mx.pack_experts(*w13_codes[:2], *w2_codes[:2], format=format)


def make_layer(rng: np.random.Generator, **options: Any) -> mx.MoELayer:
    hidden = LATENT if "latent_down" in options else HIDDEN
    router = rng.standard_normal((EXPERTS, HIDDEN), np.float32)
    given = {"activation_format": "int8", "top_k": TOP_K, **options}
    return mx.MoELayer(experts(rng, hidden, EXPERTS, "mxfp4"), router, **given)


@pytest.mark.parametrize("dtype", [np.float32, bfloat16, np.float16])
@pytest.mark.parametrize("shared_format", ["int8", "bf16"])
def test_routed_and_shared_experts(
    isa: str, rng: np.random.Generator, dtype: Any, shared_format: str
) -> None:
    hidden = rng.standard_normal((7, HIDDEN), np.float32).astype(dtype)
    layer = make_layer(rng)
    int8 = {"activation_format": "int8"}
    routed = mx.fused_experts(hidden, layer.experts, *layer.route(hidden), **int8)
    assert_same_bits(layer(hidden), routed)
    shared = experts(rng, HIDDEN, 1, shared_format)
    both = mx.MoELayer(**{**layer.arguments(), "shared_experts": shared})
    ones, zeros = np.ones((7, 1), np.float32), np.zeros((7, 1), np.int32)
    out = np.empty(hidden.shape, np.float32)
    total = mx.fused_experts(hidden, layer.experts, *layer.route(hidden), out=out, **int8).copy()
    possible = int8 if shared_format == "int8" else {}
    total += mx.fused_experts(hidden, shared, ones, zeros, out=out, **possible)
    assert_same_bits(both(hidden), total.astype(dtype))


def test_latent_experts_read_float32(isa: str, rng: np.random.Generator) -> None:
    down, up = (
        rng.standard_normal(shape, np.float32).astype(bfloat16)
        for shape in ((LATENT, HIDDEN), (HIDDEN, LATENT))
    )
    layer = make_layer(rng, latent_down=down, latent_up=up)
    hidden = rng.standard_normal((5, HIDDEN), np.float32)
    latent = mx.pack_linear(down)(hidden)
    routed = mx.fused_experts(latent, layer.experts, *layer.route(hidden), activation_format="int8")
    assert_same_bits(layer(hidden), mx.pack_linear(up)(routed))


def test_the_definition(isa: str, rng: np.random.Generator) -> None:
    def route(logits: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.arange(len(logits))[:, None] + np.arange(top_k)
        return np.full(ids.shape, 0.625, np.float32), (ids % EXPERTS).astype(np.int32)

    shared = experts(rng, HIDDEN, 1, "mxfp4")
    layer = make_layer(rng, routing=route, shared_experts=shared, activation="swigluoai", num_zero_experts=0)
    hidden = rng.standard_normal((6, HIDDEN), np.float32)
    assert_same_bits(layer(hidden), mx.reference.moe_layer(hidden, layer))


def test_the_option_is_kept(rng: np.random.Generator, tmp_path: Path) -> None:
    layer = make_layer(rng)
    hidden = rng.standard_normal((3, HIDDEN), np.float32)
    layer.save(tmp_path / "layer.packed")
    for other in (
        mx.MoELayer.open(tmp_path / "layer.packed"),
        pickle.loads(pickle.dumps(layer)),
        copy.copy(layer),
    ):
        assert other.activation_format == "int8" and other == layer
        assert_same_bits(other(hidden), layer(hidden))
    default = mx.MoELayer(**{**layer.arguments(), "activation_format": None})
    assert default != layer
    default.save(tmp_path / "default.packed")
    assert b"activation_format" not in (tmp_path / "default.packed").read_bytes()


def test_wrong_values(rng: np.random.Generator) -> None:
    layer = make_layer(rng)
    for changed, error, message in (
        ({"activation_format": "int4"}, ValueError, "activation_format: expected 'int8', got 'int4'"),
        ({"activation_format": 8}, TypeError, "activation_format: expected 'int8', got"),
        (
            {"experts": experts(rng, HIDDEN, EXPERTS, "bf16")},
            ValueError,
            "activation_format: expected None for experts of format 'bf16'",
        ),
    ):
        with pytest.raises(error, match=message):
            mx.MoELayer(**{**layer.arguments(), **changed})
