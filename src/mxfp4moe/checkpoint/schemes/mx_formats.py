"""Matrices of 4 or 8 bits with a scale for each 32 or 16 of a row, under the names that each software has."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from mxfp4moe.checkpoint.schemes._scheme import (
    E8M0,
    FLOATS,
    BlockShape,
    Matrix,
    Scheme,
    Tensors,
    as_float32,
    read_any,
    read_tensor_scale,
)


@cache
def mxfp4(
    name: str, weight: str = "weight", scale: str = "weight_scale", dtypes: tuple[str, ...] = ("U8",)
) -> Scheme:
    """MXFP4: codes [N, K / 2], E8M0 scales [N, K / 32]."""

    def read(tensors: Tensors, module: str, rows: int, columns: int) -> Matrix:
        return Matrix(
            tensors.tensor(f"{module}.{weight}", dtypes, (rows, columns // 2)),
            tensors.tensor(f"{module}.{scale}", E8M0, (rows, columns // 32)),
        )

    return Scheme(name, "mxfp4", read, multiple_of=32)


@cache
def mxfp8(name: str, scale: str = "weight_scale") -> Scheme:
    """MXFP8: E4M3 [N, K], E8M0 scales [N, K / 32]."""

    def read(tensors: Tensors, module: str, rows: int, columns: int) -> Matrix:
        return Matrix(
            tensors.tensor(f"{module}.weight", ("F8_E4M3",), (rows, columns)),
            tensors.tensor(f"{module}.{scale}", E8M0, (rows, columns // 32)),
        )

    return Scheme(name, "mxfp8", read, multiple_of=32)


@cache
def nvfp4(name: str, weight: str, read_scale: Callable[[Tensors, str], np.float32]) -> Scheme:
    """NVFP4: codes [N, K / 2], E4M3 scales [N, K / 16], and a float32 scale, which `read_scale` finds."""

    def read(tensors: Tensors, module: str, rows: int, columns: int) -> Matrix:
        codes = tensors.tensor(f"{module}.{weight}", ("U8",), (rows, columns // 2))
        scales = tensors.tensor(f"{module}.weight_scale", ("F8_E4M3",), (rows, columns // 16))
        return Matrix(codes, scales, float(read_scale(tensors, module)))

    return Scheme(name, "nvfp4", read, multiple_of=16)


def scale_2(tensors: Tensors, module: str) -> np.float32:
    """The scale of a matrix as it multiplies its weights."""
    return read_tensor_scale(tensors, f"{module}.weight_scale_2")


def reciprocal(tensors: Tensors, module: str) -> np.float32:
    """The scale of a matrix whose reciprocal is stored, which multiplied the weights before rounding."""
    return np.float32(1) / read_tensor_scale(tensors, f"{module}.weight_global_scale")


@cache
def fp8(name: str, block_shape: BlockShape, scales: tuple[str, ...] = ("weight_scale",)) -> Scheme:
    """FP8 E4M3 [N, K] with a scale for each block; of the names of the scales, any may be there."""
    block_rows, block_columns = block_shape

    def read(tensors: Tensors, module: str, rows: int, columns: int) -> Matrix:
        shape = (-(-rows // (block_rows or rows)), -(-columns // (block_columns or columns)))
        names = [f"{module}.{scale}" for scale in scales]
        found = next((each for each in names if each in tensors), names[0])
        flat: tuple[tuple[int, ...], ...] = ()
        if block_columns is None:
            flat = ((shape[0],), ()) if block_rows is None else ((shape[0],),)
        array = read_any(tensors, found, (*FLOATS, *E8M0), shape, *flat)
        weight = tensors.tensor(f"{module}.weight", ("F8_E4M3",), (rows, columns))
        return Matrix(weight, as_float32(array))

    return Scheme(name, "fp8_block", read, block_shape=block_shape)
