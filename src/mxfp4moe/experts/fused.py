"""The fused experts: a token's top-k experts computed straight from packed weights."""

from __future__ import annotations

from typing import Any, NotRequired, SupportsIndex, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxfp4moe import _core
from mxfp4moe._arguments import (
    as_array,
    as_integer_array,
    as_rows,
    check_bool,
    check_num_experts,
    describe,
    to_int64,
    type_error,
    value_error,
)
from mxfp4moe._dlpack import SupportsDLPack
from mxfp4moe.config import active_kernels, resolve_num_threads
from mxfp4moe.experts.activation import Activation, ActivationArgs, check_activation, with_activations
from mxfp4moe.experts.activation_format import ActivationFormat, check_activation_format
from mxfp4moe.experts.cached_run import run_cached
from mxfp4moe.experts.out import check_out, given_array, returned, rows_view
from mxfp4moe.experts.packed_experts import PackedExperts
from mxfp4moe.formats import FLOAT_CODES
from mxfp4moe.routing import topk_softmax

__all__ = ["fused_experts", "fused_moe"]

_FLOAT_DTYPES = tuple(FLOAT_CODES)
_WEIGHT_DTYPES = (*reversed(_FLOAT_DTYPES), np.dtype(np.float64))
_MAX_TOKENS = 2**31 - 1


