"""Mixture of experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from mxfp4moe.formats import ExpertsFormat, GateUpLayout, each_format, format_of, is_pair
from mxfp4moe.reference._precision import (
    CONTRACT,
    FLOAT64,
    INT8,
    Precision,
    bfloat16,
    check_activation_format,
    matmul,
    round_bfloat16,
)
from mxfp4moe.reference.activation import activate, activate_float32
from mxfp4moe.reference.elements import unpack_e2m1
from mxfp4moe.reference.int8 import IntegerMatrix, integer_matrix
from mxfp4moe.reference.integers import dequantize_int4, dequantize_int8
from mxfp4moe.reference.quantize import dequantize_mxfp4


class PackableExperts(Protocol):
    """Experts that know what `mxfp4moe.pack_experts` takes: packed ones, or those of a checkpoint."""

    def arguments(self) -> dict[str, Any]:
        """The arguments of `mxfp4moe.pack_experts`, by name."""


class ExpertArrays(NamedTuple):
    """The weights of all experts in their checkpoint layout.

    Attributes
    ----------
    w13 : ndarray
        Of the format: codes of four bits uint8 [E, 2I, K/2]; FP8 [E, 2I, K] of a float8 dtype, or uint8
        that are e4m3; int8 [E, 2I, K]; else weights [E, 2I, K] of any float dtype, used as they are. Gate and
        up; experts without a gate have up alone, I rows instead of 2I here and below.
    w13_scales : ndarray or None
        [E, 2I, K/32] (MX formats), [E, 2I, K/16] (nvfp4), float32 scales of blocks (fp8_block), floats
        [E, 2I, groups of a row] (int4, int8).
    w2 : ndarray
        Codes [E, K, I/2] or weights [E, K, I].
    w2_scales : ndarray or None
        [E, K, I/32] and so on.
    w13_bias : ndarray or None
        [E, 2I], rows as in `w13`.
    w2_bias : ndarray or None
        [E, K].
    gate_up_layout : str
        Rows of `w13`: all of gate, then all of up ("concatenated"), or gate_0, up_0, gate_1, ...
        ("interleaved").
    format : str or (str, str)
        Of all weights, or of `w13` and of `w2`.
    block_shape : tuple or None
        Of fp8_block: rows and columns that share a scale, None for a whole axis. Gate and up are blocked
        apart if they are concatenated.
    w13_tensor_scale, w2_tensor_scale : ndarray or None
        float32 [E, 2], of gate and of up, and [E]; without a gate [E] or [E, 1] and [E].
    gated : bool
        Whether there is a gate.
    w13_zero_points, w2_zero_points : ndarray or None
        Of int4 and int8, of the shape of the scales.
    w13_offsets, w2_offsets : ndarray or None
        Of int4 and int8, of the shape of the scales, instead of zero points: a weight is n * scale + offset,
        where n counts codes from the lowest one.
    w13_columns : ndarray or None
        [E, K]: which hidden state each column of `w13` multiplies; column k the k-th, if not given.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> w13 = mx.quantize_mxfp4(np.ones((4, 64, 96), np.float32))
    >>> w2 = mx.quantize_mxfp4(np.ones((4, 96, 32), np.float32))
    >>> mx.reference.ExpertArrays(*w13, *w2).w2_scales.shape
    (4, 96, 1)
    """

    w13: np.ndarray
    w13_scales: np.ndarray | None
    w2: np.ndarray
    w2_scales: np.ndarray | None
    w13_bias: np.ndarray | None = None
    w2_bias: np.ndarray | None = None
    gate_up_layout: GateUpLayout = "concatenated"
    format: ExpertsFormat = "mxfp4"
    block_shape: tuple[int | None, int | None] | None = None
    w13_tensor_scale: np.ndarray | None = None
    w2_tensor_scale: np.ndarray | None = None
    gated: bool = True
    w13_zero_points: np.ndarray | None = None
    w2_zero_points: np.ndarray | None = None
    w13_offsets: np.ndarray | None = None
    w2_offsets: np.ndarray | None = None
    w13_columns: np.ndarray | None = None


def fused_experts(
    hidden_states: np.ndarray,
    experts: ExpertArrays | PackableExperts,
    topk_weights: np.ndarray,
    topk_ids: np.ndarray,
    *,
    activation: str = "silu",
    alpha: float | None = None,
    limit: float | None = None,
    apply_router_weight_on_input: bool = False,
    activation_format: str | None = None,
    expert_map: np.ndarray | None = None,
    out_dtype: DTypeLike | None = None,
) -> np.ndarray:
    """Sum of each token's chosen experts, with exactly the roundings of the numerics contract.

    Hidden states are rounded once to bfloat16. Each slot of a token then computes, in float32 but for the
    bfloat16 intermediate,

    - gate, up = w13 . hidden + w13_bias (the sums times the router weight first, if it applies to the input),
      or up alone, without a gate,
    - intermediate = bfloat16(activate(gate, up)),
    - down = w2 . intermediate + w2_bias (times the router weight, unless it applied to the input).

    The slots of a token are added in float32, in ascending (local) expert id, then slot, and rounded once.

    With ``activation_format="int8"``, hidden states and intermediates are rounded by `quantize_activations`
    instead; the activation and all sums are float32 operations in one order, so that kernels give the same
    bits whatever the numbers.

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
    activation_format : {None, "int8"}
    expert_map : ndarray of shape (E_global,), optional
        Local id of each global id, -1 to drop its slots.
    out_dtype : dtype, optional
        That of `hidden_states` if not given.

    Returns
    -------
    ndarray of shape (..., K)

    References
    ----------
    GLU Variants Improve Transformer, arXiv:2002.05202: gated projections. Outrageously Large Neural
    Networks: The Sparsely-Gated Mixture-of-Experts Layer, arXiv:1701.06538: the weighted sum.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> w13 = mx.quantize_mxfp4(np.ones((4, 64, 96), np.float32))
    >>> w2 = mx.quantize_mxfp4(np.ones((4, 96, 32), np.float32))
    >>> arrays = mx.reference.ExpertArrays(*w13, *w2)
    >>> x, weights, ids = np.ones((3, 96), np.float32), np.ones((3, 1)), np.zeros((3, 1), np.int32)
    >>> mx.reference.fused_experts(x, arrays, weights, ids).shape
    (3, 96)
    """
    options = ExpertOptions(activation, alpha, limit, apply_router_weight_on_input)
    check_activation_format(activation_format)
    local_ids = _local_ids(topk_ids, expert_map)
    precision = CONTRACT if activation_format is None else INT8
    hidden = hidden_states if precision.int8_activations else round_bfloat16(hidden_states)
    result = evaluate_experts(hidden, experts, (topk_weights, local_ids), options, precision)
    with np.errstate(over="ignore", under="ignore"):
        return result.astype(hidden_states.dtype if out_dtype is None else out_dtype)


def fused_experts_float64(
    hidden_states: np.ndarray,
    experts: ExpertArrays | PackableExperts,
    topk_weights: np.ndarray,
    topk_ids: np.ndarray,
    *,
    activation: str = "silu",
    alpha: float | None = None,
    limit: float | None = None,
    apply_router_weight_on_input: bool = False,
    expert_map: np.ndarray | None = None,
) -> np.ndarray:
    """Compute as `fused_experts` does, in float64, rounding nothing but the hidden states to bfloat16.

    Relative errors are measured against this.

    Parameters
    ----------
    hidden_states, experts, topk_weights, topk_ids
        See `fused_experts`.
    activation, alpha, limit, apply_router_weight_on_input, expert_map
        See `fused_experts`.

    Returns
    -------
    float64 ndarray of shape (..., K)

    References
    ----------
    GLU Variants Improve Transformer, arXiv:2002.05202: gated projections. Outrageously Large Neural
    Networks: The Sparsely-Gated Mixture-of-Experts Layer, arXiv:1701.06538: the weighted sum.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> w13 = mx.quantize_mxfp4(np.ones((4, 64, 96), np.float32))
    >>> w2 = mx.quantize_mxfp4(np.ones((4, 96, 32), np.float32))
    >>> arrays = mx.reference.ExpertArrays(*w13, *w2)
    >>> x, weights, ids = np.ones((3, 96), np.float32), np.ones((3, 1)), np.zeros((3, 1), np.int32)
    >>> mx.reference.fused_experts_float64(x, arrays, weights, ids).dtype
    dtype('float64')
    """
    options = ExpertOptions(activation, alpha, limit, apply_router_weight_on_input)
    routed = topk_weights, _local_ids(topk_ids, expert_map)
    return evaluate_experts(round_bfloat16(hidden_states), experts, routed, options, FLOAT64)


class ExpertOptions(NamedTuple):
    """What all experts of a call have in common."""

    activation: str
    alpha: float | None
    limit: float | None
    weight_on_input: bool


def _local_ids(topk_ids: np.ndarray, expert_map: np.ndarray | None) -> np.ndarray:
    ids = topk_ids.astype(np.int64)
    return ids if expert_map is None else np.where(ids < 0, -1, expert_map.astype(np.int64)[ids])


def evaluate_experts(
    hidden_states: np.ndarray,
    experts: ExpertArrays | PackableExperts,
    routed: tuple[np.ndarray, np.ndarray],
    options: ExpertOptions,
    precision: Precision,
) -> np.ndarray:
    """The sum over the slots of each token, on hidden states as they are; `routed`: weights and local ids."""
    arrays = experts if isinstance(experts, ExpertArrays) else arrays_of(experts)
    topk_weights, local_ids = routed
    hidden_size, top_k = hidden_states.shape[-1], local_ids.shape[-1]
    hidden = hidden_states.reshape(-1, hidden_size)
    ids = local_ids.reshape(len(hidden), top_k)
    weights = topk_weights.reshape(len(hidden), top_k)
    result = np.zeros(hidden.shape, dtype=precision.dtype)
    for expert in np.unique(ids[ids >= 0]):
        weights_of = _integer_weights if precision.int8_activations else _expert_weights
        matrices = weights_of(arrays, int(expert))
        read = hidden if arrays.w13_columns is None else hidden[:, arrays.w13_columns[expert]]
        for slot in range(top_k):
            tokens = np.flatnonzero(ids[:, slot] == expert)
            if tokens.size:
                router_weight = weights[tokens, slot, None].astype(np.float32).astype(precision.dtype)
                with np.errstate(over="ignore", invalid="ignore"):
                    result[tokens] += _expert(read[tokens], matrices, router_weight, options, precision)
    return result.reshape(hidden_states.shape)


def _expert(
    hidden: np.ndarray,
    matrices: _ExpertWeights,
    router_weight: np.ndarray,
    options: ExpertOptions,
    precision: Precision,
) -> np.ndarray:
    gate_up = _sums(hidden, matrices.w13, precision)
    if options.weight_on_input:
        gate_up = gate_up * router_weight
    if matrices.w13_bias is not None:
        gate_up = gate_up + matrices.w13_bias.astype(precision.dtype)
    *gate, up = np.split(gate_up, matrices.w13.shape[0] // matrices.w2.shape[1], axis=-1)
    function = activate_float32 if precision.int8_activations else activate
    intermediate = function(gate[0] if gate else None, up, options.activation, options.alpha, options.limit)
    down = _sums(precision.round_intermediate(intermediate), matrices.w2, precision)
    if matrices.w2_bias is not None:
        down = down + matrices.w2_bias.astype(precision.dtype)
    return down if options.weight_on_input else down * router_weight


def _sums(tokens: np.ndarray, matrix: np.ndarray | IntegerMatrix, precision: Precision) -> np.ndarray:
    return matrix.sums(tokens) if isinstance(matrix, IntegerMatrix) else matmul(tokens, matrix, precision)


class _ExpertWeights(NamedTuple):
    """One expert: dequantized, or integers; gate rows first."""

    w13: np.ndarray | IntegerMatrix
    w2: np.ndarray | IntegerMatrix
    w13_bias: np.ndarray | None
    w2_bias: np.ndarray | None


def arrays_of(experts: PackableExperts) -> ExpertArrays:
    """The arrays of PackedExperts, or of experts as they are in a checkpoint.

    Their method `arguments` returns what `mxfp4moe.pack_experts` takes, of which all forms are known here.

    Parameters
    ----------
    experts : PackedExperts or mxfp4moe.checkpoint.ExpertWeights

    Returns
    -------
    ExpertArrays
        Its weights and scales are sequences of an array for each expert.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> w13 = mx.quantize_mxfp4(np.ones((4, 64, 96), np.float32))
    >>> w2 = mx.quantize_mxfp4(np.ones((4, 96, 32), np.float32))
    >>> mx.reference.arrays_of(mx.pack_experts(*w13, *w2)).w13[0].shape
    (64, 48)
    """
    arguments = dict(experts.arguments())
    formats = dict(zip(("w13", "w2"), each_format(arguments["format"]), strict=True))
    if "fp8_block" in formats.values() and arguments.get("block_shape") is None:
        arguments["block_shape"] = (128, 128)
    scales = arguments.get("w13_scales")
    pair = is_pair(arguments["w13"] if scales is None else scales)
    for matrix, format in formats.items():
        for name in (matrix, f"{matrix}_scales", f"{matrix}_zero_points", f"{matrix}_offsets"):
            matrices = arguments.setdefault(name, None)
            if matrices is not None:
                halves = matrices if pair and matrix == "w13" else [matrices]
                arguments[name] = _Matrices(halves, format)
    return ExpertArrays(**arguments)


class _Matrices(Sequence[np.ndarray]):
    """Weights or scales of every expert, brought into the shape of `ExpertArrays` one by one."""

    def __init__(self, halves: Sequence[Any], format: str) -> None:
        self._halves = halves
        self._is_rounded = format == "bf16"  # as `pack_experts` does with other floats
        self._is_bytes = format != "int8"  # whether int8 are bytes, not numbers

    def __len__(self) -> int:
        return len(self._halves[0])

    def __getitem__(self, expert: Any) -> Any:
        matrices = [np.asarray(half[expert]) for half in self._halves]
        rows = np.concatenate([matrix.reshape(len(matrix), -1) for matrix in matrices])
        if self._is_rounded and rows.dtype != bfloat16:
            return round_bfloat16(rows)
        return rows.view(np.uint8) if rows.dtype == np.int8 and self._is_bytes else rows


def _expert_weights(arrays: ExpertArrays, expert: int) -> _ExpertWeights:
    interleaved = arrays.gated and arrays.gate_up_layout == "interleaved"
    halves = 2 if arrays.gated and not interleaved else 1
    w13 = _dequantize(arrays, "w13", expert, halves)
    w2 = _dequantize(arrays, "w2", expert, 1)
    w13_bias = _of(arrays.w13_bias, expert)
    w13 = np.asarray(_gate_first(arrays, w13))
    w13_bias = _gate_first(arrays, w13_bias)
    with np.errstate(invalid="ignore"):
        if arrays.w13_tensor_scale is not None:
            scales = np.ravel(arrays.w13_tensor_scale[expert]).astype(np.float64)
            w13 = w13 * np.repeat(scales, len(w13) // len(scales))[:, None]
        if arrays.w2_tensor_scale is not None:
            w2 = w2 * np.float64(arrays.w2_tensor_scale[expert])
    return _ExpertWeights(w13, w2, w13_bias, _of(arrays.w2_bias, expert))


def _integer_weights(arrays: ExpertArrays, expert: int) -> _ExpertWeights:
    """Codes and scales of one expert instead of weights."""
    w13, w2 = (_integer_matrix(arrays, name, expert) for name in ("w13", "w2"))
    w13_bias = _gate_first(arrays, _of(arrays.w13_bias, expert))
    return _ExpertWeights(w13, w2, w13_bias, _of(arrays.w2_bias, expert))


def _integer_matrix(arrays: ExpertArrays, name: str, expert: int) -> IntegerMatrix:
    parts = [
        _of(getattr(arrays, name + part), expert) for part in ("", "_scales", "_zero_points", "_offsets")
    ]
    if name == "w13":
        parts = [_gate_first(arrays, part) for part in parts]
    tensor_scale = getattr(arrays, f"{name}_tensor_scale")
    if tensor_scale is not None:
        of_rows = np.ravel(np.asarray(tensor_scale[expert], np.float32))
        tensor_scale = np.repeat(of_rows, len(np.asarray(parts[0])) // len(of_rows))
    return integer_matrix(format_of(arrays.format, name), parts, tensor_scale)


def _gate_first(arrays: ExpertArrays, rows: np.ndarray | None) -> np.ndarray | None:
    interleaved = arrays.gated and arrays.gate_up_layout == "interleaved"
    return np.concatenate([rows[0::2], rows[1::2]]) if interleaved and rows is not None else rows


def down_weights(arrays: ExpertArrays, expert: int) -> np.ndarray:
    """w2 of one expert, exactly: in float64 where float32 scales take part."""
    return np.asarray(_expert_weights(arrays, expert).w2)


def down_integers(arrays: ExpertArrays, expert: int) -> IntegerMatrix:
    """w2 of one expert as codes and scales."""
    return _integer_matrix(arrays, "w2", expert)


def _of(array: np.ndarray | None, expert: int) -> np.ndarray | None:
    return None if array is None else np.asarray(array[expert])


def _dequantize(arrays: ExpertArrays, name: str, expert: int, halves: int) -> np.ndarray:
    """The weights of one matrix, exactly: in float64 where float32 scales take part.

    Such a scale multiplies the sum of its range of K in the kernels. Exactly, that is what multiplying the
    weights gives.
    """
    weights, scales = getattr(arrays, name)[expert], _of(getattr(arrays, f"{name}_scales"), expert)
    if scales is None:
        return np.asarray(weights)
    format = format_of(arrays.format, name)
    if format in ("int4", "int8"):
        zeros, offsets = (
            _of(getattr(arrays, f"{name}_{each}"), expert) for each in ("zero_points", "offsets")
        )
        return _integers(format, (weights, scales, zeros, offsets))
    if format == "mxfp4":
        return dequantize_mxfp4(weights, scales)
    if format == "nvfp4":
        values = unpack_e2m1(weights).astype(np.float32).reshape(*scales.shape, 16)
        values *= scales.view(ml_dtypes.float8_e4m3fn).astype(np.float32)[..., None]
        return values.reshape(len(weights), -1)
    values = _fp8(weights)
    if format == "mxfp8":
        exponents = scales.view(np.uint8).astype(np.int32) - 127
        factors = np.where(exponents == 128, np.nan, np.ldexp(1.0, exponents)).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            return (values.reshape(*scales.shape, 32) * factors[..., None]).reshape(values.shape)
    rows, columns = arrays.block_shape or (None, None)
    by_half = scales.astype(np.float64).reshape(halves, -1, scales.shape[-1])
    by_half = by_half.repeat(rows or len(values), axis=1)[:, : len(values) // halves]
    by_row = by_half.reshape(len(values), -1)
    with np.errstate(invalid="ignore"):
        return values * by_row.repeat(columns or values.shape[1], axis=1)[:, : values.shape[1]]


def _integers(format: str, arrays: tuple[np.ndarray | None, ...]) -> np.ndarray:
    """The weights of codes, scales, and zero points or offsets or neither of them."""
    weights, scales, zeros, offsets = arrays
    assert weights is not None
    assert scales is not None
    dequantize = dequantize_int4 if format == "int4" else dequantize_int8
    if offsets is None:
        return dequantize(weights, scales, zeros, np.float64)
    lowest = np.full(scales.shape, 0 if format == "int4" else -128, np.uint8 if format == "int4" else np.int8)
    values = dequantize(weights, scales, lowest, np.float64).reshape(*scales.shape, -1)
    with np.errstate(invalid="ignore"):
        values = values + offsets.astype(np.float64)[..., None]
    return values.reshape(len(weights), -1)


def _fp8(codes: np.ndarray) -> np.ndarray:
    if codes.dtype == np.uint8:
        codes = codes.view(ml_dtypes.float8_e4m3fn)
    return codes.astype(np.float32)
