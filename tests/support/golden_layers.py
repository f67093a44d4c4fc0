"""What a layer from a checkpoint computes, against the golden result; its matrices as float32."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from checkpoints import BFLOAT16, PARTS, Fp4
from problems import rel_l2

import mxfp4moe as mx
from mxfp4moe.checkpoint import ExpertWeights

# They are what the contract's own roundings give, and a margin. A bfloat16 output adds its rounding.
BOUNDS = [(BFLOAT16, 2.8e-3), (np.float32, 2.2e-3)]


def check_against_golden(layer: mx.MoELayer, golden: dict[str, Any]) -> None:
    hidden_states, input_ids = golden["hidden_states"], golden.get("input_ids")
    topk_weights, topk_ids = layer.route(hidden_states, input_ids)
    order = np.argsort(topk_ids, axis=-1)
    assert np.array_equal(np.take_along_axis(topk_ids, order, -1), golden["topk_ids"])
    # Logits are float32 sums of H products in some order; a weight changes relatively by at most twice what a
    # logit does.
    router = golden.get("router_weight", golden.get("gate_weight"))
    logit_error = 2 * router.shape[1] * 2.0**-24 * (np.abs(hidden_states) @ np.abs(router).T).max()
    weights = np.take_along_axis(topk_weights, order, -1)
    np.testing.assert_allclose(weights, golden["topk_weights"], rtol=2 * logit_error + 2.0**-20, atol=0)
    for dtype, bound in BOUNDS:
        result = layer(hidden_states.astype(dtype), input_ids)
        assert result.dtype == dtype
        assert rel_l2(result, golden["expected"]) <= bound


def dequantize(weights: ExpertWeights) -> dict[str, np.ndarray]:
    """The matrices as float32, gate and up apart, by a definition of their formats of its own."""
    arguments = weights.arguments()
    kinds = arguments["format"]
    w13_kind, w2_kind = (kinds, kinds) if isinstance(kinds, str) else kinds
    w13, scales = arguments["w13"], arguments["w13_scales"]
    zeros, offsets = (
        (*(arguments.get(f"w13_{name}") or (None, None)), arguments.get(f"w2_{name}"))
        for name in ("zero_points", "offsets")
    )
    if not isinstance(w13, tuple):
        assert arguments.get("gate_up_layout", "concatenated") == "concatenated"
        half = w13.shape[1] // 2
        w13, scales = (w13[:, :half], w13[:, half:]), (None, None)
    tensor_scales = arguments.get("w13_tensor_scale", np.ones((len(w13[0]), 2), np.float32))
    down_scale = arguments.get("w2_tensor_scale", np.ones(len(w13[0]), np.float32))
    scales = scales or (None, None)
    return {
        part: np.stack(
            [
                _values(kind, arguments, w, *(None if each is None else each[e] for each in others)) * t[e]
                for e, w in enumerate(matrices)
            ]
        )
        for part, kind, matrices, t, *others in zip(
            PARTS,
            (w13_kind, w13_kind, w2_kind),
            (*w13, arguments["w2"]),
            (*tensor_scales.T, down_scale),
            (*scales, arguments["w2_scales"]),
            zeros,
            offsets,
            strict=True,
        )
    }


def _values(
    kind: str, arguments: dict[str, Any], weight: np.ndarray, *others: np.ndarray | None
) -> np.ndarray:
    scales, zeros, offsets = others
    if kind == "bf16":
        assert weight.dtype == BFLOAT16
        return weight.astype(np.float32)
    assert scales is not None
    if kind == "fp8_block":
        rows, columns = (b or n for b, n in zip(arguments["block_shape"], weight.shape, strict=True))
        full = np.repeat(np.repeat(scales, rows, axis=0), columns, axis=1)
        assert scales.dtype == np.float32
        return np.asarray(weight.astype(np.float32) * full[: weight.shape[0], : weight.shape[1]])
    if kind == "mxfp4":
        codes = np.asarray(weight).reshape(len(weight), -1).view(np.uint8)
        return Fp4(codes, np.asarray(scales).view(np.uint8)).values()
    if kind in ("int4", "int8"):
        codes = weight
        if kind == "int4":
            assert weight.dtype == np.uint8
            codes = np.stack([weight & 15, weight >> 4], axis=-1).reshape(len(weight), -1)
        columns = codes.shape[1] // scales.shape[1]
        factors = np.repeat(scales.astype(np.float32), columns, axis=1)
        if offsets is not None:
            assert zeros is None
            assert offsets.dtype == scales.dtype
            count = codes.astype(np.int32) + (0 if kind == "int4" else 128)
            with np.errstate(invalid="ignore"):  # signaling NaN
                every = np.repeat(offsets.astype(np.float64), columns, axis=1)
                return np.asarray((count * factors.astype(np.float64) + every).astype(np.float32))
        middle = 8 if kind == "int4" else 0
        zero = middle if zeros is None else np.repeat(zeros.astype(np.int32), columns, axis=1)
        return np.asarray((codes.astype(np.int32) - zero).astype(np.float32) * factors)
    if kind == "nvfp4":
        block = np.repeat(scales.astype(np.float32), 16, axis=-1)
        return np.asarray(
            Fp4(weight, np.full((len(weight), weight.shape[1] // 16), 127, np.uint8)).values() * block
        )
    assert kind == "mxfp8"
    factors = np.asarray(scales).view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    return np.asarray(weight.astype(np.float32) * np.repeat(factors, 32, axis=-1))
