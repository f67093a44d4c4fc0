"""MLX: modes of quantization whose words hold the bytes of the formats here; modules by their names."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint.schemes import integers, plain
from mxfp4moe.checkpoint.schemes._scheme import FLOATS, Matrix, Scheme, Tensors, later, mixture

_AFFINE = "affine"
_MEMBERS = ("group_size", "bits", "mode")


class _Mode(NamedTuple):
    bits: int
    group_size: int
    dtype: Any
    """What the words are as bytes, and if they are elements, as what."""
    scale_dtype: Any


_MODES = {
    "mxfp4": _Mode(4, 32, np.uint8, np.uint8),
    "mxfp8": _Mode(8, 32, ml_dtypes.float8_e4m3fn, np.uint8),
    "nvfp4": _Mode(4, 16, np.uint8, ml_dtypes.float8_e4m3fn),
}


def find(quantization: Config) -> Scheme | None:
    """The scheme of an object with ``bits`` and ``group_size`` and without a method's name."""
    fields = quantization.fields
    if fields.get("quant_method") is not None or not {"bits", "group_size"} <= fields.keys():
        return None
    general = _scheme(quantization)
    modules = {name: quantization.member(name) for name, value in fields.items() if _is_module(name, value)}
    schemes = {
        name: later(quantization.detached(name), _scheme)
        for name, value in modules.items()
        if isinstance(value, dict)
    }

    def choose(module: str) -> Scheme:
        if module in schemes:
            return schemes[module]()
        return general if modules.get(module, True) else plain.SCHEME

    return mixture("MLX", general, choose) if modules else general


def _is_module(name: str, value: Any) -> bool:
    """Whether a member is the name of a module, with its mode, or with whether it is quantized at all."""
    if isinstance(value, bool):
        return "." in name or name == "lm_head"
    return isinstance(value, dict) and bool(value) and value.keys() <= set(_MEMBERS)


def _scheme(section: Config) -> Scheme:
    name = section.choice("mode", (_AFFINE, *_MODES), default=_AFFINE)
    if name == _AFFINE:
        return _affine(section.choice("bits", (4, 8)), section.choice("group_size", (32, 64, 128)))
    mode = _MODES[name]
    section.choice("bits", (mode.bits,))
    section.choice("group_size", (mode.group_size,))
    return _words(name)


@cache
def _words(name: str) -> Scheme:
    bits, group_size, dtype, scale_dtype = _MODES[name]

    def read(tensors: Tensors, module: str, rows: int, columns: int) -> Matrix:
        words = tensors.tensor(f"{module}.weight", ("U32",), (rows, columns * bits // 32))
        scales = tensors.tensor(f"{module}.scales", ("U8",), (rows, columns // group_size))
        weight = np.ascontiguousarray(words).view(dtype)
        return Matrix(weight, scales.view(scale_dtype), 1.0 if name == "nvfp4" else None)

    return Scheme(f"MLX {name}", name, read, multiple_of=32)


@cache
def _affine(bits: int, group_size: int) -> Scheme:
    """A scale and a bias for each group of a row: code * scale + bias."""

    def read(tensors: Tensors, module: str, rows: int, columns: int) -> Matrix:
        words = tensors.tensor(f"{module}.weight", ("U32",), (rows, columns * bits // 32))
        shape = (rows, columns // group_size)
        scales, biases = (tensors.tensor(f"{module}.{name}", FLOATS, shape) for name in ("scales", "biases"))
        if scales.dtype != biases.dtype:
            scales, biases = scales.astype(np.float32), biases.astype(np.float32)
        return Matrix(words, scales, offsets=biases)

    def decode(matrix: Matrix) -> Matrix:
        assert matrix.scales is not None
        assert matrix.offsets is not None
        codes = integers.codes_of_rows(matrix.weight, bits)
        zeros, is_exact = integers.zeros_of_biases(matrix.scales, matrix.offsets, bits)
        if not is_exact.all():
            return matrix._replace(weight=codes)
        return matrix._replace(weight=codes, zero_points=zeros if bits == 4 else integers.signed(zeros))

    name = f"MLX affine, {bits} bits"
    return Scheme(name, f"int{bits}", read, multiple_of=group_size, decode=decode)