@with_activations
def fused_experts(
    hidden_states: ArrayLike,
    experts: PackedExperts,
    topk_weights: ArrayLike,
    topk_ids: ArrayLike,
    *,
    activation: Activation = "silu",
    alpha: float | None = None,
    limit: float | None = None,
    apply_router_weight_on_input: bool = False,
    activation_format: ActivationFormat | None = None,
    expert_map: ArrayLike | None = None,
    combine: bool = True,
    out: NDArray[Any] | SupportsDLPack | None = None,
    num_threads: int | None = None,
) -> NDArray[Any]:
    """Weighted sum of each token's chosen experts.

    For each slot of a token with expert e and weight w: ``gate, up = w13[e] @ x + w13_bias[e]`` (up alone for
    experts without a gate), ``h = activation(gate, up)`` rounded to bfloat16, and ``w * (w2[e] @ h +
    w2_bias[e])`` is added to the token's result, in ascending expert id, then slot. Weights are used exactly,
    sums are float32, and the result is rounded once. A token's result does not depend on the other tokens, on
    its position or on `num_threads`.

    Parameters
    ----------
    hidden_states : bfloat16, float16 or float32 array of shape (..., hidden_size)
        float16 and float32 are rounded once to bfloat16. Copied if the last axis is not contiguous.
    experts : PackedExperts
    topk_weights : float32 array of shape (..., top_k)
        Other float dtypes are rounded to float32. The weight of a dropped slot is not read.
    topk_ids : integer array of shape (..., top_k)
        Ids in [0, num_experts), or -1 for a dropped slot. A repeated id counts each time. A token whose
        slots are all dropped gives zeros.
    activation : str
        The name of a formula of g, which is min(gate, limit), and u, which is clip(up, -limit, limit):

        {activations}
    alpha : float, optional
        Of the activations that have one in the table, which is what it is if not given. Above 0 for "situ".
    limit : float, optional
        Above 0. If not given, that of the table; ``inf`` clamps nothing.
    apply_router_weight_on_input : bool
        The slot's weight multiplies the float32 sums of gate and up, before the biases, and not the output:
        as if it multiplied the input, without another rounding.
    activation_format : {None, "int8"}
        "int8" is faster on CPUs without AMX and less exact: hidden states and intermediates are rounded to
        integers of eight bits instead of bfloat16, in blocks of 32 that have a scale. For weights in mxfp4,
        nvfp4, int4 and int8. The bits of a result are then the same on every instruction set.
    expert_map : integer array of shape (num_global_experts,), optional
        `topk_ids` then index it; it holds local ids, or -1 for experts whose slots are dropped here.
    combine : bool, default True
        False: return the term of each slot instead of their sum, as float32 of shape (..., top_k,
        hidden_size), with bias and router weight applied, and zeros where a slot is dropped. Terms added in
        float32 to zeros, in ascending expert id, then slot, and rounded once, are the sum bit for bit.
    out : ndarray of the shape of hidden_states, optional
        bfloat16, float16 or float32, writeable, last axis contiguous; with ``combine=False`` of the shape of
        the terms, and float32. May be `hidden_states` itself; must not
        overlap an input otherwise. A call that a signal ends, as Ctrl-C does, may leave anything in it. An
        array of another library that DLPack hands over for writing is written in place, too.
    num_threads : int, optional
        For this call; see `mxfp4moe.num_threads`.

    Returns
    -------
    ndarray of the shape and dtype of hidden_states, or `out`
        With ``combine=False`` the terms.

    Raises
    ------
    TypeError
        A wrong kind or dtype of argument.
    ValueError
        A wrong shape, an id or number out of range, an overlap.

    Notes
    -----
    Activations and their parameters follow gpt-oss ("swigluoai"), DeepSeek-V4 ("silu" with a limit), Step-3.5
    ("silu_clamp"), Kimi-K3 ("situ") and Nemotron-H ("relu2").

    References
    ----------
    GLU Variants Improve Transformer, arXiv:2002.05202: gated projections. Outrageously Large Neural
    Networks: The Sparsely-Gated Mixture-of-Experts Layer, arXiv:1701.06538: the weighted sum.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> rng = np.random.default_rng(0)
    >>> w13 = mx.quantize_mxfp4(rng.standard_normal((4, 2 * 64, 96), np.float32))
    >>> w2 = mx.quantize_mxfp4(rng.standard_normal((4, 96, 64), np.float32))
    >>> experts = mx.pack_experts(*w13, *w2)
    >>> x = rng.standard_normal((5, 96), np.float32)
    >>> weights, ids = mx.topk_softmax(rng.standard_normal((5, 4), np.float32), 2)
    >>> mx.fused_experts(x, experts, weights, ids).shape
    (5, 96)
    """
    if not isinstance(experts, PackedExperts):
        raise type_error("experts", "PackedExperts", describe(experts))
    spec = experts.spec
    hidden = check_hidden_states(hidden_states, spec.hidden_size)
    weights, ids = as_slots(topk_weights, topk_ids)
    slots = check_slots(weights, ids, hidden.shape[:-1], spec.num_experts, expert_map)
    function = check_activation(activation, alpha, limit, spec.gated)
    rounding = check_activation_format(activation_format, spec.format, "experts")
    options = expert_options(function, apply_router_weight_on_input, rounding)
    threads = resolve_num_threads(num_threads)
    shape, dtype = hidden.shape, hidden.dtype
    if not check_bool("combine", combine):
        options["combine"] = False
        shape, dtype = (*ids.shape, spec.hidden_size), np.dtype(np.float32)
    if out is not None:
        inputs = {
            "topk_weights": given_array(topk_weights, weights),
            "topk_ids": given_array(topk_ids, ids),
            "expert_map": expert_map,
        }
        result = check_out(out, given_array(hidden_states, hidden), inputs, shape)
        if not combine and result.dtype != dtype:
            raise type_error("out", "an array of float32 with combine=False", describe(result))
    else:
        result = np.empty(shape, dtype)
    rows = as_rows(hidden)
    target = rows_view(result)
    num_rows = len(rows) if combine else slots[1].size
    buffer = np.empty((num_rows, rows.shape[1]), result.dtype) if target is None else target
    run_experts(experts, rows, slots, options, buffer, threads)
    if target is None:
        result[...] = buffer.reshape(result.shape)
    return returned(out, result)


