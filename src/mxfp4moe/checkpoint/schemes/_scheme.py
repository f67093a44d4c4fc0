"""What a quantization scheme says: which tensors make one matrix, and in which format they are packed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from numpy.typing import NDArray

if TYPE_CHECKING:
    from mxfp4moe.checkpoint.model_folder import ModelFolder

FLOATS = ("BF16", "F16", "F32")
"""Dtypes of safetensors that hold a matrix without scales."""


class Matrix(NamedTuple):
    """One weight matrix: the arrays that `mxfp4moe.pack_experts` takes for it."""

    weight: NDArray[Any]
    scales: NDArray[Any] | None = None
    tensor_scale: float | None = None


@dataclass(frozen=True)
class Scheme:
    """How a checkpoint stores one weight matrix."""

    name: str
    """What errors and tables call it."""
    format: str
    """The format of `mxfp4moe.pack_experts` that it is packed in."""
    read: Callable[[ModelFolder, str, int, int], Matrix]
    """It takes folder, name (without ".weight"), rows and columns, and returns the matrix."""
    multiple_of: int = 1
    """What both sizes of each matrix must be a multiple of."""
    block_shape: tuple[int, int] | None = None
    """How many rows and columns share one scale in fp8_block."""
    choose: Callable[[str], Scheme] | None = None
    """The scheme of a module by its name, where a configuration has several; this one then reads nothing."""

    def of(self, module: str) -> Scheme:
        """The scheme of the module of this name."""
        return self if self.choose is None else self.choose(module)
