"""Every operation in plain NumPy: the definition that the compiled kernels are tested against.

Written to be read, not to be fast. Nothing here calls compiled code of this package.

Numerics. Activations are bfloat16, sums are float32. A sum here is accumulated in float64 and rounded once
to float32: that is the correctly rounded sum, the same whatever order a BLAS adds in, and where every partial
sum is an integer below 2**24 it is also what any order of float32 additions gives. For the same reason
sigmoid, erf and tanh are evaluated in float64 and rounded once. All else is ordinary float32 arithmetic in
the order written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

bfloat16 = np.dtype(ml_dtypes.bfloat16)


# --- Quantization -------------------------------------------------------------------------------------------

E2M1_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)


def quantize_mxfp4(
    w: np.ndarray, scale_rule: str = "floor", nonfinite: str = "raise"
) -> tuple[np.ndarray, np.ndarray]:
    """MXFP4 of `w`: 4-bit E2M1 codes and one E8M0 scale per 32 values of the last axis.

    The scale exponent e of a block follows from its largest magnitude amax = m * 2**E, 1 <= m < 2. It is
    E - 2 or one more, clamped to [-127, 127]:

    - ``floor``: E - 2 always, so that values above 6 * 2**e saturate;
    - ``ceil``: one more if m > 1;
    - ``rceil``: one more if m > 1.5: the smallest e with amax <= 6 * 2**e;
    - ``even``: one more if m >= 1.75: amax is first rounded, half up, to one mantissa bit.

    Each value divided by 2**e is rounded to the nearest E2M1 value, ties to the even code, and saturates at
    +-6. The sign bit is kept, also where the magnitude rounds to zero (code 8 is -0). The exceptions: a block
    of zeros of either sign has scale byte 0 and codes 0; with ``nonfinite="nan"`` a block with an infinity or
    a NaN has scale byte 255 (NaN) and codes 0.

    Parameters
    ----------
    w : ndarray of shape (..., K)
        float16, bfloat16, float32 or float64; K a multiple of 32. All steps are exact but the one rounding.
    scale_rule : {"floor", "ceil", "rceil", "even"}
    nonfinite : {"raise", "nan"}

    Returns
    -------
    blocks : uint8 ndarray of shape (..., K/2)
        Two codes a byte, even k in the low nibble.
    scales : float8_e8m0fnu ndarray of shape (..., K/32)

    Raises
    ------
    ValueError
        A value is not finite and `nonfinite` is "raise".
    """
    with np.errstate(invalid="ignore"):  # raised by a signaling NaN
        values = w.astype(np.float64).reshape(*w.shape[:-1], w.shape[-1] // 32, 32)
    finite = np.isfinite(values)
    if nonfinite == "raise" and not finite.all():
        raise ValueError(f"w: not finite at position {np.argwhere(~finite.reshape(w.shape))[0].tolist()}")
    valid = np.asarray(finite.all(axis=-1))
    values = np.where(valid[..., None], values, 0)
    amax = np.abs(values).max(axis=-1)

    half_m, exponent = np.frexp(amax)  # amax = half_m * 2**exponent, 0.5 <= half_m < 1
    next_exponent = {
        "floor": np.zeros_like(valid),
        "ceil": half_m > 0.5,
        "rceil": half_m > 0.75,
        "even": half_m >= 0.875,
    }[scale_rule]
    e = np.clip(exponent - 1 - 2 + next_exponent, -127, 127)

    magnitude = np.ldexp(np.abs(values), -e[..., None])
    midpoints = (E2M1_VALUES[:7] + E2M1_VALUES[1:8]) / 2
    # On a midpoint the two searches give the two neighbours; one of them is even.
    below, above = (np.searchsorted(midpoints, magnitude, side) for side in ("left", "right"))
    codes = np.where(below % 2 == 0, below, above) + 8 * np.signbit(values)

    zero = amax == 0
    codes = np.where(zero[..., None], 0, codes).astype(np.uint8)
    scales = np.where(valid, np.where(zero, 0, e + 127), 255).astype(np.uint8)
    return pack_e2m1(codes.reshape(w.shape)), scales.view(ml_dtypes.float8_e8m0fnu)


def dequantize_mxfp4(blocks: np.ndarray, scales: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
    """Code times scale, exactly, rounded once to `dtype`.

    Parameters
    ----------
    blocks : ndarray of shape (..., K/2) or (..., K/32, 16)
        uint8 or int8.
    scales : ndarray of shape (..., K/32)
        uint8 or float8_e8m0fnu: byte s means 2**(s - 127), 255 means NaN.
    dtype : dtype
        float16, bfloat16, float32 or float64. A product too large for it is infinite.

    Returns
    -------
    ndarray of shape (..., K)
    """
    codes = unpack_e2m1(blocks).view(np.uint8).reshape(*scales.shape, 32)
    exponents = scales.view(np.uint8).astype(np.int32) - 127
    factors = np.where(exponents == 128, np.nan, np.ldexp(1.0, exponents))
    values = E2M1_VALUES[codes] * factors[..., None]
    with np.errstate(over="ignore"):
        return values.reshape(*scales.shape[:-1], scales.shape[-1] * 32).astype(dtype)


def pack_e2m1(codes: np.ndarray) -> np.ndarray:
    """Two codes a byte along the last axis, the even one in the low nibble; `codes` has one a byte."""
    codes = codes.view(np.uint8) & 15  # the high nibble of a float4_e2m1fn means nothing
    return codes[..., 0::2] | codes[..., 1::2] << 4


def unpack_e2m1(blocks: np.ndarray) -> np.ndarray:
    """The inverse of `pack_e2m1`, as float4_e2m1fn."""
    blocks = blocks.view(np.uint8)
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 2 * blocks.shape[-1])
    return codes.view(ml_dtypes.float4_e2m1fn)


# --- Routing ------------------------------------------------------------------------------------------------


def router_logits(
    hidden_states: np.ndarray, router_weight: np.ndarray, router_bias: np.ndarray | None = None
) -> np.ndarray:
    """router_weight . hidden + router_bias in float32, on hidden states rounded once to bfloat16.

    Parameters
    ----------
    hidden_states : ndarray of shape (..., K)
        bfloat16, float16 or float32.
    router_weight : ndarray of shape (E, K)
    router_bias : ndarray of shape (E,), optional

    Returns
    -------
    float32 ndarray of shape (..., E)
    """
    logits = _matmul(round_bfloat16(hidden_states), router_weight, _CONTRACT)
    return logits if router_bias is None else logits + router_bias.astype(np.float32)


def topk_softmax(
    router_logits: np.ndarray, top_k: int, *, renormalize: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """The `top_k` largest logits of each row, in descending order, ties to the lower id, and their softmax.

    Parameters
    ----------
    router_logits : ndarray of shape (..., E)
    top_k : int
    renormalize : bool
        Softmax over the chosen logits (True) or over all E (False).

    Returns
    -------
    topk_weights : float32 ndarray of shape (..., top_k)
    topk_ids : int32 ndarray of shape (..., top_k)
    """
    logits = router_logits.astype(np.float32).astype(np.float64)
    ids = np.argsort(-logits, axis=-1, kind="stable")[..., :top_k]
    chosen = np.take_along_axis(logits, ids, axis=-1)
    largest = chosen[..., :1]
    total = np.exp((chosen if renormalize else logits) - largest).sum(axis=-1, keepdims=True)
    return (np.exp(chosen - largest) / total).astype(np.float32), ids.astype(np.int32)


# --- Activations --------------------------------------------------------------------------------------------


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) in float64."""
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-x.astype(np.float64))))


