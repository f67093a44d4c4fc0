"""Packed experts of every format, and layers with every kind of routing."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

import mxfp4moe as mx

E, K, INTERMEDIATE = 3, 64, 32
BF16 = np.dtype(ml_dtypes.bfloat16)
FORMATS = (
    "mxfp4",
    "mxfp4 of gpt-oss",
    "mxfp4 scaled",
    "mxfp8 e4m3",
    "mxfp8 e5m2",
    "nvfp4",
    "fp8_block",
    "fp8_block rows",
    "bf16",
    "int4",
    "int8 with zero points",
    "mxfp4 scaled ungated",
    "fp8_block ungated",
    "int4 ungated",
    "bf16 ungated",
)


UNGATED = " ungated"


def without_gate(experts: mx.PackedExperts) -> mx.PackedExperts:
    """The up and down projections of experts with a gate."""
    arguments = experts.arguments() | {"gated": False}
    for name in ("w13", "w13_scales", "w13_bias", "w13_tensor_scale", "w13_zero_points", "w13_offsets"):
        if arguments.get(name) is not None:
            arguments[name] = arguments[name][:, arguments[name].shape[1] // 2 :]
    return mx.pack_experts(**arguments)


def activation_of(experts: mx.PackedExperts) -> str:
    return "silu" if experts.gated else "relu2"


def make_experts(rng: np.random.Generator, name: str, num_experts: int = E) -> mx.PackedExperts:
    """Small experts; the names say what is special."""
    if name.endswith(UNGATED):
        return without_gate(make_experts(rng, name.removesuffix(UNGATED), num_experts))
    e4m3 = ml_dtypes.float8_e4m3fn

    def w(*shape: int) -> np.ndarray:
        return rng.standard_normal((num_experts, *shape)).astype(np.float32)

    w13, w2 = w(2 * INTERMEDIATE, K), w(K, INTERMEDIATE)
    if name == "mxfp4":
        return mx.pack_experts(*mx.quantize_mxfp4(w13), *mx.quantize_mxfp4(w2))
    if name == "mxfp4 of gpt-oss":
        (b13, s13), (b2, s2) = mx.quantize_mxfp4(w13), mx.quantize_mxfp4(w2)
        biases = {"w13_bias": w(2 * INTERMEDIATE).astype(BF16), "w2_bias": w(K)}
        return mx.pack_experts(b13, s13.view(np.uint8), b2, s2, gate_up_layout="interleaved", **biases)
    if name == "mxfp4 scaled":
        scales = {"w13_tensor_scale": w(2), "w2_tensor_scale": w(1)[:, 0]}
        return mx.pack_experts(*mx.quantize_mxfp4(w13), *mx.quantize_mxfp4(w2), **scales)
    if name.startswith("mxfp8"):
        element = name.split()[1]
        args = (*mx.quantize_mxfp8(w13, element=element), *mx.quantize_mxfp8(w2, element=element))
        return mx.pack_experts(*args, format="mxfp8", w2_bias=w(K))
    if name == "nvfp4":
        (b13, s13), (b2, s2) = ((rng.integers(0, 256, (*a.shape[:-1], a.shape[-1] // 2), np.uint8),
                                 (1 + rng.random((*a.shape[:-1], a.shape[-1] // 16))).astype(e4m3))
                                for a in (w13, w2))  # fmt: skip
        scales = {"w13_tensor_scale": np.abs(w(2)), "w2_tensor_scale": np.abs(w(1)[:, 0])}
        return mx.pack_experts(b13, s13, b2, s2, format="nvfp4", **scales)
    if name == "int4":
        (c13, s13, _), (c2, s2, _) = mx.quantize_int4(w13), mx.quantize_int4(w2, group_size=None)
        return mx.pack_experts(c13, s13.astype(BF16), c2, s2.astype(np.float16), format="int4")
    if name == "int8 with zero points":
        (c13, s13, z13), (c2, s2, z2) = (mx.quantize_int8(a, symmetric=False) for a in (w13, w2))
        zeros = {"w13_zero_points": z13, "w2_zero_points": z2}
        return mx.pack_experts(
            c13, s13, c2, s2.astype(BF16), format="int8", w13_bias=w(2 * INTERMEDIATE), **zeros
        )
    if name in SPECIAL_FORMATS:
        return mx.pack_experts(**_integers(rng, num_experts, **SPECIAL_FORMATS[name]))
    if name.startswith("fp8_block"):
        block = (None, 32) if name.endswith("rows") else (16, 32)
        rows13, rows2 = (INTERMEDIATE, K) if block[0] is None else block[:1] * 2
        s13, s2 = np.abs(w(2 * INTERMEDIATE // rows13, K // 32)), np.abs(w(K // rows2, INTERMEDIATE // 32))
        return mx.pack_experts(
            w13.astype(e4m3), s13, w2.astype(e4m3), s2, format="fp8_block", block_shape=block
        )
    return mx.pack_experts(
        w13.astype(BF16), None, w2.astype(BF16), None, format="bf16", w13_bias=w(2 * INTERMEDIATE)
    )


SPECIAL_FORMATS: dict[str, dict[str, Any]] = {
    "int4 with offsets": {"formats": ("int4", "int4"), "group_sizes": (32, 32), "offsets": (True, True)},
    "int8 in groups of 16, int4 with offsets": {
        "formats": ("int8", "int4"),
        "group_sizes": (16, 16),
        "offsets": (False, True),
    },
    "mxfp4 with columns, int8": {
        "formats": ("mxfp4", "int8"),
        "group_sizes": (None, 32),
        "offsets": (False, False),
    },
}
"""Offsets, groups of 16, an order of columns, and formats of w13 and w2 that differ."""


def _integers(
    rng: np.random.Generator,
    num_experts: int,
    formats: tuple[str, str],
    group_sizes: tuple[int | None, int | None],
    offsets: tuple[bool, bool],
) -> dict[str, Any]:
    """Arguments of `pack_experts`; an order of columns beside MXFP4."""
    arguments: dict[str, Any] = {"format": formats}
    shapes = {"w13": (num_experts, 2 * INTERMEDIATE, K), "w2": (num_experts, K, INTERMEDIATE)}
    for (name, shape), format, size, has_offsets in zip(
        shapes.items(), formats, group_sizes, offsets, strict=True
    ):
        if format == "mxfp4":
            arguments[name], arguments[f"{name}_scales"] = mx.quantize_mxfp4(
                rng.standard_normal(shape, np.float32)
            )
            columns = np.tile(np.arange(shape[2], dtype=np.int32), (num_experts, 1))
            arguments[f"{name}_columns"] = rng.permuted(columns, axis=1)
            continue
        groups = (*shape[:2], shape[2] // (size or shape[2]))
        scales = rng.uniform(0.02, 0.1, groups).astype(np.float32)
        codes = rng.integers(0, 256, (*shape[:2], shape[2] // (2 if format == "int4" else 1))).astype(
            np.uint8
        )
        arguments[name] = codes if format == "int4" else codes.view(np.int8)
        arguments[f"{name}_scales"] = scales
        if has_offsets:
            arguments[f"{name}_offsets"] = -7 * scales
    return arguments


ROUTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "qwen": {"routing": "topk_softmax", "routing_arguments": {"renormalize": False}, "activation": "gelu"},
    "gpt-oss": {"activation": "swigluoai", "alpha": 1.5, "limit": np.inf, "router_bias": np.ones(E, BF16)},
    "deepseek v3": {
        "routing": "grouped_topk",
        "routing_arguments": {
            "num_groups": 3,
            "topk_group": 2,
            "correction_bias": np.arange(E, dtype=np.float32),
            "routed_scaling_factor": np.float32(2.5),
        },
        "shared": True,
    },
    "deepseek v4": {
        "routing": "hash_topk",
        "routing_arguments": {"tid2eid": np.array([[0, 1], [2, 0], [1, 2], [0, 2]], np.int64)},
        "limit": 10.0,
        "shared": True,
        "shared_limit": 7.0,
    },
    "minimax": {
        "routing": "topk_sigmoid",
        "routing_arguments": {"correction_bias": np.zeros(E, np.float32)},
        "routed_scaling_factor": 2.0,
        "shared": True,
    },
    "step": {"activation": "silu_clamp", "limit": 3.0, "shared": True, "shared_limit": 16.0},
    "kimi": {"activation": "situ", "alpha": 3.0, "limit": np.inf},
    "nemotron": {"activation": "relu2", "routed_scaling_factor": 2.5, "shared": True},
    "phimoe": {"routing": "sparsemixer", "routing_arguments": {"jitter_eps": 0.2}},
    "ernie": {
        "routing": "select_experts",
        "routing_arguments": {
            "scoring": "softmax",
            "correction_bias": np.arange(E, dtype=np.float32),
            "norm_epsilon": 0.0,
            "norm_floor": 1e-12,
            "expert_scale": np.arange(1, E + 1, dtype=np.float32),
        },
    },
    "inkling": {
        "routing": "select_experts",
        "routing_arguments": {"scoring": "sigmoid", "logit_softcap": None, "num_shared_experts": 1},
    },
}


def make_layer(rng: np.random.Generator, routing: str, format: str = "mxfp4") -> mx.MoELayer:
    """A small layer that routes to two experts."""
    options = dict(ROUTINGS[routing])
    kind = UNGATED if options.get("activation") == "relu2" else ""
    if options.pop("shared", False):
        options["shared_experts"] = make_experts(rng, "bf16" + kind, num_experts=1)
    weight = rng.standard_normal((E, K), np.float32)
    return mx.MoELayer(make_experts(rng, format.removesuffix(UNGATED) + kind), weight, top_k=2, **options)


def assert_same_experts(got: mx.PackedExperts, expected: mx.PackedExperts) -> None:
    assert got == expected
    assert hash(got) == hash(expected)
    assert (repr(got), got.nbytes, bytes(got.data)) == (repr(expected), expected.nbytes, bytes(expected.data))
    assert memoryview(got.data).readonly
    for a, b in zip(got.unpack(), expected.unpack(), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
