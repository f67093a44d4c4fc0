"""Packing expert weights while they are loaded, quantized if asked to: one expert's floats at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, get_args

import numpy as np

from mxfp4moe import quantize as quantizers
from mxfp4moe._arguments import cast, check_choice, describe, value_error
from mxfp4moe.config import resolve_num_threads
from mxfp4moe.experts.packed_experts import PackedExperts
from mxfp4moe.experts.packing import pack_experts
from mxfp4moe.experts.spec import BlockShape
from mxfp4moe.experts.weights import ExpertWeights
from mxfp4moe.formats import BFLOAT16, FORMATS

QuantizeFormat = Literal["mxfp4", "mxfp8", "fp8_block", "nvfp4", "int4", "int8"]
QUANTIZE_FORMATS: tuple[QuantizeFormat, ...] = get_args(QuantizeFormat)

_BLOCK_SHAPE = (128, 128)

# A quantizer returns weights, scales and, for nvfp4, a scale of the tensor; for symmetric integers None.
_QUANTIZERS: dict[QuantizeFormat, Callable[..., tuple[Any, ...]]] = {
    "mxfp4": quantizers.quantize_mxfp4,
    "mxfp8": quantizers.quantize_mxfp8,
    "fp8_block": quantizers.quantize_fp8_block,
    "nvfp4": quantizers.quantize_nvfp4,
    "int4": quantizers.quantize_int4,
    "int8": quantizers.quantize_int8,
}


def check_quantize(value: object, name: str = "quantize") -> QuantizeFormat | None:
    """`value`, the argument `name`, as a format to quantize to, or None."""
    return None if value is None else check_choice(name, value, QUANTIZE_FORMATS)


def matrix_quantizer(
    name: QuantizeFormat, block_shape: BlockShape | None, num_threads: int
) -> Callable[[Any], tuple[Any, ...]]:
    """What quantizes a matrix to the format `name`; the block shape is that of fp8_block, None for others."""
    blocks = {} if block_shape is None else {"block_shape": block_shape}
    quantizer = partial(_QUANTIZERS[name], num_threads=num_threads, **blocks)
    if not FORMATS[name].has_groups:
        return quantizer

    def with_small_scales(matrix: Any) -> tuple[Any, ...]:
        codes, scales, zero_points = quantizer(matrix)
        return codes, cast(scales, BFLOAT16), zero_points  # which is exact

    return with_small_scales


def pack_weights(weights: ExpertWeights | PackedExperts, quantize: QuantizeFormat | None) -> PackedExperts:
    """Pack the weights, first quantized to the format `quantize` if that is not None."""
    if isinstance(weights, PackedExperts):
        if quantize is not None:
            raise value_error("quantize", "None for layers that are packed", describe(quantize))
        return weights
    if quantize is not None:
        weights = quantize_weights(weights, quantize)
    return pack_experts(**weights.arguments())


def quantize_weights(weights: ExpertWeights, name: QuantizeFormat) -> ExpertWeights:
    """Return the weights quantized to the format `name`, if they are floats; raise if they are not."""
    if weights.format != "bf16":
        raise value_error("quantize", f"None for a checkpoint in {weights.source}", repr(name))
    arrays = weights.arrays
    blocks = _BLOCK_SHAPE if name == "fp8_block" else None
    quantizer = matrix_quantizer(name, blocks, resolve_num_threads(None))
    *gate_up, down = ([quantizer(matrix) for matrix in part] for part in _scaled_matrices(arrays))

    def w13(index: int) -> Any:
        parts = tuple([q[index] for q in part] for part in gate_up)
        return parts if weights.gated else parts[0]

    result: dict[str, Any] = {
        "w13": w13(0),
        "w13_scales": w13(1),
        "w2": [q[0] for q in down],
        "w2_scales": [q[1] for q in down],
        "w2_bias": arrays.get("w2_bias"),
        "w13_bias": _concatenated_bias(arrays),
        "gated": weights.gated,
    }
    if blocks is not None:
        result["block_shape"] = blocks
    if name == "nvfp4":
        result["w13_tensor_scale"] = np.array([[q[2] for q in part] for part in gate_up], np.float32).T
        result["w2_tensor_scale"] = np.array([q[2] for q in down], np.float32)
    return ExpertWeights(name, f"{weights.source}, quantized to {name}", weights.sizes, result)


def _scaled_matrices(arrays: dict[str, Any]) -> Iterator[Iterator[Any]]:
    """Gate (if any), up and down of every expert, times the float32 scale of the matrix if it has one."""
    parts = (*_gate_up(arrays), arrays["w2"])
    scales: Any = [itertools.repeat(None)] * len(parts)
    if "w13_tensor_scale" in arrays:
        w13_scales = arrays["w13_tensor_scale"]
        scales = [*w13_scales.reshape(len(w13_scales), -1).T, arrays["w2_tensor_scale"]]
    for matrices, factors in zip(parts, scales, strict=True):
        yield (w if s is None else cast(w, np.float32) * s for w, s in zip(matrices, factors, strict=False))


def _gate_up(arrays: dict[str, Any]) -> tuple[Any, ...]:
    """Gate and up matrices of every expert, whatever the order of their rows; those of up without a gate."""
    w13 = arrays["w13"]
    if not arrays.get("gated", True):
        return (w13,)
    if isinstance(w13, tuple):
        return w13
    if arrays.get("gate_up_layout") == "interleaved":
        return w13[:, 0::2], w13[:, 1::2]
    half = w13.shape[1] // 2
    return w13[:, :half], w13[:, half:]


def _concatenated_bias(arrays: dict[str, Any]) -> Any:
    bias = arrays.get("w13_bias")
    if bias is None or arrays.get("gate_up_layout") != "interleaved":
        return bias
    return np.concatenate([bias[:, 0::2], bias[:, 1::2]], axis=1)
