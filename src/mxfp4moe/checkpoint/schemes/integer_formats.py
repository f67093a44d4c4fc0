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


def _num_groups(columns: int, group_size: int | None) -> int:
    return columns // (group_size or columns)


def _multiple_of(bits: int, group_size: int | None) -> int:
    """What K must be a multiple of: whole words, and whole groups."""
    return group_size or 32 // bits


@cache
def packed(bits: int, group_size: int | None, symmetric: bool) -> Scheme:
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
        _check_order(tensors, f"{module}.weight_g_idx", columns, group_size)
        return Matrix(words, scales, zero_points=zeros)

    def decode(matrix: Matrix) -> Matrix:
        zeros = matrix.zero_points
        if zeros is not None and zeros.dtype == np.int8:
            zeros = (zeros + np.int8(8)).view(np.uint8) if bits == 4 else zeros
        elif zeros is not None:
            zeros = integers.zeros_of_rows(zeros, bits, len(matrix.weight))
        return matrix._replace(weight=integers.codes_of_rows(matrix.weight, bits), zero_points=zeros)

    name = f"compressed-tensors pack-quantized, {bits} bits"
    return Scheme(name, f"int{bits}", read, _multiple_of(bits, group_size), decode=decode)


@cache
def plain(group_size: int | None, symmetric: bool) -> Scheme:
    """compressed-tensors ``int-quantized``: int8 codes."""

    def read(tensors: Tensors, module: str, rows: int, columns: int) -> Matrix:
        shape = (rows, _num_groups(columns, group_size))
        codes = tensors.tensor(f"{module}.weight", ("I8",), (rows, columns))
        scales = _read_scales(tensors, module, shape)
        name, zeros = f"{module}.weight_zero_point", None
        if not symmetric or name in tensors:
            zeros = np.broadcast_to(_read_any_rows(tensors, name, ("I8",), shape), shape)
        _check_order(tensors, f"{module}.weight_g_idx", columns, group_size)
        return Matrix(codes, scales, zero_points=zeros)

    return Scheme("compressed-tensors int-quantized", "int8", read, _multiple_of(8, group_size), decode=_same)


@cache
def gptq(name: str, bits: int, group_size: int | None, offset: int) -> Scheme:
    """Words along K of a transposed matrix, zero points in words along N, which may be one too small."""

    def read(tensors: Tensors, module: str, rows: int, columns: int) -> Matrix:
        groups = _num_groups(columns, group_size)
        words = tensors.tensor(f"{module}.qweight", _WORDS, (columns * bits // 32, rows))
        zeros = tensors.tensor(f"{module}.qzeros", _WORDS, (groups, rows * bits // 32))
        scales = tensors.tensor(f"{module}.scales", FLOATS, (groups, rows))
        _check_order(tensors, f"{module}.g_idx", columns, group_size)
        return Matrix(words, scales, zero_points=zeros)

    def decode(matrix: Matrix) -> Matrix:
        assert matrix.scales is not None
        assert matrix.zero_points is not None
        codes = integers.codes_of_columns(matrix.weight, bits)
        zeros = integers.zeros_of_columns(matrix.zero_points, bits, offset)
        return Matrix(codes, matrix.scales.T, zero_points=zeros)

    multiple_of = max(_multiple_of(bits, group_size), 32 // bits)
    return Scheme(name, f"int{bits}", read, multiple_of, decode=decode)


@cache
def awq(name: str, group_size: int | None) -> Scheme:
    """Words along N of a transposed matrix, in the order of nibbles of AWQ."""

    def read(tensors: Tensors, module: str, rows: int, columns: int) -> Matrix:
        groups = _num_groups(columns, group_size)
        words = tensors.tensor(f"{module}.qweight", _WORDS, (columns, rows // 8))
        zeros = tensors.tensor(f"{module}.qzeros", _WORDS, (groups, rows // 8))
        scales = tensors.tensor(f"{module}.scales", FLOATS, (groups, rows))
        return Matrix(words, scales, zero_points=zeros)

    def decode(matrix: Matrix) -> Matrix:
        assert matrix.scales is not None
        assert matrix.zero_points is not None
        codes, zeros = integers.codes_of_awq(matrix.weight), integers.zeros_of_awq(matrix.zero_points)
        return Matrix(codes, matrix.scales.T, zero_points=zeros)

    return Scheme(name, "int4", read, _multiple_of(4, group_size), decode=decode)


def _same(matrix: Matrix) -> Matrix:
    return matrix


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


def _check_order(tensors: Tensors, name: str, columns: int, group_size: int | None) -> None:
    """Raise if weights of one group do not follow each other, as they do unless activations order them."""
    if name not in tensors:
        return
    order = tensors.tensor(name, ("I32", "I64"), (columns,))
    expected = np.arange(columns) // (group_size or columns)
    if not np.array_equal(order, expected):
        place, first = f"{tensors.path}: tensor {name}", int(np.argmax(order != expected))
        wanted = f"groups of {group_size or columns} neighbours (no activation order)"
        raise value_error(place, wanted, f"group {order[first]} at {first}")
