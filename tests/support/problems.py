"""Seeded mixture-of-experts problems, and comparisons, shared by the tests."""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import mxfp4moe as mx
from mxfp4moe import _core, reference
from mxfp4moe.reference import ExpertArrays

bfloat16 = np.dtype(ml_dtypes.bfloat16)
float8_e8m0fnu = np.dtype(ml_dtypes.float8_e8m0fnu)

ACTIVATIONS = tuple(name for name, (gated, *_) in _core.ACTIVATION_RULES.items() if gated)
# The parameters with which the factor of a gate of 17 or more is 1 in float32, and up has no limit.
EXACT_PARAMETERS = {"swigluoai": {"limit": np.inf}, "situ": {"alpha": 1.0, "limit": np.inf}}
LAYOUTS = ("concatenated", "interleaved")
BIASES = ("none", "w13", "w2", "both")
# The fields of ExpertArrays that are arrays of every format.
ARRAYS = ExpertArrays._fields[:6]


class Shape(NamedTuple):
    num_tokens: int
    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int


class Problem(NamedTuple):
    """The arguments of a call, with the experts still in their checkpoint layout."""

    hidden_states: np.ndarray
    arrays: ExpertArrays
    topk_weights: np.ndarray
    topk_ids: np.ndarray

    def pack(self) -> mx.PackedExperts:
        return pack(self.arrays)

    def tokens(self, index: Any) -> Problem:
        """The same experts with some of the tokens."""
        return self._replace(
            hidden_states=self.hidden_states[index],
            topk_weights=self.topk_weights[index],
            topk_ids=self.topk_ids[index],
        )

    def run(self, experts: mx.PackedExperts | None = None, **options: Any) -> np.ndarray:
        experts = self.pack() if experts is None else experts
        return mx.fused_experts(self.hidden_states, experts, self.topk_weights, self.topk_ids, **options)

    def expected(self, **options: Any) -> np.ndarray:
        arguments = self.hidden_states, self.arrays, self.topk_weights, self.topk_ids
        return reference.fused_experts(*arguments, **options)

    def float64(self, **options: Any) -> np.ndarray:
        arguments = self.hidden_states, self.arrays, self.topk_weights, self.topk_ids
        return reference.fused_experts_float64(*arguments, **options)


def pack(arrays: ExpertArrays, **options: Any) -> mx.PackedExperts:
    given = {name: getattr(arrays, name) for name in ExpertArrays._fields[4:]}
    options = {**given, **options}
    return mx.pack_experts(arrays.w13, arrays.w13_scales, arrays.w2, arrays.w2_scales, **options)