def normal_cdf(x: np.ndarray) -> np.ndarray:
    """(1 + erf(x / sqrt(2))) / 2 in float64."""
    return np.asarray(
        0.5 * np.vectorize(math.erfc, otypes=[np.float64])(-x.astype(np.float64) / math.sqrt(2.0))
    )


def normal_cdf_tanh(x: np.ndarray) -> np.ndarray:
    """(1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2 in float64."""
    x = x.astype(np.float64)
    with np.errstate(over="ignore"):
        return np.asarray(sigmoid(2.0 * math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def activate(
    gate: np.ndarray, up: np.ndarray, activation: str, alpha: float | None, limit: float | None
) -> np.ndarray:
    """The gated activation, in the dtype of `gate` and `up`.

    With a limit the gate is first clamped from above and up on both sides, whatever the activation. Then

    =========  =========================================
    silu       gate * sigmoid(gate) * up
    swigluoai  gate * sigmoid(alpha * gate) * (up + 1)
    gelu       gate * normal_cdf(gate) * up
    gelu_tanh  gate * normal_cdf_tanh(gate) * up
    =========  =========================================

    `alpha=None` means 1.702, and `limit=None` means 7.0 for swigluoai and no limit otherwise.
    """
    dtype = gate.dtype
    if limit is None:
        limit = 7.0 if activation == "swigluoai" else math.inf
    bound = dtype.type(limit)
    gate = np.minimum(gate, bound)
    up = np.clip(up, -bound, bound)
    if activation == "swigluoai":
        factor = sigmoid(dtype.type(1.702 if alpha is None else alpha) * gate)
        up = up + dtype.type(1)
    else:
        factor = {"silu": sigmoid, "gelu": normal_cdf, "gelu_tanh": normal_cdf_tanh}[activation](gate)
    return np.asarray(gate * factor.astype(dtype) * up)


# --- Mixture of experts -------------------------------------------------------------------------------------


class ExpertArrays(NamedTuple):
    """The weights of all experts in their checkpoint layout.

    Attributes
    ----------
    w13 : ndarray
        MXFP4 blocks uint8 [E, 2I, K/2], or, without scales, weights [E, 2I, K] of any float dtype.
    w13_scales : ndarray or None
        [E, 2I, K/32].
    w2 : ndarray
        Blocks [E, K, I/2] or weights [E, K, I].
    w2_scales : ndarray or None
        [E, K, I/32].
    w13_bias : ndarray or None
        [E, 2I], rows as in `w13`.
    w2_bias : ndarray or None
        [E, K].
    gate_up_layout : str
        Rows of `w13`: all of gate, then all of up ("concatenated"), or gate_0, up_0, gate_1, ...
        ("interleaved").
    """

    w13: np.ndarray
    w13_scales: np.ndarray | None
    w2: np.ndarray
    w2_scales: np.ndarray | None
    w13_bias: np.ndarray | None = None
    w2_bias: np.ndarray | None = None
    gate_up_layout: str = "concatenated"


class _Precision(NamedTuple):
    """In what the sums are held, and how the intermediate is rounded."""

    dtype: np.dtype
    round_intermediate: Callable[[np.ndarray], np.ndarray]


def round_bfloat16(x: np.ndarray) -> np.ndarray:
    """The nearest bfloat16 values, ties to even, as float32. float64 input rounds twice."""
    with np.errstate(over="ignore", invalid="ignore"):  # a signaling NaN is an invalid value
        return x.astype(np.float32).astype(bfloat16).astype(np.float32)


_CONTRACT = _Precision(np.dtype(np.float32), round_bfloat16)
_FLOAT64 = _Precision(np.dtype(np.float64), lambda x: x)


def fused_experts(
    hidden_states: np.ndarray,
    experts: Any,
    topk_weights: np.ndarray,
    topk_ids: np.ndarray,
    *,
    activation: str = "silu",
    alpha: float | None = None,
    limit: float | None = None,
    apply_router_weight_on_input: bool = False,
    expert_map: np.ndarray | None = None,
    out_dtype: Any = None,
) -> np.ndarray:
    """Sum of each token's chosen experts, with exactly the roundings of the numerics contract.

    Hidden states are rounded once to bfloat16. Each slot of a token then computes, in float32 but for the
    bfloat16 intermediate,

    - gate, up = w13 . hidden + w13_bias (the sums times the router weight first, if it applies to the input),
    - intermediate = bfloat16(activate(gate, up)),
    - down = w2 . intermediate + w2_bias (times the router weight, unless it applied to the input).

    The slots of a token are added in float32, in ascending (local) expert id, then slot, and rounded once.

    Parameters
    ----------
    hidden_states : ndarray of shape (..., K)
        bfloat16, float16 or float32.
    experts : PackedExperts or ExpertArrays
    topk_weights, topk_ids : ndarray of shape (..., top_k)
        An id of -1 drops its slot.
    activation, alpha, limit
        See `activate`.
    apply_router_weight_on_input : bool
    expert_map : ndarray of shape (E_global,), optional
        Local id of each global id, -1 to drop its slots.
    out_dtype : dtype, optional
        That of `hidden_states` if not given.

    Returns
    -------
    ndarray of shape (..., K)
    """
    options = _Options(activation, alpha, limit, apply_router_weight_on_input)
    local_ids = _local_ids(topk_ids, expert_map)
    result = _evaluate(hidden_states, experts, topk_weights, local_ids, options, _CONTRACT)
    with np.errstate(over="ignore", under="ignore"):
        return result.astype(hidden_states.dtype if out_dtype is None else out_dtype)


def fused_experts_float64(
    hidden_states: np.ndarray,
    experts: Any,
    topk_weights: np.ndarray,
    topk_ids: np.ndarray,
    *,
    activation: str = "silu",
    alpha: float | None = None,
    limit: float | None = None,
    apply_router_weight_on_input: bool = False,
    expert_map: np.ndarray | None = None,
) -> np.ndarray:
    """As `fused_experts`, but in float64 and with no rounding after that of the hidden states to bfloat16.

    What relative errors are measured against.
    """
    options = _Options(activation, alpha, limit, apply_router_weight_on_input)
    return _evaluate(
        hidden_states, experts, topk_weights, _local_ids(topk_ids, expert_map), options, _FLOAT64
    )


class _Options(NamedTuple):
    activation: str
    alpha: float | None
    limit: float | None
    weight_on_input: bool


def _local_ids(topk_ids: np.ndarray, expert_map: np.ndarray | None) -> np.ndarray:
    ids = topk_ids.astype(np.int64)
    return ids if expert_map is None else np.where(ids < 0, -1, expert_map.astype(np.int64)[ids])


def _evaluate(
    hidden_states: np.ndarray,
    experts: Any,
    topk_weights: np.ndarray,
    local_ids: np.ndarray,
    options: _Options,
    precision: _Precision,
) -> np.ndarray:
    arrays = experts if isinstance(experts, ExpertArrays) else arrays_of(experts)
    hidden_size, top_k = hidden_states.shape[-1], local_ids.shape[-1]
    hidden = round_bfloat16(hidden_states.reshape(-1, hidden_size))
    ids = local_ids.reshape(-1, top_k)
    weights = topk_weights.reshape(-1, top_k)
    result = np.zeros(hidden.shape, dtype=precision.dtype)
    for expert in np.unique(ids[ids >= 0]):
        matrices = _expert_weights(arrays, int(expert))
        for slot in range(top_k):
            tokens = np.flatnonzero(ids[:, slot] == expert)
            if tokens.size:
                router_weight = weights[tokens, slot, None].astype(np.float32).astype(precision.dtype)
                with np.errstate(over="ignore", invalid="ignore"):
                    result[tokens] += _expert(hidden[tokens], matrices, router_weight, options, precision)
    return result.reshape(hidden_states.shape)


def _expert(
    hidden: np.ndarray,
    matrices: _ExpertWeights,
    router_weight: np.ndarray,
    options: _Options,
    precision: _Precision,
) -> np.ndarray:
    gate_up = _matmul(hidden, matrices.w13, precision)
    if options.weight_on_input:
        gate_up = gate_up * router_weight
    if matrices.w13_bias is not None:
        gate_up = gate_up + matrices.w13_bias.astype(precision.dtype)
    gate, up = np.split(gate_up, 2, axis=-1)
    intermediate = activate(gate, up, options.activation, options.alpha, options.limit)
    down = _matmul(precision.round_intermediate(intermediate), matrices.w2, precision)
    if matrices.w2_bias is not None:
        down = down + matrices.w2_bias.astype(precision.dtype)
    return down if options.weight_on_input else down * router_weight


def _matmul(tokens: np.ndarray, weights: np.ndarray, precision: _Precision) -> np.ndarray:
    # + 0: a sum that starts from +0 never ends as -0.
    sums = tokens.astype(np.float64) @ weights.astype(np.float64).T + 0.0
    return np.asarray(sums.astype(precision.dtype))


class _ExpertWeights(NamedTuple):
    """One expert: dequantized, gate rows first."""

    w13: np.ndarray
    w2: np.ndarray
    w13_bias: np.ndarray | None
    w2_bias: np.ndarray | None


def arrays_of(experts: Any) -> ExpertArrays:
    """The checkpoint arrays of a PackedExperts."""
    parts = experts.unpack()
    matrices = parts.w13, parts.w13_scales, parts.w2, parts.w2_scales
    return ExpertArrays(*matrices, parts.w13_bias, parts.w2_bias, experts.gate_up_layout)


def _expert_weights(arrays: ExpertArrays, expert: int) -> _ExpertWeights:
    def matrix(weights: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
        return weights[expert] if scales is None else dequantize_mxfp4(weights[expert], scales[expert])

    w13 = matrix(arrays.w13, arrays.w13_scales)
    w13_bias = None if arrays.w13_bias is None else arrays.w13_bias[expert]
    if arrays.gate_up_layout == "interleaved":
        w13 = np.concatenate([w13[0::2], w13[1::2]])
        w13_bias = None if w13_bias is None else np.concatenate([w13_bias[0::2], w13_bias[1::2]])
    w2_bias = None if arrays.w2_bias is None else arrays.w2_bias[expert]
    return _ExpertWeights(w13, matrix(arrays.w2, arrays.w2_scales), w13_bias, w2_bias)