def fused_moe(
    hidden_states: ArrayLike,
    experts: PackedExperts,
    router_logits: ArrayLike,
    top_k: SupportsIndex,
    *,
    renormalize: bool = True,
    activation: Activation = "silu",
    alpha: float | None = None,
    limit: float | None = None,
    apply_router_weight_on_input: bool = False,
    activation_format: ActivationFormat | None = None,
    expert_map: ArrayLike | None = None,
    out: NDArray[Any] | SupportsDLPack | None = None,
    num_threads: int | None = None,
) -> NDArray[Any]:
    """Route by `topk_softmax`, then compute by `fused_experts`.

    Parameters
    ----------
    hidden_states : bfloat16, float16 or float32 array of shape (..., hidden_size)
    experts : PackedExperts
    router_logits : float array of shape (..., num_experts)
        One logit per expert; with `expert_map`, per global expert.
    top_k : int
    renormalize : bool, default True
        As in `topk_softmax`.
    activation, alpha, limit, apply_router_weight_on_input, activation_format, expert_map, out, num_threads
        As in `fused_experts`.

    Returns
    -------
    ndarray of the shape and dtype of hidden_states, or `out`

    Raises
    ------
    TypeError, ValueError
        As `topk_softmax` and `fused_experts` do.

    References
    ----------
    Mixtral of Experts, arXiv:2401.04088, section 2.1: the routing. Otherwise those of `fused_experts`.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> rng = np.random.default_rng(0)
    >>> w13 = mx.quantize_mxfp4(rng.standard_normal((4, 2 * 64, 96), np.float32))
    >>> w2 = mx.quantize_mxfp4(rng.standard_normal((4, 96, 64), np.float32))
    >>> experts = mx.pack_experts(*w13, *w2)
    >>> x = rng.standard_normal((5, 96), np.float32)
    >>> mx.fused_moe(x, experts, rng.standard_normal((5, 4), np.float32), 2).shape
    (5, 96)
    """
    if not isinstance(experts, PackedExperts):
        raise type_error("experts", "PackedExperts", describe(experts))
    hidden = check_hidden_states(hidden_states, experts.hidden_size)
    num_logits = experts.num_experts
    if expert_map is not None:
        num_logits = as_integer_array("expert_map", expert_map).size
    logits = as_array("router_logits", router_logits, _WEIGHT_DTYPES)
    if logits.shape != (*hidden.shape[:-1], num_logits):
        raise value_error(
            "router_logits", f"shape {(*hidden.shape[:-1], num_logits)}", f"shape {logits.shape}"
        )
    topk_weights, topk_ids = topk_softmax(logits, top_k, renormalize=renormalize, num_threads=num_threads)
    return fused_experts(
        hidden_states,
        experts,
        topk_weights,
        topk_ids,
        activation=activation,
        alpha=alpha,
        limit=limit,
        apply_router_weight_on_input=apply_router_weight_on_input,
        activation_format=activation_format,
        expert_map=expert_map,
        out=out,
        num_threads=num_threads,
    )


def check_hidden_states(value: Any, hidden_size: int, name: str = "hidden_states") -> np.ndarray:
    """`value` as an array of tokens with a contiguous last axis; copied only if needed."""
    hidden = as_array(name, value, _FLOAT_DTYPES)
    if hidden.ndim == 0 or hidden.shape[-1] != hidden_size:
        raise value_error(name, f"shape (..., {hidden_size})", f"shape {hidden.shape}")
    if hidden.size // hidden_size > _MAX_TOKENS:
        raise value_error(name, f"at most {_MAX_TOKENS} tokens", f"shape {hidden.shape}")
    return hidden if hidden.strides[-1] == hidden.itemsize else np.ascontiguousarray(hidden)


class ExpertOptions(TypedDict):
    """What a call says of all its slots, as the kernels take it."""

    activation: int
    alpha: float
    limit: float
    apply_router_weight_on_input: bool
    activation_format: int
    combine: NotRequired[bool]


Slots = tuple[NDArray[np.float32], NDArray[np.int32]]
"""Weights and local ids of shape (num_tokens, top_k), contiguous; an id is -1 or that of an expert."""


def expert_options(
    function: ActivationArgs, apply_router_weight_on_input: bool, activation_format: int
) -> ExpertOptions:
    """The options of a call, of an activation and a format of activations that have been checked."""
    on_input = check_bool("apply_router_weight_on_input", apply_router_weight_on_input)
    return {
        "activation": function.kind,
        "alpha": function.alpha,
        "limit": function.limit,
        "apply_router_weight_on_input": on_input,
        "activation_format": activation_format,
    }