def ungated(problem: Problem) -> Problem:
    """The same experts without their gate, whose rows were concatenated."""
    arrays = problem.arrays
    cut = {
        name: array[:, array.shape[1] // 2 :]
        for name in ("w13", "w13_scales", "w13_bias", "w13_tensor_scale", "w13_zero_points", "w13_offsets")
        if (array := getattr(arrays, name)) is not None
    }
    return problem._replace(arrays=arrays._replace(**cut, gated=False))


def random_ids(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Distinct experts for each token, in random order."""
    order = np.argsort(rng.random((shape.num_tokens, shape.num_experts)), axis=-1)
    return order[:, : shape.top_k].astype(np.int32)


def random_problem(
    rng: np.random.Generator,
    shape: Shape,
    *,
    dtype: Any = bfloat16,
    layout: str = "concatenated",
    bias: str = "none",
) -> Problem:
    """Normal hidden states, uniform codes, and scales that give gates and outputs of order 1."""
    m, k, i, e, top_k = shape
    # Uniform codes have a mean square of 8.6: such scale bytes make a sum of k terms of order 1.
    w13_scale, w2_scale = (127 - round(0.5 * np.log2(8.6 * n)) for n in (k, i))
    arrays = ExpertArrays(
        w13=rng.integers(0, 256, (e, 2 * i, k // 2), dtype=np.uint8),
        w13_scales=rng.integers(w13_scale, w13_scale + 2, (e, 2 * i, k // 32), dtype=np.uint8),
        w2=rng.integers(0, 256, (e, k, i // 2), dtype=np.uint8),
        w2_scales=rng.integers(w2_scale, w2_scale + 2, (e, k, i // 32), dtype=np.uint8),
        w13_bias=rng.normal(size=(e, 2 * i)).astype(np.float32) if bias in ("w13", "both") else None,
        w2_bias=rng.normal(size=(e, k)).astype(np.float32) if bias in ("w2", "both") else None,
        gate_up_layout=layout,
    )
    weights = rng.random((m, top_k), dtype=np.float32) + np.float32(0.1)
    weights /= weights.sum(axis=-1, keepdims=True)
    hidden = rng.normal(size=(m, k)).astype(np.float32).astype(dtype)
    return Problem(hidden, arrays, weights, random_ids(rng, shape))


def exact_problem(
    rng: np.random.Generator,
    shape: Shape,
    *,
    dtype: Any = bfloat16,
    layout: str = "concatenated",
    bias: str = "none",
    router_weights: tuple[float, ...] = (0.5, 1.0),
    shift: int = 0,
    largest_code: int = 7,
) -> Problem:
    """A problem that any order of float32 additions computes exactly.

    Hidden states are small integers, weights multiples of 1/2, and every gate is 0 or at least 17, where each
    activation's factor is 1 in float32 with `EXACT_PARAMETERS`. `check_exact`
    makes sure. `shift` multiplies the hidden states by a power of two and divides `w13` by it. No magnitude
    has a code above `largest_code`, which is that of an integer.
    """
    m, k, i, e, top_k = shape
    w13_codes = random_codes(rng, (e, 2 * i, k), largest_code)
    w2_codes = random_codes(rng, (e, k, i), largest_code)
    w13_scales = rng.integers(127 - shift, 129 - shift, (e, 2 * i, k // 32), dtype=np.uint8)
    w2_scales = rng.integers(127, 129, (e, k, i // 32), dtype=np.uint8)

    # Four columns of each token are not zero, and one column, the anchor, which makes gates large.
    hidden = np.zeros((m, k), dtype=np.float32)
    for token in range(m):
        columns = rng.choice(k, 4, replace=False)
        hidden[token, columns] = rng.choice([-1, 1], 4)
    anchor = int(rng.integers(k))
    hidden[:, anchor] = 0
    value = int(reference.E2M1_VALUES[largest_code])
    largest = 4 * value * 2  # of the other columns' sum: columns, code, scale
    hidden[:, anchor] = (largest + 18) // value  # times that code and a scale of at least 1
    zero = rng.random((e, i)) < max(0.5, 1 - 64 / i)  # keeps the sums of GEMM 2 below 2**24
    gate, up = w13_codes[:, :i], w13_codes[:, i:]
    gate[:, :, anchor] = largest_code
    up[:, :, anchor] = 0
    gate[zero] &= 8  # both signs of zero

    w13_bias = w2_bias = None
    if bias in ("w13", "both"):
        w13_bias = rng.integers(-8, 9, (e, 2 * i)).astype(np.float32)
        w13_bias[:, :i] = np.where(zero, rng.choice([0, 24], (e, i)), abs(w13_bias[:, :i]))
    if bias in ("w2", "both"):
        w2_bias = rng.integers(-8, 9, (e, k)).astype(np.float32)
    order = np.arange(2 * i)
    if layout == "interleaved":
        order = np.stack([order[:i], order[i:]], axis=-1).reshape(-1)
    arrays = ExpertArrays(
        pack_nibbles(w13_codes[:, order]),
        w13_scales[:, order],
        pack_nibbles(w2_codes),
        w2_scales,
        None if w13_bias is None else w13_bias[:, order],
        w2_bias,
        layout,
    )
    weights = rng.choice(np.array(router_weights, dtype=np.float32), (m, top_k))
    problem = Problem((hidden * 2.0**shift).astype(dtype), arrays, weights, random_ids(rng, shape))
    check_exact(problem)
    return problem


def check_exact(problem: Problem, limit: float = np.inf) -> None:
    """Assert that no sum reaches 2**24 units, in any order, and that gates are 0 or at least 17."""
    hidden = problem.hidden_states.astype(np.float64)
    weights = np.zeros((len(hidden), len(problem.arrays.w13)))
    np.add.at(weights, (np.arange(len(hidden))[:, None], problem.topk_ids), problem.topk_weights)
    total = np.zeros(hidden.shape)
    for expert in range(len(problem.arrays.w13)):
        w13, w2, w13_bias, w2_bias = reference.moe._expert_weights(problem.arrays, expert)
        magnitude = abs(hidden) @ abs(w13).T.astype(np.float64)
        gate_up = hidden @ w13.T.astype(np.float64)
        if w13_bias is not None:
            magnitude = magnitude + abs(w13_bias)
            gate_up = gate_up + w13_bias
        assert magnitude.max(initial=0) < 2**24 / 2  # hidden states are integers, weights multiples of 1/2
        gate, up = np.split(gate_up, 2, axis=-1)
        assert ((gate == 0) | (gate >= 17)).all()
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
        intermediate = reference.round_bfloat16(gate * (abs(up) + 1))
        magnitude = intermediate @ abs(w2).T.astype(np.float64)
        magnitude = magnitude if w2_bias is None else magnitude + abs(w2_bias)
        assert magnitude.max(initial=0) < 2**24 / 8  # multiples of 1/2 * 1/2 * 1/2
        down = abs(reference.round_bfloat16(gate * up) @ w2.T.astype(np.float64))
        total += weights[:, expert, None] * (down if w2_bias is None else down + abs(w2_bias))
    assert total.max(initial=0) < 2**24 / 8 * problem.topk_weights.min(initial=1)


def random_codes(rng: np.random.Generator, shape: tuple[int, ...], largest_code: int) -> np.ndarray:
    """E2M1 codes of both signs, one a byte, of magnitudes up to that of `largest_code`."""
    codes = rng.integers(0, 2 * (largest_code + 1), shape, dtype=np.uint8)
    return codes // 2 + codes % 2 * 8


def pack_nibbles(codes: np.ndarray) -> np.ndarray:
    """Two codes per byte, the even one in the low nibble."""
    return codes[..., 0::2] | codes[..., 1::2] << 4


def objects(array: np.ndarray) -> np.ndarray:
    """`array` with Python objects for elements."""
    return array.astype(object)


def masked(array: np.ndarray) -> np.ma.MaskedArray:
    """`array` with a mask that hides nothing."""
    return np.ma.masked_array(array, mask=np.zeros(array.shape, dtype=bool))


def rel_l2(got: np.ndarray, expected: np.ndarray) -> float:
    """Relative L2 error, in float64."""
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def assert_same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal dtype, shape and bytes; NaN equals NaN whatever its payload."""
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    bits = np.dtype(f"u{got.dtype.itemsize}")
    differs = np.ascontiguousarray(got).view(bits) != np.ascontiguousarray(expected).view(bits)
    differs &= ~(np.isnan(got) & np.isnan(expected))
    if differs.any():
        first = tuple(int(i) for i in np.argwhere(differs)[0])
        count = f"{differs.sum()} of {differs.size} values differ"
        raise AssertionError(f"{count}, first at {first}: got {got[first]!r}, expected {expected[first]!r}")
