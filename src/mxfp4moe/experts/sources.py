"""The arrays that `pack_experts` is given: checked, handed out expert by expert, not copied as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mxfp4moe._arguments import as_array, check_num_experts, describe, type_error, value_error
from mxfp4moe._dtypes import widen
from mxfp4moe.experts.spec import BIAS_DTYPES, zeros_of_blocks
from mxfp4moe.formats import HALF_GROUP, WeightFormat, ZeroPoints, group_size_of

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


class MatrixArrays(NamedTuple):
    """What `pack_experts` was given for one matrix of every expert."""

    weights: Any
    scales: Any = None
    zero_points: Any = None
    offsets: Any = None


def check_beside_offsets(name: str, arrays: MatrixArrays, format: WeightFormat) -> None:
    """Raise if weights in a format cannot have the offsets `name` beside what they have."""
    if format.packed_with_offsets is None:
        raise value_error(name, f"None with format {format.name!r}", describe(arrays.offsets))
    if arrays.zero_points is not None:
        raise value_error(name, "None with zero points", describe(arrays.offsets))


def zero_points_of(name: str, zero_points: Any, format: WeightFormat) -> ZeroPoints:
    """What zero points must be that are given for a format; raise if it has none."""
    if format.zero_points is None:
        raise value_error(name, f"None with format {format.name!r}", describe(zero_points))
    return format.zero_points


def check_group_of_zeros(name: str, group_size: int | None) -> None:
    """Raise if groups of that size cannot have zero points, which stand once for each K-block."""
    if group_size == HALF_GROUP:
        raise value_error(name, f"None with groups of {HALF_GROUP}", "an array")


def check_zero_points(name: str, zero_points: Any, format: WeightFormat) -> np.ndarray | None:
    """The zero points of one matrix as an array, or None if there are none."""
    if zero_points is None:
        return None
    expected = zero_points_of(name, zero_points, format)
    array = as_array(name, zero_points, (expected.dtype,))
    expected.check(name, array)
    return array


class Matrix:
    """Weights, scales, zero points and offsets of one matrix of every expert, as they came.

    The names of the arguments are those of `name`, such as "w13", followed by `half`, the place in a pair.
    """

    def __init__(self, format: WeightFormat, name: str, arrays: MatrixArrays, half: str = "") -> None:
        self.format, self.name = format, name + half
        self.scales_name, self._zeros_name = f"{name}_scales{half}", f"{name}_zero_points{half}"
        self._offsets_name = f"{name}_offsets{half}"
        ndims = [1 + n for n in format.row_shapes(0)]
        self._weights = per_expert(self.name, arrays.weights, tuple(format.weight_dtypes), ndims)
        self._scales: list[np.ndarray] = []
        self._zeros: list[np.ndarray] = []
        self._offsets: list[np.ndarray] = []
        self.scale_dtype: np.dtype | None = None
        if format.has_scales:
            self._scales = per_expert(self.scales_name, arrays.scales, format.scale_dtypes, (2,))
            self.scale_dtype = self._scales[0].dtype
        elif arrays.scales is not None:
            raise value_error(self.scales_name, f"None with format {format.name!r}", describe(arrays.scales))
        self.dtype = self._weights[0].dtype
        self.rows = self._weights[0].shape[0]
        self.k = format.k_of(self._weights[0].shape[1:])
        self.group_size: int | None = None
        if format.has_groups:
            self.group_size = group_size_of(self.scales_name, self.k, self._scales[0].shape[1])
        if arrays.zero_points is not None:
            expected = zero_points_of(self._zeros_name, arrays.zero_points, format)
            self._zeros = per_expert(self._zeros_name, arrays.zero_points, (expected.dtype,), (2,))
            check_group_of_zeros(self._zeros_name, self.group_size)
            for expert, zeros in enumerate(self._zeros):
                expected.check(f"{self._zeros_name}[{expert}]", zeros)
        if arrays.offsets is not None:
            check_beside_offsets(self._offsets_name, arrays, format)
            self._offsets = per_expert(self._offsets_name, arrays.offsets, (self._scales[0].dtype,), (2,))

    def __len__(self) -> int:
        return len(self._weights)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array of expert 0."""
        return self._weights[0].shape

    @property
    def dtypes(self) -> tuple[np.dtype | None, ...]:
        """The dtypes of weights, scales, zero points and offsets, None for what is not there."""
        others = (arrays[0].dtype if arrays else None for arrays in (self._zeros, self._offsets))
        return self.dtype, self.scale_dtype, *others

    def check(
        self, num_experts: int, shape: tuple[int, int], scale_shape: tuple[int, int], inferred: str
    ) -> None:
        """Raise unless these are `num_experts` matrices of `shape`, with scales of `scale_shape`."""
        rows, k = shape
        row_shapes: dict[int, tuple[int, ...]] = {
            1 + n: (rows, *row) for n, row in self.format.row_shapes(k).items()
        }
        of_scales: dict[int, tuple[int, ...]] = {2: scale_shape}
        for name, arrays, shapes in (
            (self.name, self._weights, row_shapes),
            (self.scales_name, self._scales, of_scales),
            (self._zeros_name, self._zeros, of_scales),
            (self._offsets_name, self._offsets, of_scales),
        ):
            if not arrays:
                continue
            if len(arrays) != num_experts:
                raise value_error(name, f"{num_experts} experts, as in w2", str(len(arrays)))
            _check_shape(name, arrays, shapes, inferred)
            _check_same_dtype(name, arrays)

    def weights(self, expert: int) -> np.ndarray:
        """The weights of one expert as C-contiguous rows of bytes."""
        return _byte_rows(self._weights[expert])

    @property
    def has_block_bytes(self) -> bool:
        """Whether each block of a row has bytes beside its weights."""
        return bool(self.format.scale_block or self._zeros)

    def block_bytes(self, expert: int) -> np.ndarray:
        """These bytes of one expert, its block scales or its zero points, as C-contiguous rows."""
        if self.format.scale_block:
            return _byte_rows(self._scales[expert])
        return zeros_of_blocks(_byte_rows(self._zeros[expert]), self.k)

    def sum_scales(self, expert: int) -> np.ndarray:
        """The scales of sums of one expert, as C-contiguous rows of bytes."""
        return _byte_rows(self._scales[expert])

    @property
    def has_offsets(self) -> bool:
        """Whether each group of a row has a number that is added to its weights."""
        return bool(self._offsets)

    def offsets(self, expert: int) -> np.ndarray:
        """The offsets of one expert, as C-contiguous rows of bytes."""
        return _byte_rows(self._offsets[expert])


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


