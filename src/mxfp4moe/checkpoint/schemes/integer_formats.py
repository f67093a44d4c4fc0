"""Matrices of integer codes, under the names that each software has."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import value_error
from mxfp4moe.checkpoint.schemes import integers
from mxfp4moe.checkpoint.schemes._scheme import FLOATS, Matrix, Scheme, Tensors, read_any

_WORDS = ("I32",)
_MIDDLE = 8  # the zero point of 4 bits where there are none


def _num_groups(columns: int, group_size: int | None) -> int:
    return columns // (group_size or columns)


def _multiple_of(bits: int, group_size: int | None) -> int:
    """What K must be a multiple of: whole words, and whole groups."""
    return group_size or 32 // bits


@cache
def packed(bits: int, group_size: int | None, symmetric: bool, ordered: bool = False) -> Scheme:
    """compressed-tensors ``pack-quantized``: words along K; zero points in words along N."""

    def read(tensors: Tensors, module: str, rows: int, columns: int) -> Matrix:
        groups = _num_groups(columns, group_size)
        words = tensors.tensor(f"{module}.weight_packed", _WORDS, (rows, columns * bits // 32))
        scales = _read_scales(tensors, module, (rows, groups))
        zeros = None
        if not symmetric:
            name = f"{module}.weight_zero_point"
            # Early versions do not pack them.
            if tensors.dtype(name) == "I8":
                zeros = tensors.tensor(name, ("I8",), (rows, groups))
            else:
                zeros = tensors.tensor(name, _WORDS, (-(-rows * bits // 32), groups))
        order = _read_order(tensors, f"{module}.weight_g_idx", columns, group_size)
        return Matrix(words, scales, zero_points=zeros, order=order)

    def decode(matrix: Matrix) -> Matrix:
        zeros = matrix.zero_points
        if zeros is not None and zeros.dtype == np.int8:
            zeros = (zeros + np.int8(8)).view(np.uint8) if bits == 4 else zeros
        elif zeros is not None:
            zeros = integers.zeros_of_rows(zeros, bits, len(matrix.weight))
        codes = integers.codes_of_rows(matrix.weight, bits, matrix.order)
        return matrix._replace(weight=codes, zero_points=zeros)

    name = f"compressed-tensors pack-quantized, {bits} bits"
    order = _order("weight_g_idx", group_size, ordered)
    return Scheme(name, f"int{bits}", read, _multiple_of(bits, group_size), decode=decode, order=order)


@cache
def plain(group_size: int | None, symmetric: bool, ordered: bool = False) -> Scheme:
    """compressed-tensors ``int-quantized``: int8 codes."""

    def read(tensors: Tensors, module: str, rows: int, columns: int) -> Matrix:
        shape = (rows, _num_groups(columns, group_size))
        codes = tensors.tensor(f"{module}.weight", ("I8",), (rows, columns))
        scales = _read_scales(tensors, module, shape)
        name, zeros = f"{module}.weight_zero_point", None
        if not symmetric or name in tensors:
            zeros = np.broadcast_to(_read_any_rows(tensors, name, ("I8",), shape), shape)
        order = _read_order(tensors, f"{module}.weight_g_idx", columns, group_size)
        return Matrix(codes, scales, zero_points=zeros, order=order)

    name, order = "compressed-tensors int-quantized", _order("weight_g_idx", group_size, ordered)
    return Scheme(name, "int8", read, _multiple_of(8, group_size), decode=_in_order, order=order)


@cache
def gptq(name: str, bits: int, group_size: int | None, offset: int, ordered: bool = False) -> Scheme:
    """Words along K of a transposed matrix, zero points in words along N, which may be one too small."""

    def read(tensors: Tensors, module: str, rows: int, columns: int) -> Matrix:
        groups = _num_groups(columns, group_size)
        words = tensors.tensor(f"{module}.qweight", _WORDS, (columns * bits // 32, rows))
        zeros = tensors.tensor(f"{module}.qzeros", _WORDS, (groups, -(-rows * bits // 32)))
        scales = tensors.tensor(f"{module}.scales", FLOATS, (groups, rows))
        order = _read_order(tensors, f"{module}.g_idx", columns, group_size)
        return Matrix(words, scales, zero_points=zeros, order=order)

    def decode(matrix: Matrix) -> Matrix:
        assert matrix.scales is not None
        assert matrix.zero_points is not None
        codes = integers.codes_of_columns(matrix.weight, bits, matrix.order)
        zeros = integers.zeros_of_columns(matrix.zero_points, bits, offset)[: len(codes)]
        return matrix._replace(weight=codes, scales=matrix.scales.T, zero_points=zeros)

    multiple_of = max(_multiple_of(bits, group_size), 32 // bits)
    order = _order("g_idx", group_size, ordered)
    return Scheme(name, f"int{bits}", read, multiple_of, decode=decode, order=order)


@cache
def awq(name: str, group_size: int | None, symmetric: bool = False) -> Scheme:
    """Words along N of a transposed matrix, in the order of nibbles of AWQ; zero points are always stored."""

    def read(tensors: Tensors, module: str, rows: int, columns: int) -> Matrix:
        groups = _num_groups(columns, group_size)
        words = tensors.tensor(f"{module}.qweight", _WORDS, (columns, -(-rows // 8)))
        zeros = tensors.tensor(f"{module}.qzeros", _WORDS, (groups, -(-rows // 8)))
        scales = tensors.tensor(f"{module}.scales", FLOATS, (groups, rows))
        if symmetric and (integers.zeros_of_awq(zeros)[:rows] != _MIDDLE).any():
            place = f"{tensors.path}: tensor {module}.qzeros"
            raise value_error(
                place, f"{_MIDDLE} for each group, as the configuration has no zero points", "others"
            )
        return Matrix(words, scales, zero_points=zeros)

    def decode(matrix: Matrix) -> Matrix:
        assert matrix.scales is not None
        assert matrix.zero_points is not None
        codes, zeros = integers.codes_of_awq(matrix.weight), integers.zeros_of_awq(matrix.zero_points)
        rows = matrix.scales.shape[1]
        return Matrix(codes[:rows], matrix.scales.T, zero_points=zeros[:rows])

    return Scheme(name, "int4", read, _multiple_of(4, group_size), decode=decode)


def _order(name: str, group_size: int | None, ordered: bool) -> str:
    """The `order` of a scheme: groups of a whole row are the same in any order."""
    return name if ordered and group_size is not None else ""


def _in_order(matrix: Matrix) -> Matrix:
    return matrix if matrix.order is None else matrix._replace(weight=matrix.weight[:, matrix.order])


def _read_scales(tensors: Tensors, module: str, shape: tuple[int, int]) -> NDArray[Any]:
    """Scales of the groups of each row; one of a matrix is that of each of its rows."""
    return np.broadcast_to(_read_any_rows(tensors, f"{module}.weight_scale", FLOATS, shape), shape)


def _read_any_rows(
    tensors: Tensors, name: str, dtypes: tuple[str, ...], shape: tuple[int, int]
) -> NDArray[Any]:
    rows, groups = shape
    if name in tensors and tensors.shape(name) in ((1,), ()):
        return read_any(tensors, name, dtypes, (1,), ())
    return read_any(tensors, name, dtypes, shape, *([(rows,)] if groups == 1 else []))


def _read_order(tensors: Tensors, name: str, columns: int, group_size: int | None) -> NDArray[Any] | None:
    """The order of columns in which those of a group follow each other; None if that is their own.

    Groups are no neighbours where activations order the columns. Each group has as many.
    """
    if name not in tensors:
        return None
    size = group_size or columns
    groups = tensors.tensor(name, ("I32", "I64"), (columns,))
    expected = np.arange(columns) // size
    if np.array_equal(groups, expected):
        return None
    order = np.argsort(groups, kind="stable")
    wrong = groups[order] != expected
    if wrong.any():
        place, first = f"{tensors.path}: tensor {name}", int(order[np.argmax(wrong)])
        grouping = f"each of 0 to {columns // size - 1} {size} times"
        raise value_error(place, grouping, f"group {groups[first]} at {first}")
    return order
