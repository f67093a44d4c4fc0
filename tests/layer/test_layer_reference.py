"""`reference.moe_layer`, the definition of a whole layer, and layers that are read from files against it."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from packed_examples import FORMATS, ROUTINGS, E, K, activation_of, make_experts, make_layer

import mxfp4moe as mx
from mxfp4moe import reference
from mxfp4moe.experts.weights import ExpertWeights

BF16 = np.dtype(ml_dtypes.bfloat16)


def token_ids(layer: mx.MoELayer, rng: np.random.Generator, num_tokens: int) -> np.ndarray | None:
    if layer.routing != "hash_topk":
        return None
    return rng.integers(len(layer.routing_arguments["tid2eid"]), size=num_tokens)


@pytest.mark.parametrize("kind", ROUTINGS)
def test_layer_computes_its_definition(isa: str, rng: np.random.Generator, kind: str) -> None:
    layer = make_layer(rng, kind)
    x = rng.standard_normal((7, K), np.float32)
    ids = token_ids(layer, rng, 7)
    result = layer(x, ids)
    exact = reference.moe_layer_float64(x, layer, ids)
    # Both round the intermediate to bfloat16 (2**-9 of each number), from sums that differ in their order of
    # addition alone, so that a number may be rounded to the other side: errors of the same size.
    contract = reference.moe_layer(x, layer, ids)
    size = np.linalg.norm(exact)
    assert np.linalg.norm(contract - exact) / size < 2.0**-7
    assert np.linalg.norm(result - contract) / size < 2.0**-7
    assert contract.dtype == np.float32
    assert exact.dtype == np.float64


@pytest.mark.parametrize("kind", ROUTINGS)
def test_definition_is_routed_sum_times_factor_plus_shared(rng: np.random.Generator, kind: str) -> None:
    layer = make_layer(rng, kind)
    x = rng.standard_normal((5, K)).astype(BF16)
    ids = token_ids(layer, rng, 5)
    weights, chosen = layer.choose(layer.router_logits(x), ids)
    how: dict[str, Any] = {"activation": layer.activation, "alpha": layer.alpha, "out_dtype": np.float32}
    total = reference.fused_experts(x, layer.experts, weights, chosen, limit=layer.limit, **how)
    total = total * np.float32(layer.routed_scaling_factor)
    if layer.shared_experts is not None:
        one = np.ones((5, 1), np.float32), np.zeros((5, 1), np.int32)
        total = total + reference.fused_experts(
            x, layer.shared_experts, *one, limit=layer.shared_limit, **how
        )
    expected = total.astype(BF16)
    got = reference.moe_layer(x, layer, ids)
    # Weights of the definition's own routing may be another float32 in the last place.
    close = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    assert (close <= 2.0**-7 * np.abs(expected.astype(np.float64)) + 1e-6).all()


def test_function_of_the_callers_own(rng: np.random.Generator) -> None:
    def first(logits: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.zeros((len(logits), top_k), np.int32)
        return np.ones(ids.shape, np.float32), ids

    experts = make_experts(rng, "mxfp4")
    layer = mx.MoELayer(experts, np.ones((E, K), np.float32), top_k=1, routing=first)
    x = rng.standard_normal((3, K), np.float32)
    expected = reference.fused_experts(x, experts, *first(x, 1))
    assert np.array_equal(reference.moe_layer(x, layer), expected)


# ---- experts in the forms of pack_experts ----


def weights_of(arrays: dict[str, Any]) -> ExpertWeights:
    return ExpertWeights(arrays.pop("format"), "test", (K, 32), arrays)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("form", ["stacked", "sequences", "pair", "pair of sequences"])
def test_experts_in_any_form_are_the_same(rng: np.random.Generator, name: str, form: str) -> None:
    experts = make_experts(rng, name)
    arrays = experts.arguments()
    if form.startswith("pair"):
        if arrays["gate_up_layout"] != "concatenated" or not experts.gated:
            pytest.skip("a pair has no layout")
        for key in ("w13", "w13_scales", "w13_zero_points"):
            if arrays.get(key) is not None:
                arrays[key] = tuple(np.split(arrays[key], 2, axis=1))
    if form.endswith("sequences"):
        for key in ("w13", "w13_scales", "w13_zero_points", "w2", "w2_scales", "w2_zero_points"):
            value = arrays.get(key)
            if isinstance(value, tuple):
                arrays[key] = tuple(list(half) for half in value)
            elif value is not None:
                arrays[key] = list(value)
    x = rng.standard_normal((4, K), np.float32)
    routed = np.full((4, 2), 0.5, np.float32), np.array([[0, 1], [1, 2], [2, 0], [0, 2]], np.int32)
    activation = activation_of(experts)
    expected = reference.fused_experts(x, experts, *routed, activation=activation)
    assert mx.pack_experts(**arrays) == experts
    result = reference.fused_experts(x, weights_of(arrays), *routed, activation=activation)
    assert np.array_equal(result, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_floats_are_rounded_as_they_are_packed(rng: np.random.Generator, dtype: Any) -> None:
    w13, w2 = (rng.standard_normal(shape).astype(dtype) for shape in ((E, 64, K), (E, K, 32)))
    arrays = {"w13": w13, "w13_scales": None, "w2": w2, "w2_scales": None, "format": "bf16"}
    x, routed = (
        rng.standard_normal((1, K), np.float32),
        (np.ones((1, 1), np.float32), np.ones((1, 1), np.int32)),
    )
    expected = reference.fused_experts(x, mx.pack_experts(**arrays), *routed)
    assert np.array_equal(reference.fused_experts(x, weights_of(arrays), *routed), expected)


def test_codes_in_blocks_and_default_block_shape(rng: np.random.Generator) -> None:
    x, routed = (
        rng.standard_normal((1, K), np.float32),
        (np.ones((1, 1), np.float32), np.ones((1, 1), np.int32)),
    )
    w13, w2 = (rng.standard_normal(shape).astype(np.float32) for shape in ((E, 64, K), (E, K, 32)))
    (b13, s13), (b2, s2) = mx.quantize_mxfp4(w13), mx.quantize_mxfp4(w2)
    blocks = {"w13": b13.reshape(E, 64, -1, 16), "w2": b2.view(np.int8), "w13_scales": s13, "w2_scales": s2}
    codes = [w.astype(ml_dtypes.float8_e4m3fn) for w in (w13, w2)]
    scales = [np.ones((E, rows, 1), np.float32) for rows in (2, 1)]
    fp8 = {"w13": codes[0], "w13_scales": scales[0], "w2": codes[1], "w2_scales": scales[1]}
    for arrays in ({**blocks, "format": "mxfp4"}, {**fp8, "format": "fp8_block"}):
        expected = reference.fused_experts(x, mx.pack_experts(**arrays), *routed)
        assert np.array_equal(reference.fused_experts(x, weights_of(arrays), *routed), expected)
