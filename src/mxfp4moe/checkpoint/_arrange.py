"""Matrices of all experts, as their schemes return them, made the arguments of `mxfp4moe.pack_experts`.

Those that are not stored alike are made alike where that is exact: scales are repeated for each row or for
smaller groups, and MXFP4 and integers of 4 bits become integers of 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import cast, value_error
from mxfp4moe.checkpoint._places import Part
from mxfp4moe.checkpoint.schemes import Matrix, Scheme, integers
from mxfp4moe.checkpoint.schemes._scheme import BlockShape, as_float32
from mxfp4moe.formats import FORMATS, HALF_GROUP

_Item = TypeVar("_Item")
_BY_ROWS: tuple[BlockShape, ...] = ((1, None), (None, None))
"""Block shapes that a scale for each row can stand for."""


@dataclass(frozen=True)
class Stored:
    """Where the matrices of gate, up and down are, and the scheme of each."""

    parts: Sequence[Part]
    schemes: Sequence[Sequence[Scheme]]
    places: Sequence[int] | None = None
    """Which experts are arranged, if not all of them are; the format is that of all."""

    @property
    def formats(self) -> tuple[str, str]:
        """The formats that gate and up, and down, become."""
        return tuple(common_format(s.format for s in schemes) or "" for schemes in self._matrices())  # type: ignore[return-value]

    @property
    def format(self) -> Any:
        """The format of all of them, or a pair of those of w13 and of w2."""
        return one_or_both(self.formats)

    def _matrices(self) -> tuple[list[Scheme], list[Scheme]]:
        """The schemes of gate and up, and those of down."""
        *first, down = self.schemes
        return [scheme for of_part in first for scheme in of_part], list(down)

    def block_shape(self) -> BlockShape | None:
        """The block shape of all of them that have some."""
        schemes = [scheme for of_part in self.schemes for scheme in of_part]
        shapes = {scheme.block_shape for scheme in schemes if scheme.block_shape is not None}
        return None if not shapes else shapes.pop() if len(shapes) == 1 else _BY_ROWS[0]

    def check_alike(self) -> None:
        """Raise if a matrix is of several formats, or if block shapes cannot be made alike."""
        places = [place for part in self.parts for place in part.places]
        schemes = [scheme for of_part in self.schemes for scheme in of_part]
        found: dict[object, tuple[str, str]] = {}
        shapes: dict[object, tuple[str, str]] = {}
        for scheme, place in zip(schemes, places, strict=True):
            shape = _BY_ROWS[0] if scheme.block_shape in _BY_ROWS else scheme.block_shape
            found.setdefault((scheme.format, shape), (scheme.name, place.name))
            if shape is not None:
                shapes.setdefault(shape, (scheme.name, place.name))
        different = found if not all(self.formats) else shapes
        if len(different) > 1:
            kinds = " and ".join(f"{scheme} for {name}" for scheme, name in list(different.values())[:2])
            path = str(places[0].tensors.path)
            raise value_error(path, "experts of a layer that are all stored alike", kinds)
        for part in self.parts:
            _check_halves(part, self.block_shape())

    def select(self, places: Sequence[int]) -> Stored:
        """The same for some of the experts."""
        return replace(self, places=[i if self.places is None else self.places[i] for i in places])

    def __call__(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """The arguments of `pack_experts`, if `arrays` has the matrices under the names of the weights."""
        used = [
            of_part if self.places is None else [of_part[i] for i in self.places] for of_part in self.schemes
        ]
        decoded = (
            [self._alike(each, scheme, format) for each, scheme in zip(matrices, schemes, strict=True)]
            for matrices, schemes, format in zip(
                [*arrays["w13"], arrays["w2"]], used, self._format_of_parts(), strict=True
            )
        )
        *first, down = (
            half
            for part, matrices in zip(self.parts, decoded, strict=True)
            for half in halves(part, matrices, _half)
        )
        self._check_orders(first)
        result = arrays | orders_folded(first, down, arrays)
        result |= matrix_arguments(first, down, self.formats)
        if (block_shape := self.block_shape()) is not None:
            result["block_shape"] = block_shape
        return result

    def _check_orders(self, first: Sequence[list[Matrix]]) -> None:
        """Raise if gate and up have columns in different orders."""
        for expert, matrices in enumerate(zip(*first, strict=True)):
            orders = [m.order for m in matrices]
            if any((order is None) != (orders[0] is None) for order in orders) or (
                orders[0] is not None and not all(np.array_equal(order, orders[0]) for order in orders)
            ):
                gate, up, *_ = (part.places[expert] for part in self.parts)
                expected = f"the same order of activations in {gate.name} and {up.name}"
                raise value_error(str(gate.tensors.path), expected, "two")

    def _format_of_parts(self) -> list[str]:
        w13, w2 = self.formats
        return [w13] * (len(self.parts) - 1) + [w2]

    def _alike(self, matrix: Matrix, scheme: Scheme, format: str) -> Matrix:
        """A matrix decoded, in `format` and with the block shape of all."""
        if scheme.decode is not None:
            matrix = scheme.decode(matrix)
        if format != scheme.format:
            return as_int8(matrix, scheme.format)
        if scheme.block_shape in (None, self.block_shape()) or matrix.scales is None:
            return matrix
        return matrix._replace(scales=np.broadcast_to(matrix.scales, (len(matrix.weight), 1)))


def orders_folded(
    first: Sequence[list[Matrix]], down: list[Matrix], arrays: dict[str, Any]
) -> dict[str, Any]:
    """Make the order of columns of down that of the rows of gate and up, in place; return what else changes.

    What remains is the order of the columns of gate and up, which both share.
    """
    changed: dict[str, Any] = {}
    bias = arrays.get("w13_bias")
    for expert, matrix in enumerate(down):
        if matrix.order is None:
            continue
        for part in first:
            part[expert] = _rows_of(part[expert], matrix.order)
        if bias is not None:
            if "w13_bias" not in changed:
                changed["w13_bias"] = bias.copy()
            by_part = bias[expert].reshape(len(first), -1)
            changed["w13_bias"][expert] = by_part[:, matrix.order].reshape(-1)
        down[expert] = matrix._replace(order=None)
    orders = [matrix.order for matrix in first[0]]
    if any(order is not None for order in orders):
        columns = next(len(order) for order in orders if order is not None)
        own = np.arange(columns)
        changed["w13_columns"] = np.stack([own if order is None else order for order in orders])
    return changed


def _rows_of(matrix: Matrix, order: NDArray[Any]) -> Matrix:
    """The rows of a matrix in another order."""
    weight, scales, tensor_scale, *others, own_order = matrix
    if scales is not None and len(scales) > 1:
        scales = scales[order]
    zeros, offsets = (None if array is None else array[order] for array in others)
    return Matrix(weight[order], scales, tensor_scale, zeros, offsets, own_order)


def one_or_both(formats: tuple[str, str]) -> Any:
    """The format of both matrices of experts, or a pair, as `pack_experts` takes it."""
    return formats[0] if formats[0] == formats[1] else formats


def matrix_arguments(
    first: Sequence[list[Matrix]], down: list[Matrix], formats: tuple[str, str]
) -> dict[str, Any]:
    """The arrays of `pack_experts` of gate and up, or up alone, and down, in the formats of both."""
    result: dict[str, Any] = {}
    has_tensor_scales = any(part[0].tensor_scale is not None for part in (*first, down))
    for name, parts, format in (("w13", first, formats[0]), ("w2", [down], formats[1])):
        if format in _MIDDLES:
            parts = same_groups(parts, format)
        weights = [[m.weight for m in part] for part in parts]
        if format == "bf16" and formats[0] != formats[1]:
            weights = [[cast(weight, ml_dtypes.bfloat16) for weight in part] for part in weights]
        result[name] = both(weights)
        result[f"{name}_scales"] = None
        for suffix in ("scales", "zero_points", "offsets"):
            if getattr(parts[0][0], suffix) is not None:
                arrays = [[getattr(m, suffix) for m in part] for part in parts]
                result[f"{name}_{suffix}"] = both(arrays)
        # Where one of gate and up has no tensor scale, 1 stands for it.
        if has_tensor_scales and not FORMATS[format].has_sum_scales:
            factors = [[1 if m.tensor_scale is None else m.tensor_scale for m in part] for part in parts]
            scales = np.array(factors, np.float32)
            result[f"{name}_tensor_scale"] = scales.T if len(parts) > 1 else scales[0]
    return result


# --- integers -----------------------------------------------------------------------------------------------

_MIDDLES = {"int4": 8, "int8": 0}
"""The zero point of integers that have none, by format."""
_EXACT_IN_INT8 = {"int8", "int4", "mxfp4"}
_HALVES_OF_E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


def common_format(formats: Iterable[str]) -> str | None:
    """The format that holds matrices of all these formats exactly, or None."""
    found = set(formats)
    if len(found) == 1:
        return found.pop()
    return "int8" if found <= _EXACT_IN_INT8 else None


def as_int8(matrix: Matrix, format: str) -> Matrix:
    """A matrix of `format`, int4 or mxfp4, in int8."""
    weight, scales, zeros = matrix.weight, matrix.scales, matrix.zero_points
    if format == "int8":
        return matrix
    assert scales is not None
    codes = integers.unpack(weight.reshape(len(weight), -1), 4)
    if format == "int4":
        if matrix.offsets is not None:
            codes = codes ^ np.uint8(0x80)  # counted from the lowest code of 8 bits
            zeros = None if zeros is None else zeros ^ np.uint8(0x80)
        elif zeros is None:
            return matrix._replace(weight=codes.view(np.int8) - np.int8(_MIDDLES[format]))
        zeros = None if zeros is None else zeros.astype(np.uint8).view(np.int8)
        return matrix._replace(weight=codes.view(np.int8), zero_points=zeros)
    # bfloat16 holds half of every E8M0 scale.
    powers = as_float32(scales) * np.float32(0.5)
    return Matrix(_HALVES_OF_E2M1[codes], powers.astype(ml_dtypes.bfloat16))


def same_groups(parts: Sequence[list[Matrix]], format: str) -> list[list[Matrix]]:
    """Integers with the same number of groups, dtype of scales, and zero points or offsets or neither."""
    matrices = [matrix for part in parts for matrix in part]
    middle = _MIDDLES[format]
    has_zeros = any(m.zero_points is not None and bool((m.zero_points != middle).any()) for m in matrices)
    all_scales = [m.scales for m in matrices if m.scales is not None]
    count = math.lcm(*(scales.shape[1] for scales in all_scales))
    columns = matrices[0].weight.shape[1] * (2 if format == "int4" else 1)
    # Where all offsets are those of zero points, these say the same in less space; small groups have none.
    has_offsets = any(m.offsets is not None and m.zero_points is None for m in matrices)
    has_offsets |= has_zeros and count > 1 and columns // count == HALF_GROUP
    has_zeros &= not has_offsets
    if has_offsets:
        matrices = [_with_offsets(matrix, format) for matrix in matrices]
    dtypes = {array.dtype for m in matrices for array in (m.scales, m.offsets) if array is not None}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)

    def same(matrix: Matrix) -> Matrix:
        scales, zeros = matrix.scales, matrix.zero_points
        assert scales is not None
        times = count // scales.shape[1]
        if has_zeros and zeros is None:
            zeros = np.full(scales.shape, middle, np.uint8 if format == "int4" else np.int8)
        offsets = matrix.offsets if has_offsets else None
        return matrix._replace(
            scales=_repeated(scales.astype(dtype, copy=False), times),
            zero_points=_repeated(zeros, times) if has_zeros and zeros is not None else None,
            offsets=None if offsets is None else _repeated(offsets.astype(dtype, copy=False), times),
        )

    every = iter(matrices)
    return [[same(next(every)) for _ in part] for part in parts]


def _with_offsets(matrix: Matrix, format: str) -> Matrix:
    """Integers with the offsets that their zero points stand for, if they have none."""
    if matrix.offsets is not None:
        return matrix
    assert matrix.scales is not None
    lowest = 0 if format == "int4" else -128
    zeros = _MIDDLES[format] if matrix.zero_points is None else matrix.zero_points.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # infinities and NaN, which are refused as others are
        exact = (lowest - zeros) * matrix.scales.astype(np.float64)
        offsets = exact.astype(np.float32)
    if (offsets != exact).any() or not np.isfinite(exact).all():
        expected = "zero points beside offsets whose products with the scale are float32 numbers"
        raise value_error("scales", expected, "others")
    return matrix._replace(scales=matrix.scales.astype(np.float32), offsets=offsets)


def _repeated(array: NDArray[Any], times: int) -> NDArray[Any]:
    return array if times == 1 else array.repeat(times, axis=1)


def both(parts: Sequence[list[Any]]) -> Any:
    """Gate and up as a pair; or up, where there is no gate."""
    return tuple(parts) if len(parts) > 1 else parts[0]


# --- gate and up in one -------------------------------------------------------------------------------------


def _check_halves(part: Part, block_shape: BlockShape | None) -> None:
    """Raise if gate and up of a matrix that is both share scales."""
    rows, block_rows = part.shape[0], (block_shape or (1,))[0] or 1
    if part.gate_up and block_rows > 1 and (part.gate_up == "interleaved" or rows // 2 % block_rows):
        place = f"{part.places[0].tensors.path}: {part.places[0].name}"
        expected = f"gate and up of a multiple of {block_rows} rows each, one above the other"
        raise value_error(place, expected, f"{rows // 2} rows each, {part.gate_up}")


def halves(
    part: Part, items: Iterable[_Item], take: Callable[[_Item, Part, int], _Item]
) -> list[list[_Item]]:
    """Gate and up of each item that is both, or the items."""
    found = list(items)
    return [[take(item, part, half) for item in found] for half in range(2)] if part.gate_up else [found]


def half_of_rows(array: NDArray[Any], part: Part, half: int) -> NDArray[Any]:
    """The rows of gate or of up."""
    if part.gate_up == "interleaved":
        return array[half::2]
    middle = len(array) // 2
    return array[middle:] if half else array[:middle]


def _half(matrix: Matrix, part: Part, half: int) -> Matrix:
    """Gate or up of a matrix that is both."""
    weight, scales, tensor_scale, *others, order = matrix
    if scales is not None and len(scales) > 1:
        scales = half_of_rows(scales, part, half)
    zeros, offsets = (None if array is None else half_of_rows(array, part, half) for array in others)
    return Matrix(half_of_rows(weight, part, half), scales, tensor_scale, zeros, offsets, order)
