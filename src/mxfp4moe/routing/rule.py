"""What all routing functions share: a rule as the kernel takes it, checks of arrays, and the call."""

from __future__ import annotations

from typing import Required, SupportsIndex, TypeAlias, TypedDict

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxfp4moe import _core
from mxfp4moe._arguments import as_array, as_rows, check_num_experts, check_positive_int, value_error
from mxfp4moe.config import resolve_num_threads

Routed: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int32]]

SCORINGS = _core.SCORINGS
GROUP_SCORES = _core.GROUP_SCORES
_FLOAT_DTYPES = tuple(np.dtype(t) for t in (np.float32, ml_dtypes.bfloat16, np.float16, np.float64))
_FLOAT32 = _FLOAT_DTYPES[0]


class Rule(TypedDict, total=False):
    """The keywords of `_core.route`: src/cpp/routing/routing.h describes them. Defaults leave a step out."""

    scoring: Required[int]
    logit_softcap: float
    jitter_eps: float
    ids_given: bool
    by_logit: bool
    num_shared: int
    num_groups: int
    topk_group: int
    group_score: int
    zero_masked: bool
    renormalize: bool
    norm_order: float
    norm_epsilon: float
    norm_floor: float
    routed_scaling_factor: float


def as_logits(value: ArrayLike) -> NDArray[np.float32]:
    """`router_logits` as contiguous float32; the kernel looks for NaN and +inf."""
    logits = as_array("router_logits", value, _FLOAT_DTYPES)
    if logits.ndim == 0 or not logits.shape[-1]:
        raise value_error("router_logits", "shape (..., num_experts)", f"shape {logits.shape}")
    check_num_experts("router_logits", logits.shape[-1])
    return _as_float32(logits)


def as_expert_numbers(name: str, value: ArrayLike | None, num_experts: int) -> NDArray[np.float32] | None:
    """An optional array with one number for each expert, as contiguous float32."""
    if value is None:
        return None
    array = as_array(name, value, _FLOAT_DTYPES)
    if array.shape != (num_experts,):
        raise value_error(name, f"shape ({num_experts},)", f"shape {array.shape}")
    return _as_float32(array)


def check_groups(num_groups: SupportsIndex, topk_group: SupportsIndex, num_experts: int) -> tuple[int, int]:
    """`num_groups` and `topk_group` as ints that fit to each other and to the number of experts."""
    groups = check_positive_int("num_groups", num_groups, maximum=num_experts)
    if num_experts % groups:
        raise value_error("num_groups", f"a divisor of the number of experts, {num_experts}", str(groups))
    return groups, check_positive_int("topk_group", topk_group, maximum=groups)


def route(
    logits: NDArray[np.float32],
    rule: Rule,
    slots: int | NDArray[np.int32],
    *,
    correction_bias: NDArray[np.float32] | None = None,
    expert_scale: NDArray[np.float32] | None = None,
    num_threads: int | None = None,
) -> Routed:
    """Weights and ids by `rule`; `slots` is their number for each token, or the ids where they are given."""
    topk_ids = np.empty((*logits.shape[:-1], slots), np.int32) if isinstance(slots, int) else slots
    topk_weights = np.empty(topk_ids.shape, np.float32)
    bad_row = _core.route(
        as_rows(logits),
        correction_bias,
        expert_scale,
        as_rows(topk_weights),
        as_rows(topk_ids),
        resolve_num_threads(num_threads),
        **rule,
    )
    if bad_row is None:
        assert correction_bias is not None
        raise _not_below_infinity("correction_bias", correction_bias)
    if bad_row >= 0:
        row = position_of(bad_row, logits.shape[:-1])
        if np.isneginf(logits[row]).all():
            raise value_error("router_logits", "a finite value in every row", f"only -inf in row {row}")
        raise _not_below_infinity("router_logits", logits, row)
    return topk_weights, topk_ids


def position_of(flat_index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The index into an array of `shape` of its element number `flat_index`."""
    return tuple(int(i) for i in np.unravel_index(flat_index, shape)) if shape else ()


def _as_float32(array: np.ndarray) -> NDArray[np.float32]:
    if array.dtype == _FLOAT32:
        return np.ascontiguousarray(array)
    # What is too large becomes infinite, and NaN stays NaN; both are found and refused afterwards.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return array.astype(np.float32, order="C")


def _not_below_infinity(name: str, array: np.ndarray, row: tuple[int, ...] = ()) -> ValueError:
    position = (*row, int((~(array[row] < np.inf)).argmax()))
    return value_error(name, "finite values or -inf", f"{array[position]} at position {position}")
