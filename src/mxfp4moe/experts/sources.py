"""The arrays that `pack_experts` is given: checked, handed out expert by expert, not copied as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mxfp4moe._arguments import as_array, check_num_experts, describe, type_error, value_error
from mxfp4moe._dtypes import widen
from mxfp4moe.experts.spec import BIAS_DTYPES
from mxfp4moe.formats import WeightFormat

_FLOAT32 = (np.dtype(np.float32),)


def describe_experts(value: Any) -> str:
    """What came in the place of arrays of experts."""
    return f"a sequence of {len(value)}" if isinstance(value, (list, tuple)) else describe(value)


def per_expert(name: str, value: Any, dtypes: Sequence[np.dtype], ndims: Sequence[int]) -> list[np.ndarray]:
    """One array per expert, each with one of the numbers of axes in `ndims`; nothing is copied that fits."""
    if isinstance(value, (list, tuple)):
        check_num_experts(name, len(value))
        arrays = [as_array(f"{name}[{i}]", item, dtypes) for i, item in enumerate(value)]
        bad = next((i for i, a in enumerate(arrays) if a.ndim not in ndims), None)
        if bad is not None:
            expected = " or ".join(map(str, ndims))
            raise value_error(f"{name}[{bad}]", f"an array with {expected} axes", describe(arrays[bad]))
    else:
        stacked = as_array(name, value, dtypes)
        if stacked.ndim - 1 not in ndims:
            expected = " or ".join(str(n + 1) for n in ndims)
            raise value_error(
                name, f"an array with {expected} axes, or a sequence of arrays", describe(stacked)
            )
        check_num_experts(name, len(stacked))
        arrays = list(stacked)
    if not arrays:
        raise value_error(name, "at least 1 expert", "0")
    return arrays


def _check_same_dtype(name: str, arrays: list[np.ndarray]) -> np.dtype:
    dtype = arrays[0].dtype
    other = next((array.dtype for array in arrays if array.dtype != dtype), None)
    if other is not None:
        raise type_error(name, f"{dtype} as for expert 0", f"{other}")
    return dtype


def _check_shape(
    name: str, arrays: list[np.ndarray], shapes: dict[int, tuple[int, ...]], inferred: str
) -> None:
    """Raise unless each array has the shape that `shapes` has for its number of axes.

    `inferred` says in the error which sizes these shapes follow from.
    """
    for expert, array in enumerate(arrays):
        if array.shape != shapes[array.ndim]:
            expected = f"shape {shapes[array.ndim]} for each expert ({inferred})"
            raise value_error(name, expected, f"{array.shape} for expert {expert}")


class Matrix:
    """Weights and scales of one matrix of every expert, as they came."""

    def __init__(self, format: WeightFormat, name: str, weights: Any, scales_name: str, scales: Any) -> None:
        self.format, self.name, self.scales_name = format, name, scales_name
        ndims = [1 + n for n in format.row_shapes(0)]
        self._weights = per_expert(name, weights, tuple(format.weight_dtypes), ndims)
        self._scales: list[np.ndarray] = []
        self.scale_dtype: np.dtype | None = None
        if format.has_scales:
            self._scales = per_expert(scales_name, scales, format.scale_dtypes, (2,))
            self.scale_dtype = self._scales[0].dtype
        elif scales is not None:
            raise value_error(scales_name, f"None with format {format.name!r}", describe(scales))
        self.dtype = self._weights[0].dtype
        self.rows = self._weights[0].shape[0]
        self.k = format.k_of(self._weights[0].shape[1:])

    def __len__(self) -> int:
        return len(self._weights)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array of expert 0."""
        return self._weights[0].shape

    def check(
        self, num_experts: int, shape: tuple[int, int], scale_shape: tuple[int, int], inferred: str
    ) -> None:
        """Raise unless these are `num_experts` matrices of `shape`, with scales of `scale_shape`."""
        pairs = [(self.name, self._weights), (self.scales_name, self._scales)][: 2 if self._scales else 1]
        for name, arrays in pairs:
            if len(arrays) != num_experts:
                raise value_error(name, f"{num_experts} experts, as in w2", str(len(arrays)))
        rows, k = shape
        shapes = {1 + n: (rows, *row) for n, row in self.format.row_shapes(k).items()}
        _check_shape(self.name, self._weights, shapes, inferred)
        _check_shape(self.scales_name, self._scales, {2: scale_shape}, inferred)
        _check_same_dtype(self.name, self._weights)
        if self._scales:
            _check_same_dtype(self.scales_name, self._scales)

    def weights(self, expert: int) -> np.ndarray:
        """The weights of one expert as C-contiguous rows of bytes."""
        return _byte_rows(self._weights[expert])

    def scale_bytes(self, expert: int) -> np.ndarray:
        """The block scales of one expert as C-contiguous rows of bytes."""
        return _byte_rows(self._scales[expert])

    def sum_scales(self, expert: int) -> np.ndarray:
        """The float32 scales of one expert, C-contiguous."""
        return np.ascontiguousarray(self._scales[expert])


def _byte_rows(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8)


class Bias:
    """The bias of one matrix of every expert, or none."""

    def __init__(self, name: str, value: Any, shape: tuple[int, int], inferred: str) -> None:
        self.dtype: np.dtype | None = None
        if value is None:
            return
        num_experts, rows = shape
        self._arrays = per_expert(name, value, BIAS_DTYPES, (1,))
        if len(self._arrays) != num_experts:
            raise value_error(name, f"{num_experts} experts, as in w2", str(len(self._arrays)))
        _check_shape(name, self._arrays, {1: (rows,)}, inferred)
        self.dtype = _check_same_dtype(name, self._arrays)

    def expert(self, index: int) -> np.ndarray:
        """The bias of one expert as float32."""
        return widen(self._arrays[index])


def tensor_scales(
    format: WeightFormat, w13: Any, w2: Any, num_experts: int, gated: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """The float32 scales of gate (if any) and up, and of down, [experts, 2 or 1], or None without any."""
    each = (num_experts,)
    w13_shapes: tuple[tuple[int, ...], ...] = ((num_experts, 2),) if gated else (each, (num_experts, 1))
    given = {"w13_tensor_scale": (w13, w13_shapes), "w2_tensor_scale": (w2, (each,))}
    if format.has_block_shape:
        for name, (value, _) in given.items():
            if value is not None:
                raise value_error(name, f"None with format {format.name!r}", describe(value))
    if not format.has_tensor_scale and w13 is None and w2 is None:
        return None
    arrays = []
    for name, (value, shapes) in given.items():
        expected = " or ".join(map(str, shapes))
        if value is None:
            needed = f"with format {format.name!r}" if format.has_tensor_scale else "with the other one"
            raise value_error(name, f"a float32 array of shape {expected} {needed}", "None")
        array = as_array(name, value, _FLOAT32)
        if array.shape not in shapes:
            raise value_error(name, f"shape {expected}", f"shape {array.shape}")
        arrays.append(array.reshape(num_experts, -1))
    return arrays[0], arrays[1]