def as_slots(topk_weights: ArrayLike, topk_ids: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The arguments of `fused_experts` of these names as arrays, of dtypes that it takes."""
    ids = as_integer_array("topk_ids", topk_ids)
    return as_array("topk_weights", topk_weights, _WEIGHT_DTYPES), ids


def check_slots(
    weights: np.ndarray,
    ids: np.ndarray,
    leading: tuple[int, ...],
    num_experts: int,
    expert_map: ArrayLike | None = None,
) -> Slots:
    """What `as_slots` gives, for hidden states of shape (*leading, hidden_size)."""
    check_slot_shapes(weights, ids, leading)
    local = _local_ids(ids, check_expert_map(expert_map, num_experts), num_experts)
    return _as_float32(weights if weights.ndim == 2 else weights.reshape(local.shape)), local


def run_experts(
    experts: PackedExperts,
    rows: NDArray[Any],
    slots: Slots,
    options: ExpertOptions,
    out: NDArray[Any],
    threads: int,
) -> None:
    """Compute `fused_experts` of arguments that have been checked; `rows` and `out` have two axes.

    Without `combine`, `out` has a row for each slot.
    """
    if rows.size == 0:
        return
    if slots[1].shape[1] == 0:
        out[...] = 0
        return

    def run(rows: NDArray[Any], slots: Slots, out: NDArray[Any], combine: bool) -> None:
        chosen: ExpertOptions = {**options, "combine": combine}
        _core.fused_experts(
            experts._storage,
            active_kernels(),
            rows.view(np.uint8),
            FLOAT_CODES[rows.dtype],
            *slots,
            out.view(np.uint8),
            FLOAT_CODES[out.dtype],
            threads,
            **chosen,
        )

    combine = options.get("combine", True)
    if experts._cached is None:
        run(rows, slots, out, combine)
    else:
        run_cached(run, (experts._cached, experts._places), (rows, slots), out, combine)


def _as_float32(weights: np.ndarray) -> np.ndarray:
    if weights.dtype == np.float32:
        return np.ascontiguousarray(weights)
    # Weights that are too large become infinite; the weight of a dropped slot may be anything.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return weights.astype(np.float32, order="C")


def check_slot_shapes(weights: Any, ids: Any, leading: tuple[int, ...]) -> None:
    """Raise unless these arrays, of NumPy or another library, have the shape (*leading, top_k)."""
    _check_shape("topk_ids", ids, leading)
    _check_shape("topk_weights", weights, leading)
    if weights.shape != ids.shape:
        raise value_error("topk_weights", f"the shape {ids.shape} of topk_ids", f"shape {weights.shape}")


def _check_shape(name: str, array: Any, leading: tuple[int, ...]) -> None:
    if array.ndim == 0 or array.shape[:-1] != leading:
        expected = ", ".join([*map(str, leading), "top_k"])
        raise value_error(name, f"shape ({expected})", f"shape {array.shape}")


def check_expert_map(value: Any, num_experts: int) -> NDArray[np.int64] | None:
    """The argument `expert_map` as the kernels take it: a copy, which other threads do not change."""
    if value is None:
        return None
    original = as_integer_array("expert_map", value)
    if original.ndim != 1:
        raise value_error("expert_map", "shape (num_global_experts,)", f"shape {original.shape}")
    check_num_experts("expert_map", len(original))
    original = original.copy()
    wrong = (original < -1) | (original >= num_experts)
    if wrong.any():
        at = int(wrong.argmax())
        raise value_error(
            "expert_map", f"values in [-1, {num_experts - 1}]", f"{original[at]} at position ({at},)"
        )
    return np.ascontiguousarray(original, dtype=np.int64)


def _local_ids(ids: np.ndarray, mapping: NDArray[np.int64] | None, num_experts: int) -> np.ndarray:
    """The local id of each slot as int32 of shape (num_tokens, top_k), -1 for dropped ones."""
    num_ids = num_experts if mapping is None else len(mapping)
    numbers = ids if ids.dtype == np.int32 or ids.dtype == np.int64 else to_int64(ids)
    flat = numbers
    if ids.ndim != 2:
        top_k = ids.shape[-1]
        flat = numbers.reshape(ids.size // top_k if top_k else 0, top_k)
    local = np.empty(flat.shape, np.int32)
    if local.size:
        bad = _core.local_ids(flat, mapping, num_ids, local)
        if bad >= 0:
            position = tuple(map(int, np.unravel_index(bad, ids.shape)))
            raise value_error(
                "topk_ids", f"values in [-1, {num_ids - 1}]", f"{ids[position]} at position {position}"
            )
    return local