def check_columns(name: str, value: Any, shape: tuple[int, int]) -> np.ndarray | None:
    """A permutation of columns for each expert, as int32; None if there are none."""
    if value is None:
        return None
    array = as_array(name, value, (np.dtype(np.int32), np.dtype(np.int64)))
    if array.shape != shape:
        raise value_error(name, f"shape {shape}", f"shape {array.shape}")
    ordered = np.sort(array, axis=1) == np.arange(shape[1])
    if not ordered.all():
        expected = f"a permutation of 0 to {shape[1] - 1} for each expert"
        raise value_error(name, expected, f"others for expert {int(np.argmin(ordered.all(axis=1)))}")
    return np.ascontiguousarray(array, np.int32)


def tensor_scales(
    formats: Sequence[WeightFormat], given: Sequence[Any], num_experts: int, gated: bool
) -> list[np.ndarray | None] | None:
    """The float32 scales of gate (if any) and up, and of down, [experts, 2 or 1], or None without any.

    A matrix whose format has scales of sums has None in a layer with some.
    """
    each = (num_experts,)
    w13_shapes: tuple[tuple[int, ...], ...] = ((num_experts, 2),) if gated else (each, (num_experts, 1))
    values = list(
        zip(("w13_tensor_scale", "w2_tensor_scale"), given, (w13_shapes, (each,)), formats, strict=True)
    )
    for name, value, _, format in values:
        if value is not None and format.has_sum_scales:
            raise value_error(name, f"None with format {format.name!r}", describe(value))
    if all(value is None for value in given) and not any(format.has_tensor_scale for format in formats):
        return None
    arrays: list[np.ndarray | None] = []
    for name, value, shapes, format in values:
        if format.has_sum_scales:
            arrays.append(None)
            continue
        expected = " or ".join(map(str, shapes))
        if value is None:
            needed = f"with format {format.name!r}" if format.has_tensor_scale else "with the other one"
            raise value_error(name, f"a float32 array of shape {expected} {needed}", "None")
        array = as_array(name, value, _FLOAT32)
        if array.shape not in shapes:
            raise value_error(name, f"shape {expected}", f"shape {array.shape}")
        arrays.append(array.reshape(num_experts, -1))
    return arrays
