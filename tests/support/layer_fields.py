"""Layers with any of the fields that few models have: random ones, and ones that are computed exactly."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import mxfp4moe as mx

BF16 = np.dtype(ml_dtypes.bfloat16)
HIDDEN, LATENT, INTERMEDIATE, EXPERTS, ZERO = 72, 40, 48, 5, 3

FIELDS = (
    "weight on input",
    "factor",
    "shared",
    "shared gate",
    "shared factor",
    "zero experts",
    "router bias",
    "router norm",
    "router scale",
    "router input",
    "latent",
    "latent norm",
    "output bias",
)
# Those that the C library refuses by name, and so does not compute for JAX and ONNX Runtime.
PYTHON_ONLY: tuple[str, ...] = ()
NEEDED = {"shared gate": "shared", "shared factor": "shared", "latent norm": "latent"}
COMBINATIONS: tuple[tuple[str, ...], ...] = (
    *((name,) for name in FIELDS),
    ("shared gate", "shared factor", "factor"),
    ("router norm", "router scale", "router input", "router bias"),
    ("zero experts", "factor", "weight on input", "shared gate"),
    tuple(name for name in FIELDS if not name.startswith("latent")),
    tuple(name for name in FIELDS if name != "zero experts"),
)


class Call(NamedTuple):
    """A layer, and what it is called with."""

    layer: mx.MoELayer
    hidden_states: np.ndarray
    router: np.ndarray | None

    def tokens(self, index: Any) -> Call:
        router = None if self.router is None else self.router[index]
        return Call(self.layer, self.hidden_states[index], router)

    def cast(self, dtype: Any) -> Call:
        router = None if self.router is None else self.router.astype(dtype)
        return Call(self.layer, self.hidden_states.astype(dtype), router)

    @property
    def inputs(self) -> dict[str, Any]:
        return {} if self.router is None else {"router_hidden_states": self.router}

    def run(self, **options: Any) -> np.ndarray:
        return self.layer(self.hidden_states, **self.inputs, **options)

    def reference(self, float64: bool = False) -> np.ndarray:
        function = mx.reference.moe_layer_float64 if float64 else mx.reference.moe_layer
        return function(self.hidden_states, self.layer, **self.inputs)


def random_call(rng: np.random.Generator, names: Collection[str], num_tokens: int) -> Call:
    """Normal numbers everywhere; sums are of order 1."""

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    def experts(hidden: int, count: int) -> mx.PackedExperts:
        w13 = normal(count, 2 * INTERMEDIATE, hidden, scale=hidden**-0.5)
        w2 = normal(count, hidden, INTERMEDIATE, scale=INTERMEDIATE**-0.5)
        return mx.pack_experts(w13, None, w2, None, format="bf16")

    chosen = with_needed(names)
    num_zero = ZERO if "zero experts" in chosen else 0
    width = LATENT if "latent" in chosen else HIDDEN
    values: dict[str, dict[str, Any]] = {
        "shared": {"shared_experts": experts(HIDDEN, 1)},
        "shared gate": {"shared_gate": normal(HIDDEN, scale=HIDDEN**-0.5)},
        "router bias": {"router_bias": normal(EXPERTS + num_zero)},
        "router norm": {"router_norm_eps": 1e-6},
        "router scale": {"router_scale": normal(HIDDEN)},
        "latent": {
            "latent_down": normal(LATENT, HIDDEN, scale=HIDDEN**-0.5).astype(BF16),
            "latent_up": normal(HIDDEN, LATENT, scale=LATENT**-0.5),
        },
        "latent norm": {"latent_norm": normal(LATENT), "latent_norm_eps": 1e-5},
        "output bias": {"output_bias": normal(HIDDEN)},
    }
    router_weight = normal(EXPERTS + num_zero, HIDDEN, scale=HIDDEN**-0.5)
    layer = mx.MoELayer(experts(width, EXPERTS), router_weight, top_k=3, **_options(chosen, values))
    router = normal(num_tokens, HIDDEN) if "router input" in chosen else None
    return Call(layer, normal(num_tokens, HIDDEN), router)


def exact_call(rng: np.random.Generator, names: Collection[str], num_tokens: int) -> Call:
    """Numbers for which any order of float32 additions gives the same sums.

    Hidden states are 1 or -1, and all weights small integers. A gate is 0 or at least 64, where silu's factor
    is 1, and so are the scores of chosen experts; the shared expert's gate is 0, 1/2 or 1. Columns 0 are 1 in
    each token, to make numbers as large as that. What follows a norm is any float32 number, but is multiplied
    by powers of two alone.
    """
    chosen = with_needed(names)
    large = 128 if "weight on input" in chosen else 64  # times a weight of at least 1/2 it is 64

    def signs(*shape: int) -> np.ndarray:
        result = rng.choice(np.float32([-1, 1]), shape)
        result[..., 0] = 1
        return result

    def sparse(*shape: int) -> np.ndarray:
        """Zeros but for four numbers in each row, which are 1 or -1."""
        places = np.argsort(rng.random(shape), axis=-1) < 4
        return (rng.choice([-1, 1], shape) * places).astype(np.float32)

    def experts(hidden: int, count: int) -> mx.PackedExperts:
        up = sparse(count, INTERMEDIATE, hidden)
        gate = np.zeros_like(up)
        gate[..., 0] = rng.choice([0, large], gate.shape[:-1])
        down = sparse(count, hidden, INTERMEDIATE)
        return mx.pack_experts(np.concatenate([gate, up], axis=1), None, down, None, format="bf16")

    # The largest sums are 4 (up) * 2 * 256 (gate, both with a weight of 2) * 4 (down) * 3 (slots)
    # * 2 (factor), with latent projections times 4 * 4. Every number is a multiple of 1/4: of a weight and
    # the shared factor.
    assert 4 * 2 * 256 * 4 * 3 * 2 * 4 * 4 * 4 < 2**24
    num_choices = EXPERTS + (ZERO if "zero experts" in chosen else 0)
    width = LATENT if "latent" in chosen else HIDDEN
    router_weight = sparse(num_choices, HIDDEN)
    router_weight[:, 0] = 80
    latent_down = np.zeros((LATENT, HIDDEN), np.float32)
    latent_down[0, 0] = 1
    latent_down[1:] = sparse(LATENT - 1, HIDDEN)
    latent_up = sparse(HIDDEN, LATENT)
    if "latent norm" in chosen:
        latent_up = np.zeros((HIDDEN, LATENT), np.float32)
        latent_up[np.arange(HIDDEN), rng.integers(0, LATENT, HIDDEN)] = rng.choice([-2, 0.5, 1], HIDDEN)
    shared_gate = np.zeros(HIDDEN, np.float32)
    shared_gate[[3, 5]] = 64
    scale = rng.choice(np.float32([-1, 0.5, 1]), HIDDEN)
    scale[0] = 1
    values: dict[str, dict[str, Any]] = {
        "shared": {"shared_experts": experts(HIDDEN, 1)},
        "shared gate": {"shared_gate": shared_gate},
        "router bias": {"router_bias": sparse(num_choices)},
        "router norm": {"router_norm_eps": 2.0**-100},
        "router scale": {"router_scale": scale},
        "latent": {"latent_down": latent_down, "latent_up": latent_up},
        "latent norm": {"latent_norm": rng.standard_normal(LATENT, np.float32), "latent_norm_eps": 1e-5},
        "output bias": {"output_bias": rng.integers(-8, 9, HIDDEN).astype(np.float32)},
    }
    rule = {"scoring": "sigmoid", "select_by": "logit", "renormalize": False}
    layer = mx.MoELayer(
        experts(width, EXPERTS),
        router_weight,
        top_k=3,
        routing="select_experts",
        routing_arguments=rule | {"expert_scale": rng.choice(np.float32([0.5, 1, 2]), num_choices)},
        **_options(chosen, values),
    )
    # The mean of the squares of what the router reads is a power of 4.
    router = signs(num_tokens, HIDDEN) * np.float32(4) if "router input" in chosen else None
    return Call(layer, signs(num_tokens, HIDDEN), router)


def with_needed(names: Collection[str]) -> set[str]:
    """The fields of these names, and those that they need."""
    return {*names} | {NEEDED[name] for name in names if name in NEEDED}


def _options(chosen: set[str], values: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The arguments of `MoELayer` for the fields that are chosen."""
    values = values | {
        "weight on input": {"apply_router_weight_on_input": True},
        "factor": {"routed_scaling_factor": 2.0},
        "shared factor": {"shared_scaling_factor": 0.5},
        "zero experts": {"num_zero_experts": ZERO},
        "router input": {"separate_router_input": True},
    }
    return {name: value for field in sorted(chosen) for name, value in values[field].items()}
