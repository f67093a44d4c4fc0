"""What a quantization scheme says: which tensors make one matrix, and in which format they are packed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mxfp4moe import quantize
from mxfp4moe._arguments import cast, value_error
from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint.schemes import integers

FLOATS = ("BF16", "F16", "F32")
"""Dtypes of safetensors that hold a matrix without scales."""
E8M0 = ("U8", "F8_E8M0")
"""Dtypes of scales that are powers of two."""
WEIGHTS = ("weight", "weight_packed", "qweight")
"""What the tensor with the weights of a module may be called."""

BlockShape = tuple[int | None, int | None]
"""Rows and columns that share a float32 scale; None: all of them."""


class Tensors(Protocol):
    """Where a scheme finds the tensors of a matrix: a model folder, or the part of it that is an expert's."""

    @property
    def path(self) -> Path:
        """What errors name."""

    def __contains__(self, name: str) -> bool: ...

    def tensor(self, name: str, dtypes: Sequence[str], shape: tuple[int, ...]) -> NDArray[Any]:
        """Tensor `name` as a read-only array; its dtype must be one of `dtypes`, its shape `shape`."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of tensor `name`."""

    def dtype(self, name: str) -> str | None:
        """The dtype of tensor `name`, as safetensors calls it; None if there is no such tensor."""


class Matrix(NamedTuple):
    """One weight matrix: the arrays that `mxfp4moe.pack_experts` takes for it."""

    weight: NDArray[Any]
    scales: NDArray[Any] | None = None
    tensor_scale: float | None = None
    zero_points: NDArray[Any] | None = None
    offsets: NDArray[Any] | None = None
    """Instead of zero points, or what these stand for."""
    order: NDArray[Any] | None = None
    """Which column each one of these is, if groups are no neighbours in an order of activations."""


@dataclass(frozen=True)
class Scheme:
    """How a checkpoint stores one weight matrix."""

    name: str
    """What errors and tables call it."""
    format: str
    """The format of `mxfp4moe.pack_experts` that it is packed in."""
    read: Callable[[Tensors, str, int, int], Matrix]
    """It takes the tensors, the name (without ".weight"), rows and columns, and returns the matrix."""
    multiple_of: int = 1
    """What both sizes of each matrix must be a multiple of."""
    block_shape: BlockShape | None = None
    """How many rows and columns share one scale in fp8_block."""
    choose: Callable[[str], Scheme] | None = None
    """The scheme of a module by its name, where a configuration has several; this one then reads nothing."""
    decode: Callable[[Matrix], Matrix] | None = None
    """It makes what `pack_experts` takes of what `read` returns, where that is stored otherwise."""
    order: str = ""
    """What the tensor with an order of activations is called, if the configuration says that there is one."""

    def of(self, module: str) -> Scheme:
        """The scheme of the module of this name."""
        return self if self.choose is None else self.choose(module)

    def read_floats(self, tensors: Tensors, name: str, shape: tuple[int, int]) -> NDArray[np.float32]:
        """The matrix as numbers: those that it stands for, each rounded once to float32."""
        matrix = self.read(tensors, name, *shape)
        weight, scales, tensor_scale, *others, order = matrix if self.decode is None else self.decode(matrix)
        values: NDArray[np.float32]
        if scales is None:
            values = cast(weight, np.float32)
        elif self.format.startswith("int"):
            values = integers.dequantize(weight, scales, *others)
            if order is not None:
                values = values[:, np.argsort(order)]
        elif self.format == "mxfp4":
            values = quantize.dequantize_mxfp4(weight, scales)
        elif self.format == "mxfp8":
            values = quantize.dequantize_mxfp8(weight, scales)
        elif self.format == "nvfp4":
            values = quantize.dequantize_nvfp4(weight, scales, np.float32(tensor_scale or 1))
        else:
            assert self.block_shape is not None
            values = quantize.dequantize_fp8_block(weight, scales, block_shape=self.block_shape)
        return values


def mixture(name: str, scheme: Scheme, choose: Callable[[str], Scheme]) -> Scheme:
    """The scheme of a configuration that has several, of which one is known.

    Sizes are checked for each matrix, as the scheme that is chosen for it may be another one.
    """
    return Scheme(name, scheme.format, scheme.read, choose=choose)


def later(section: Config, read: Callable[[Config], Scheme]) -> Callable[[], Scheme]:
    """The scheme of a section that is looked into when a module needs it: others may be in any format."""

    @cache
    def scheme() -> Scheme:
        found = read(section)
        section.check_all_read()
        return found

    return scheme


def read_any(tensors: Tensors, name: str, dtypes: Sequence[str], *shapes: tuple[int, ...]) -> NDArray[Any]:
    """A tensor that may have one of several shapes, in the first one, which errors name."""
    found = tensors.shape(name) if name in tensors else None
    return tensors.tensor(name, dtypes, found if found in shapes else shapes[0]).reshape(shapes[0])


def read_tensor_scale(tensors: Tensors, name: str) -> np.float32:
    """A float32 scale of a whole matrix, which must be finite and above 0."""
    scale: np.float32 = read_any(tensors, name, ("F32",), (1,), ())[0]
    if not 0 < scale < np.inf:
        place = f"{tensors.path}: tensor {name}"
        raise value_error(place, "a finite number above 0", str(scale))
    return scale


def as_float32(scales: NDArray[Any]) -> NDArray[np.float32]:
    """Scales as float32; bytes are E8M0."""
    return cast(scales.view(ml_dtypes.float8_e8m0fnu) if scales.dtype == np.uint8 else scales, np.float32)
