"""Calls of the C library, by handles and arguments as those of Python have them."""

from __future__ import annotations

from typing import Any

import numpy as np
from c_library import FORMATS, Handle, call, make, rows
from packed_examples import activation_of

import mxfp4moe as mx
from mxfp4moe._core import ACTIVATION_FORMATS, ACTIVATIONS
from mxfp4moe.formats import each_format

NUM_TOKENS = 5


def linear_bits(
    handle: Handle, x: np.ndarray, num_rows: int, options: Any, activation_format: str = "bfloat16"
) -> np.ndarray:
    out = np.empty((len(x), num_rows), np.float32)
    fields = {"num_tokens": len(x), "activation_format": ACTIVATION_FORMATS[activation_format]}
    args = make("linear_args", **rows("hidden_states", x), **rows("out", out), **fields)
    call("apply_linear", handle.pointer, args, options)
    return out


def expert_bits(handle: Handle, call_of: dict[str, Any], options: Any = None) -> np.ndarray:
    """The call of `fused_experts` with these arguments."""
    x, ids = call_of["hidden_states"], call_of["topk_ids"]
    combine = call_of.get("combine", True)
    out = np.empty_like(x) if combine else np.empty((*ids.shape, x.shape[-1]), np.float32)
    fields = {
        "topk_weights": call_of["topk_weights"],
        "topk_ids": ids,
        "activation": ACTIVATIONS[call_of["activation"]],
        "apply_router_weight_on_input": call_of.get("apply_router_weight_on_input", False),
        "activation_format": ACTIVATION_FORMATS[call_of.get("activation_format", "bfloat16")],
        "uncombined": not combine,
        "num_tokens": len(x),
        "top_k": ids.shape[1],
    }
    if (expert_map := call_of.get("expert_map")) is not None:
        fields |= {"expert_map": expert_map, "num_global_experts": len(expert_map)}
    args = make("fused_experts_args", **rows("hidden_states", x), **rows("out", out), **fields)
    call("fused_experts", handle.pointer, args, options)
    return out


def expert_call(rng: np.random.Generator, experts: mx.PackedExperts, dtype: Any = np.float32) -> Any:
    ids = rng.integers(-1, experts.num_experts, (NUM_TOKENS, 2)).astype(np.int32)
    return {
        "hidden_states": rng.standard_normal((NUM_TOKENS, experts.hidden_size)).astype(dtype),
        "topk_weights": rng.random((NUM_TOKENS, 2), np.float32),
        "topk_ids": ids,
        "activation": activation_of(experts),
    }


def python_bits(experts: mx.PackedExperts, arguments: dict[str, Any]) -> np.ndarray:
    others = dict(arguments)
    return mx.fused_experts(others.pop("hidden_states"), experts, **others)


def packed_by_c(experts: mx.PackedExperts, options: Any) -> Handle:
    arguments = experts.arguments()
    arrays = {
        name: np.ascontiguousarray(value)
        for name, value in arguments.items()
        if isinstance(value, np.ndarray)
    }
    w13_format, w2_format = each_format(experts.format)
    shape = arguments.get("block_shape") or ()
    blocks = [-1 if size is None else size for size in shape] or [0, 0]
    groups = experts.spec.group_sizes or (None, None)
    structure = make(
        "experts_arrays",
        **arrays,
        format=FORMATS[w13_format],
        w2_format=FORMATS[w2_format] if w2_format != w13_format else 0,
        gate_up_layout=int(experts.gate_up_layout == "interleaved"),
        ungated=int(not experts.gated),
        num_experts=experts.num_experts,
        hidden_size=experts.hidden_size,
        intermediate_size=experts.intermediate_size,
        block_rows=blocks[0],
        block_columns=blocks[1],
        w13_group_size=groups[0] or 0,
        w2_group_size=groups[1] or 0,
    )
    return Handle("experts", "pack_experts", structure, options)


def run_layer(handle: Handle, hidden: np.ndarray, options: Any = None, **fields: Any) -> np.ndarray:
    out = np.empty_like(hidden)
    args = make(
        "layer_args", **rows("hidden_states", hidden), **rows("out", out), num_tokens=len(hidden), **fields
    )
    call("apply_layer", handle.pointer, args, options)
    return out
