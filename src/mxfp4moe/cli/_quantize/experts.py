"""Which tensors of a checkpoint are expert weights, and which tensors each of them becomes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mxfp4moe.checkpoint.safetensors import DTYPES, TensorInfo
from mxfp4moe.cli._quantize.targets import Spec, Target

_FLOATS = ("BF16", "F16", "F32")
_ONE = re.compile(r"(?P<matrix>.+\.experts\.\d+\.(gate_proj|up_proj|down_proj|w1|w2|w3))\.weight")
_ALL = re.compile(r"(?P<experts>.+\.experts)\.(?P<matrix>gate_up_proj|down_proj)(\.weight)?")

Pieces = Iterator[tuple[str, "NDArray[Any]"]]


class Conversion(Protocol):
    """What becomes of one tensor."""

    @property
    def outputs(self) -> dict[str, Spec]:
        """Dtype and shape of each new tensor, by name, in the order of the file."""

    def run(self, array: NDArray[Any]) -> Pieces:
        """The new tensors of `array`, piece by piece, in the same order."""


@dataclass(frozen=True)
class Copy:
    """The tensor stays as it is."""

    name: str
    spec: Spec

    @property
    def outputs(self) -> dict[str, Spec]:
        return {self.name: self.spec}

    def run(self, array: NDArray[Any]) -> Pieces:
        yield self.name, array


@dataclass(frozen=True)
class Split:
    """Each matrix in the tensor becomes tensors of its own."""

    target: Target
    shape: tuple[int, int]
    matrices: Mapping[str, Callable[[NDArray[Any]], NDArray[Any]]]
    """How to take a matrix out of the tensor, by its name."""

    @property
    def outputs(self) -> dict[str, Spec]:
        specs = self.target.specs(*self.shape)
        return {name + suffix: spec for name in self.matrices for suffix, spec in specs.items()}

    def run(self, array: NDArray[Any]) -> Pieces:
        for name, take in self.matrices.items():
            for suffix, piece in self.target.quantize(take(array)).items():
                yield name + suffix, piece


@dataclass(frozen=True)
class Stack:
    """The matrices of all experts, (k, rows) each, stay together and are transposed."""

    target: Target
    name: str
    shape: tuple[int, int, int]

    @property
    def outputs(self) -> dict[str, Spec]:
        num_experts, k, rows = self.shape
        specs = self.target.specs(rows, k)
        return {
            self.name + suffix: (dtype, (num_experts, *shape)) for suffix, (dtype, shape) in specs.items()
        }

    def run(self, array: NDArray[Any]) -> Pieces:
        kept: list[tuple[str, NDArray[Any]]] = []  # the scales, which are small
        for matrix in array:
            (suffix, blocks), *rest = self.target.quantize(np.ascontiguousarray(matrix.T)).items()
            yield self.name + suffix, blocks
            kept += [(self.name + suffix, piece) for suffix, piece in rest]
        yield from kept


def conversion(name: str, info: TensorInfo, target: Target, stacked: bool) -> Conversion:
    """What becomes of tensor `name`; `stacked`: matrices as in gpt-oss, otherwise tensors for each expert.

    Raises
    ------
    ValueError
        If it is an expert weight that `target` cannot hold.
    """
    one, every = _ONE.fullmatch(name), _ALL.fullmatch(name)
    axes = 2 if one else 3
    if not (one or every) or (stacked and one) or info.dtype not in _FLOATS or len(info.shape) != axes:
        if info.dtype not in DTYPES:
            raise ValueError(f"expected a dtype of {', '.join(DTYPES)}, got {info.dtype}")
        return Copy(name, (DTYPES[info.dtype], info.shape))
    if 0 in info.shape:
        raise ValueError(f"expected a shape without 0, got {list(info.shape)}")
    result: Split | Stack
    if stacked:
        result = Stack(target, name, (info.shape[0], info.shape[1], info.shape[2]))
    elif one:
        result = Split(target, (info.shape[0], info.shape[1]), {one["matrix"]: lambda array: array})
    else:
        assert every is not None
        result = _split(every, info, target)
    result.outputs  # noqa: B018  # raises if the shape does not fit
    return result


def _split(match: re.Match[str], info: TensorInfo, target: Target) -> Split:
    """Of a tensor (num_experts, rows, k), in which gate rows stand before up rows."""
    num_experts, rows, k = info.shape
    if "block_sparse_moe" in match["experts"]:  # the names of Mixtral
        names = {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}[match["matrix"]]
    else:
        names = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}[match["matrix"]]
    if rows % len(names):
        raise ValueError(f"expected as many rows of gate as of up, got {rows} in all")
    rows //= len(names)

    def take(array: NDArray[Any], expert: int, first: int) -> NDArray[Any]:
        return array[expert, first : first + rows]

    matrices = {
        f"{match['experts']}.{expert}.{name}": partial(take, expert=expert, first=number * rows)
        for expert in range(num_experts)
        for number, name in enumerate(names)
    }
    return Split(target, (rows, k), matrices)
