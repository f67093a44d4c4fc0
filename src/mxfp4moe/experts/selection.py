"""Some of the experts of a layer: which, and where each global id is among those that are held."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxfp4moe._arguments import (
    as_integer_array,
    check_int,
    check_num_experts,
    describe,
    type_error,
    value_error,
)

ExpertIds = Iterable[int] | ArrayLike
"""Global ids of experts: a range, any other iterable of integers, or an array with one axis."""


def check_expert_ids(name: str, value: Any, num_experts: int) -> NDArray[np.int32]:
    """The ids in ascending order, in which experts are held and added; each must be there once."""
    items: Iterable[Any]
    if isinstance(value, np.ndarray):
        array = as_integer_array(name, value)
        if array.ndim != 1:
            raise value_error(name, "an array with one axis", describe(value))
        items = array.tolist()
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes | dict):
        items = value
    else:
        raise type_error(name, "a range or ids of experts", describe(value))
    ids: set[int] = set()
    for i, item in enumerate(items):  # which may be without end
        id = check_int(f"{name}[{i}]", item, 0, num_experts - 1)
        if id in ids:
            raise value_error(name, "each expert once", f"{id} twice")
        ids.add(id)
    if not ids:
        raise value_error(name, "at least one expert", "none")
    return np.array(sorted(ids), np.int32)


def make_expert_map(ids: NDArray[np.int32], num_experts: int) -> NDArray[np.int32]:
    """The place of each expert among `ids`, -1 for those that are not there."""
    result = np.full(num_experts, -1, np.int32)
    result[ids] = np.arange(len(ids), dtype=np.int32)
    return result


def check_expert_map(name: str, value: Any, num_held: int) -> NDArray[np.int32]:
    """A read-only map in which each of `num_held` experts stands once, in ascending order."""
    array = as_integer_array(name, value)
    if array.ndim != 1:
        raise value_error(name, "shape (num_experts,)", describe(array))
    check_num_experts(name, len(array))
    held = array[array != -1]
    if not np.array_equal(held, np.arange(num_held)):
        expected = f"0 to {num_held - 1} in ascending order, and -1 for experts that are not held"
        raise value_error(name, expected, _first_wrong(held, num_held))
    result = np.array(array, np.int32)
    result.flags.writeable = False
    return result


def _first_wrong(held: NDArray[Any], num_held: int) -> str:
    wrong = np.flatnonzero(held[:num_held] != np.arange(num_held)[: len(held)])
    return f"{held[wrong[0]]} as number {wrong[0]} of them" if wrong.size else f"{len(held)} of them"


def held_ids(expert_map: NDArray[np.int32] | None, num_experts: int) -> NDArray[np.int32]:
    """The global ids of the experts that are held, in their order."""
    if expert_map is None:
        return np.arange(num_experts, dtype=np.int32)
    return np.flatnonzero(expert_map >= 0).astype(np.int32)
