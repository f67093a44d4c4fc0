"""The checks of ``mxfp4moe selftest``: calls whose results any order of additions computes exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import ml_dtypes
import numpy as np

import mxfp4moe as mx
from mxfp4moe import reference
from mxfp4moe.formats import Format
from mxfp4moe.reference import ExpertArrays

_Array = np.ndarray[Any, Any]
_Results = tuple[_Array, ...]

# Tails everywhere: rows and K are no multiples of a panel or a tile, nor of the blocks of fp8_block.
_EXPERTS, _HIDDEN, _INTERMEDIATE, _TOP_K = 5, 160, 96, 2
_TOKENS = (1, 3, 70)
_BLOCK = 64
_SCALES = np.array([0.5, 1, 2], np.float32)
_FORMATS: tuple[Format, ...] = ("mxfp4", "mxfp8", "nvfp4", "fp8_block", "bf16", "int4", "int8")


@dataclass(frozen=True)
class Case:
    """A call, and the same call of the reference, which is made once for all kernel tables."""

    name: str
    call: Callable[[], _Results]
    expected: _Results

    def problem(self) -> str | None:
        """How the results differ from the reference; None if they do not."""
        try:
            results = self.call()
        except Exception as error:
            return f"{self.name}: {type(error).__name__}: {error}"
        for result, expected in zip(results, self.expected, strict=True):
            if (result.shape, result.dtype) != (expected.shape, expected.dtype):
                kinds = [f"{array.dtype} {array.shape}" for array in (expected, result)]
                return f"{self.name}: expected {kinds[0]}, got {kinds[1]}"
            differs = np.argwhere(_bits(result) != _bits(expected))
            if len(differs):
                place = tuple(differs[0].tolist())
                return (
                    f"{self.name}: {len(differs)} of {result.size} values differ, the first at {place}: "
                    f"expected {expected[place]}, got {result[place]}"
                )
        return None


def cases(seed: int) -> list[Case]:
    """Every check, with random inputs from `seed`."""
    rng = np.random.default_rng(seed)
    return [*_expert_cases(rng), *_quantizer_cases(rng), *_routing_cases(rng), *_attention_cases(rng)]


def _bits(values: _Array) -> _Array:
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}").reshape(values.shape)


# ---- experts ----


def _expert_cases(rng: np.random.Generator) -> list[Case]:
    result = []
    for format in _FORMATS:
        for gated in (True, False):
            arrays = _expert_arrays(rng, format, gated)
            packed = mx.pack_experts(**arrays._asdict())
            for tokens in _TOKENS:
                for dtype in (ml_dtypes.bfloat16, np.float32):
                    call = (
                        _hidden_states(rng, tokens).astype(dtype),
                        rng.choice(_SCALES, (tokens, _TOP_K)),
                        _distinct_ids(rng, tokens),
                    )
                    activation = "silu" if gated else "relu2"
                    name = f"fused_experts, {format}, {activation}, {tokens} tokens, {np.dtype(dtype).name}"
                    result.append(
                        Case(
                            name,
                            partial(_fused_experts, packed, call, activation),
                            (reference.fused_experts(call[0], arrays, *call[1:], activation=activation),),
                        )
                    )
    return result


def _fused_experts(packed: mx.PackedExperts, call: tuple[_Array, ...], activation: Any) -> _Results:
    hidden_states, topk_weights, topk_ids = call
    return (mx.fused_experts(hidden_states, packed, topk_weights, topk_ids, activation=activation),)


def _hidden_states(rng: np.random.Generator, tokens: int) -> _Array:
    """Four columns of each token are 1 or -1, the others are zero."""
    hidden = np.zeros((tokens, _HIDDEN), np.float32)
    for row in hidden:
        row[rng.choice(_HIDDEN, 4, replace=False)] = rng.choice([-1, 1], 4)
    return hidden


def _distinct_ids(rng: np.random.Generator, tokens: int) -> _Array:
    ids = np.stack([rng.permutation(_EXPERTS)[:_TOP_K] for _ in range(tokens)]).astype(np.int32)
    ids[rng.random(ids.shape) < 0.1] = -1
    return ids


def _expert_arrays(rng: np.random.Generator, format: Format, gated: bool) -> ExpertArrays:
    """Small integers, of which every sum and product is exact in float32.

    Of a token four hidden states are not zero, so gates are 32 +- 8, where the factor of silu is 1 in
    float32.
    """
    up = rng.integers(-2, 3, (_EXPERTS, _INTERMEDIATE, _HIDDEN))
    up_bias = rng.integers(-2, 3, (_EXPERTS, _INTERMEDIATE))
    if gated:
        gate = rng.integers(-1, 2, up.shape)
        w13, w13_bias = np.concatenate([gate, up], 1), np.concatenate([np.full_like(up_bias, 32), up_bias], 1)
    else:
        w13, w13_bias = up, up_bias
    w2 = rng.integers(-2, 3, (_EXPERTS, _HIDDEN, _INTERMEDIATE))
    w2_bias = rng.integers(-8, 9, (_EXPERTS, _HIDDEN)).astype(np.float32)
    halves = 2 if gated else 1
    encoded: dict[str, Any] = {}
    for name, weights, parts in (("w13", w13, halves), ("w2", w2, 1)):
        if format in ("int4", "int8"):
            encoded |= {name + part: array for part, array in _integers(rng, weights, format).items()}
        else:
            encoded[name], encoded[name + "_scales"] = _encode(rng, weights, format, parts)
    arrays = ExpertArrays(
        **encoded,
        w13_bias=w13_bias.astype(np.float32),
        w2_bias=w2_bias,
        format=format,
        block_shape=(_BLOCK, _BLOCK) if format == "fp8_block" else None,
        gated=gated,
    )
    if format == "nvfp4":
        w13_tensor_scale = rng.choice(_SCALES, (_EXPERTS, halves)[: 1 + gated])
        arrays = arrays._replace(
            w13_tensor_scale=w13_tensor_scale, w2_tensor_scale=rng.choice(_SCALES, _EXPERTS)
        )
    return arrays


def _encode(
    rng: np.random.Generator, weights: _Array, format: Format, halves: int
) -> tuple[_Array, _Array | None]:
    """Small integers exactly in a format: weights and block scales, which are random where they may be."""
    weights = weights.astype(np.float32)
    if format == "mxfp4":
        return reference.quantize_mxfp4(weights)
    if format == "mxfp8":
        return reference.quantize_mxfp8(weights)
    if format == "bf16":
        return weights.astype(ml_dtypes.bfloat16), None
    experts, rows, k = weights.shape[0], weights.shape[1] // halves, weights.shape[2]
    block_rows, block_k = (1, 16) if format == "nvfp4" else (_BLOCK, _BLOCK)
    scales = rng.choice(_SCALES, (experts, halves, -(-rows // block_rows), -(-k // block_k)))
    of_weights = scales.repeat(block_rows, axis=2)[:, :, :rows].repeat(block_k, axis=3)[..., :k]
    codes = weights / of_weights.reshape(weights.shape)
    scales = scales.reshape(experts, -1, scales.shape[-1])
    if format == "fp8_block":
        return codes.astype(ml_dtypes.float8_e4m3fn), scales
    e2m1 = codes.astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    return reference.pack_e2m1(e2m1), scales.astype(ml_dtypes.float8_e4m3fn)


def _integers(rng: np.random.Generator, weights: _Array, format: Format) -> dict[str, _Array]:
    """Small integers exactly in int4 or, with zero points, in int8, by what follows the matrix's name."""
    experts, rows, k = weights.shape
    scales = rng.choice(_SCALES[:2], (experts, rows, k // 32))
    codes = weights / scales.repeat(32, axis=-1)
    if format == "int4":
        return {"": reference.pack_e2m1((codes + 8).astype(np.uint8)), "_scales": scales}
    zeros = rng.integers(-100, 101, scales.shape).astype(np.int8)
    codes = (codes + zeros.repeat(32, axis=-1)).astype(np.int8)
    return {"": codes, "_scales": scales.astype(ml_dtypes.bfloat16), "_zero_points": zeros}


# ---- quantization ----


def _quantizer_cases(rng: np.random.Generator) -> list[Case]:
    values = rng.standard_normal((48, 160)) * np.ldexp(1.0, rng.integers(-12, 12, (48, 1)))
    result = []
    for dtype in (np.float32, ml_dtypes.bfloat16):
        w = values.astype(dtype)
        for name in ("mxfp4", "mxfp8", "nvfp4", "fp8_block", "int4", "int8"):
            quantized = getattr(reference, f"quantize_{name}")(w)
            result.append(
                Case(
                    f"quantize_{name}, {np.dtype(dtype).name}",
                    partial(_quantize, name, w),
                    tuple(map(np.asarray, _given(quantized))),
                )
            )
            result.append(
                Case(
                    f"dequantize_{name}",
                    partial(_dequantize, name, quantized),
                    (getattr(reference, f"dequantize_{name}")(*quantized),),
                )
            )
    return result


def _quantize(name: str, w: _Array) -> _Results:
    return tuple(map(np.asarray, _given(getattr(mx, f"quantize_{name}")(w))))


def _given(quantized: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arrays that there are: symmetric integers have no zero points."""
    return tuple(array for array in quantized if array is not None)


def _dequantize(name: str, quantized: tuple[_Array, ...]) -> _Results:
    return (getattr(mx, f"dequantize_{name}")(*quantized),)


# ---- routing ----


def _routing_cases(rng: np.random.Generator) -> list[Case]:
    """Two logits of each token are equal and so far above the others that their weights are halves."""
    logits = rng.integers(-8, 9, (70, 24)).astype(np.float32) - 300
    for row in logits:
        row[rng.choice(24, 2, replace=False)] = 3
    hidden = rng.integers(-4, 5, (70, _HIDDEN)).astype(np.float32)
    weight = rng.integers(-4, 5, (_EXPERTS, _HIDDEN)).astype(np.float32)
    experts = mx.pack_experts(**_expert_arrays(rng, "bf16", gated=True)._asdict())
    layer = mx.MoELayer(experts, weight, top_k=_TOP_K)
    return [
        Case("topk_softmax", lambda: mx.topk_softmax(logits, 2), reference.topk_softmax(logits, 2)),
        Case(
            "router_logits",
            lambda: (layer.router_logits(hidden),),
            (reference.router_logits(hidden, weight),),
        ),
    ]


# ---- attention ----


def _attention_cases(rng: np.random.Generator) -> list[Case]:
    """All scores of a head are equal, so that the result is the mean of integers."""
    keys = rng.standard_normal((600, 2, 40), np.float32)
    values = rng.integers(-100, 101, keys.shape).astype(np.float32)
    queries = np.zeros((70, 6, 40), np.float32)
    hidden = rng.standard_normal((70, _HIDDEN), np.float32)
    weight = rng.standard_normal(_HIDDEN, np.float32)
    result = [
        Case(
            "rms_norm",
            lambda: (mx.rms_norm(hidden, weight, eps=1e-6),),
            (reference.rms_norm(hidden, weight, eps=1e-6),),
        )
    ]
    for window in (None, 128):
        options: dict[str, Any] = {"scale": 1.0, "sliding_window": window, "sinks": np.zeros(6, np.float32)}
        expected = reference.attention(queries, keys, values, **options)
        dtypes: tuple[Literal["bfloat16", "float32"], ...] = ("bfloat16", "float32")
        for dtype in dtypes:
            cache = mx.KVCache(2, 40, dtype=dtype)
            cache.append(keys, values)
            name = f"attention, {dtype}, window {window}"
            result.append(Case(name, partial(_attention, queries, cache, options), (expected,)))
    return result


def _attention(queries: _Array, cache: mx.KVCache, options: dict[str, Any]) -> _Results:
    return (mx.attention(queries, cache, **options),)
