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

from mxfp4moe._arguments import value_error
from mxfp4moe.checkpoint._places import Part
from mxfp4moe.checkpoint.schemes import Matrix, Scheme, integers
from mxfp4moe.checkpoint.schemes._scheme import BlockShape, as_float32

_Item = TypeVar("_Item")
_BY_ROWS: tuple[BlockShape, ...] = ((1, None), (None, None))
"""Block shapes that a scale for each row can stand for."""


@dataclass(frozen=True)
class Stored:
    """Where the matrices of gate, up and down are, and the scheme of each."""

    parts: Sequence[Part]
    schemes: Sequence[Sequence[Scheme]]
    places: Sequence[int] | None = None
    """Of the experts that are arranged, if not of all; the format is that of all."""

    @property
    def format(self) -> str:
        """The format that all of them become."""
        return common_format(scheme.format for of_part in self.schemes for scheme in of_part) or ""

    def block_shape(self) -> BlockShape | None:
        """The block shape of all of them."""
        shapes = {scheme.block_shape for of_part in self.schemes for scheme in of_part}
        return shapes.pop() if len(shapes) == 1 else _BY_ROWS[0]

    def check_alike(self) -> None:
        """Raise if they are of several formats, or of block shapes that cannot be made alike."""
        places = [place for part in self.parts for place in part.places]
        found: dict[object, tuple[str, str]] = {}
        for scheme, place in zip([s for of_part in self.schemes for s in of_part], places, strict=True):
            shape = _BY_ROWS[0] if scheme.block_shape in _BY_ROWS else scheme.block_shape
            found.setdefault((scheme.format, shape), (scheme.name, place.name))
        if len(found) > 1 and not self.format:
            kinds = " and ".join(f"{scheme} for {name}" for scheme, name in list(found.values())[:2])
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
            [self._alike(each, scheme) for each, scheme in zip(matrices, schemes, strict=True)]
            for matrices, schemes in zip([*arrays["w13"], arrays["w2"]], used, strict=True)
        )
        *first, down = (
            half
            for part, matrices in zip(self.parts, decoded, strict=True)
            for half in halves(part, matrices, _half)
        )
        if self.format in _MIDDLES:
            first, (down,) = same_groups(first, self.format), same_groups([down], self.format)
        result = {
            **arrays,
            "w13": both([[m.weight for m in part] for part in first]),
            "w13_scales": both([[m.scales for m in part] for part in first]),
            "w2": [m.weight for m in down],
            "w2_scales": [m.scales for m in down],
        }
        if (block_shape := self.block_shape()) is not None:
            result["block_shape"] = block_shape
        if down[0].tensor_scale is not None:
            scales = np.array([[m.tensor_scale for m in part] for part in first], np.float32)
            result["w13_tensor_scale"] = scales.T if len(first) > 1 else scales[0]
            result["w2_tensor_scale"] = np.array([m.tensor_scale for m in down], np.float32)
        for name, of_matrix in (("w13_zero_points", first), ("w2_zero_points", [down])):
            if of_matrix[0][0].zero_points is not None:
                result[name] = both([[m.zero_points for m in part] for part in of_matrix])
        return result

    def _alike(self, matrix: Matrix, scheme: Scheme) -> Matrix:
        """A matrix decoded, in the format and with the block shape of all."""
        if scheme.decode is not None:
            matrix = scheme.decode(matrix)
        if self.format != scheme.format:
            return as_int8(matrix, scheme.format)
        if self.block_shape() == scheme.block_shape or matrix.scales is None:
            return matrix
        return matrix._replace(scales=np.broadcast_to(matrix.scales, (len(matrix.weight), 1)))


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
    weight, scales, _, zeros = matrix
    if format == "int8":
        return matrix
    assert scales is not None
    codes = integers.unpack(weight.reshape(len(weight), -1), 4)
    if format == "int4":
        if zeros is None:
            return Matrix(codes.view(np.int8) - np.int8(_MIDDLES[format]), scales)
        return Matrix(codes.view(np.int8), scales, zero_points=zeros.astype(np.int8))
    # bfloat16 holds half of every E8M0 scale.
    powers = as_float32(scales) * np.float32(0.5)
    return Matrix(_HALVES_OF_E2M1[codes], powers.astype(ml_dtypes.bfloat16))


def same_groups(parts: Sequence[list[Matrix]], format: str) -> list[list[Matrix]]:
    """Integers with the same number of groups, dtype of scales, and zero points or none."""
    matrices = [matrix for part in parts for matrix in part]
    middle = _MIDDLES[format]
    has_zeros = any(m.zero_points is not None and bool((m.zero_points != middle).any()) for m in matrices)
    all_scales = [m.scales for m in matrices if m.scales is not None]
    count = math.lcm(*(scales.shape[1] for scales in all_scales))
    dtypes = {scales.dtype for scales in all_scales}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)

    def same(matrix: Matrix) -> Matrix:
        scales, zeros = matrix.scales, matrix.zero_points
        assert scales is not None
        times = count // scales.shape[1]
        if has_zeros and zeros is None:
            zeros = np.full(scales.shape, middle, np.uint8 if format == "int4" else np.int8)
        return matrix._replace(
            scales=_repeated(scales.astype(dtype, copy=False), times),
            zero_points=_repeated(zeros, times) if has_zeros and zeros is not None else None,
        )

    return [[same(matrix) for matrix in part] for part in parts]


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
    weight, scales, tensor_scale, zeros = matrix
    if scales is not None and len(scales) > 1:
        scales = half_of_rows(scales, part, half)
    zeros = None if zeros is None else half_of_rows(zeros, part, half)
    return Matrix(half_of_rows(weight, part, half), scales, tensor_scale, zeros)
