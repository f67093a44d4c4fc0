"""What becomes of the tensors of a MoE block, which the model type names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from mxfp4moe.checkpoint._fused import FusedExperts
from mxfp4moe.checkpoint._model import Model
from mxfp4moe.checkpoint._names import Block, Names
from mxfp4moe.checkpoint.model_folder import ModelFolder
from mxfp4moe.checkpoint.schemes import FLOATS
from mxfp4moe.cli._quantize.targets import Biases, Floats, Matrices, Spec, Target

Pieces = Iterator[tuple[str, "NDArray[Any]"]]


class Conversion(Protocol):
    """What becomes of one tensor."""

    @property
    def quantizes(self) -> bool:
        """Whether the new tensors are quantized."""

    @property
    def outputs(self) -> dict[str, Spec]:
        """Dtype and shape of each new tensor, by name, in the order of the file."""

    def run(self, array: NDArray[Any]) -> Pieces:
        """The new tensors of `array`, piece by piece, in the same order."""


@dataclass(frozen=True)
class Copy:
    """The tensor stays as it is."""

    name: str
    """The new one."""
    spec: Spec
    quantizes: ClassVar[bool] = False

    @property
    def outputs(self) -> dict[str, Spec]:
        return {self.name: self.spec}

    def run(self, array: NDArray[Any]) -> Pieces:
        yield self.name, array


@dataclass(frozen=True)
class Split:
    """Each matrix in the tensor becomes tensors of its own."""

    target: Matrices
    shape: tuple[int, int]
    matrices: Mapping[str, Callable[[NDArray[Any]], tuple[NDArray[Any], ...]]]
    """How to find a matrix in the tensor, by its name, and gate or up of the same expert after it."""
    quantizes: bool = True

    @property
    def outputs(self) -> dict[str, Spec]:
        specs = self.target.specs(*self.shape)
        return {name + suffix: spec for name in self.matrices for suffix, spec in specs.items()}

    def run(self, array: NDArray[Any]) -> Pieces:
        for name, take in self.matrices.items():
            for suffix, piece in self.target.quantize(*take(array)).items():
                yield name + suffix, piece


@dataclass(frozen=True)
class Stack:
    """The matrices of all experts stay together."""

    target: Target
    name: str
    shape: tuple[int, int, int]
    """(num_experts, rows, k)"""
    by_rows: Callable[[NDArray[Any]], NDArray[Any]]
    """A view of the tensor in this shape."""
    quantizes: ClassVar[bool] = True

    @property
    def outputs(self) -> dict[str, Spec]:
        num_experts, rows, k = self.shape
        specs = self.target.specs(rows, k)
        return {
            self.name + suffix: (dtype, (num_experts, *shape)) for suffix, (dtype, shape) in specs.items()
        }

    def run(self, array: NDArray[Any]) -> Pieces:
        kept: list[tuple[str, NDArray[Any]]] = []  # holds the scales, which are small
        for matrix in self.by_rows(array):
            (suffix, blocks), *rest = self.target.quantize(np.ascontiguousarray(matrix)).items()
            yield self.name + suffix, blocks
            kept += [(self.name + suffix, piece) for suffix, piece in rest]
        yield from kept


def block_conversions(
    folder: ModelFolder, model: Model, layer: int, target: Target, *, stays_fused: bool
) -> dict[str, Conversion]:
    """What becomes of each tensor of the MoE block of a layer; new names are those of published models.

    With `stays_fused` the matrices of all experts stay in one tensor.

    Raises
    ------
    ValueError
        If the tensors of the experts are no floats, or of other sizes than the model.
    """
    block = model.find_block(folder, layer)
    published = Block(block.layer, model.names[0])
    result: dict[str, Conversion] = {}
    for name, new_name in _kept_names(block, published, model, layer):
        if name in folder:
            result[name] = Copy(new_name, folder.spec(name))
    result |= _shared_conversions(folder, model, block, published)
    if block.fused[0] in folder:
        blocks = block, published
        if stays_fused:
            return result | _stacks(model.read_fused(folder, block)[0], blocks, target)
        return result | _fused_conversions(folder, model, blocks, target) | _biases(folder, model, blocks)
    shapes = _matrix_shapes(model)
    experts = zip(model.expert_matrices(block), model.expert_matrices(published), strict=True)
    for old_names, new_names in experts:
        for i, (name, new_name, shape) in enumerate(zip(old_names, new_names, shapes, strict=True)):
            folder.tensor(f"{name}.weight", FLOATS, shape)
            others = [f"{old_names[part]}.weight" for part in _in_one_with(i, len(shapes))]
            result[f"{name}.weight"] = Split(target, shape, {new_name: partial(_with, folder, others, shape)})
    return result


def _in_one_with(part: int, num_parts: int) -> tuple[int, ...]:
    """The other one of gate and up, if the matrices of an expert are gate, up and down."""
    return (1 - part,) if num_parts == 3 and part < 2 else ()


def _with(
    folder: ModelFolder, others: list[str], shape: tuple[int, int], array: NDArray[Any]
) -> tuple[NDArray[Any], ...]:
    return array, *(folder.tensor(name, FLOATS, shape) for name in others)


def _matrix_shapes(model: Model) -> tuple[tuple[int, int], ...]:
    """Return rows and columns of gate, up and down, or of up and down."""
    sizes = model.expert_sizes
    first, last = (sizes.intermediate, sizes.hidden), (sizes.hidden, sizes.intermediate)
    return (first,) * (1 + sizes.is_gated) + (last,)


def _kept_names(block: Block, published: Block, model: Model, layer: int) -> Iterator[tuple[str, str]]:
    """Yield the old and the new name of each tensor of the block that is not quantized."""
    yield f"{block.router}.weight", f"{published.router}.weight"
    rule = model.rule(layer)
    for argument in (*model.tensors, *rule.tensors, *rule.unused):
        yield block.tensor(argument), published.tensor(argument)
    for name, new_name in zip(block.shared_matrices(), published.shared_matrices(), strict=True):
        yield f"{name}.weight", f"{new_name}.weight"


def _shared_conversions(
    folder: ModelFolder, model: Model, block: Block, published: Block
) -> dict[str, Conversion]:
    """Split gate and up of the shared expert, if they are one tensor and were published apart."""
    if not model.shared_size or block.shared_fused[0] not in folder:
        return {}
    names = block.shared_fused
    new_names = [f"{name}.weight" for name in published.shared_matrices()]
    if block.names.shared_fused == published.names.shared_fused != Names().shared_fused:
        new_names = list(published.shared_fused)
    if len(names) == len(new_names):
        return {
            name: Copy(new_name, folder.spec(name)) for name, new_name in zip(names, new_names, strict=True)
        }
    dtype, _ = folder.spec(names[0])
    size = model.shared_size
    gate, up, _ = published.shared_matrices()
    halves = {gate: lambda array: (array[:size],), up: lambda array: (array[size:],)}
    return {
        names[0]: Split(Floats(dtype), (size, model.hidden_size), halves, quantizes=False),
        names[1]: Copy(new_names[-1], folder.spec(names[1])),
    }


def _fused_conversions(
    folder: ModelFolder, model: Model, blocks: tuple[Block, Block], target: Target
) -> dict[str, Conversion]:
    """Convert experts in fused tensors; `blocks` has their own names, then the published ones."""
    block, published = blocks
    groups = model.read_fused(folder, block)
    new_names = iter(model.expert_matrices(published))
    result: dict[str, Conversion] = {}
    for fused, names in zip(groups, (block.fused, block.shared_fused), strict=False):
        experts = list(islice(new_names, fused.sizes.num_experts))
        parts = range(len(experts[0]))
        for i, name in enumerate(names):
            group = parts[i : i + 1] if len(names) == len(parts) else (parts[:-1], parts[-1:])[i]
            matrices = {
                matrix_names[part]: partial(_take, fused, (i, part, expert))
                for part in group
                for expert, matrix_names in enumerate(experts)
            }
            result[name] = Split(target, _matrix_shapes(model)[group[0]], matrices)
    return result


def _stacks(fused: FusedExperts, blocks: tuple[Block, Block], target: Target) -> dict[str, Conversion]:
    layout, sizes = fused.layout, fused.sizes
    old, new = (block.fused for block in blocks)
    names = zip(old, new, fused.by_rows(), strict=True)
    return {
        name: Stack(
            target,
            new_name,
            (array.shape[0], array.shape[1], array.shape[2]),
            partial(layout.by_rows, sizes=sizes, is_down=name == old[-1]),
        )
        for name, new_name, array in names
    }


def _take(fused: FusedExperts, place: tuple[int, int, int], tensor: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """One matrix of fused experts out of a tensor of them; `place`: number of tensor, part and expert."""
    index, part, expert = place
    matrices = fused.replaced(index, tensor).matrices()
    return tuple(matrices[each][expert] for each in (part, *_in_one_with(part, len(matrices))))


def _biases(folder: ModelFolder, model: Model, blocks: tuple[Block, Block]) -> dict[str, Conversion]:
    """Take the biases of all experts apart, where the matrices have any."""
    if not model.has_biases:
        return {}
    block, published = blocks
    layout = block.names.layouts[0]
    experts = model.expert_matrices(published)
    sizes = model.expert_sizes
    halves = (slice(0, None, 2), slice(1, None, 2))
    if not layout.is_interleaved:
        halves = (slice(0, sizes.intermediate), slice(sizes.intermediate, None))
    result: dict[str, Conversion] = {}
    for name, rows, parts in ((block.fused[0], halves, (0, 1)), (block.fused[1], (slice(None),), (2,))):
        dtype, _ = folder.spec(f"{name}_bias")
        vectors = {
            names[part]: partial(_rows, expert, half)
            for part, half in zip(parts, rows, strict=True)
            for expert, names in enumerate(experts)
        }
        shape = _matrix_shapes(model)[parts[0]]
        result[f"{name}_bias"] = Split(Biases(dtype), shape, vectors, quantizes=False)
    return result


def _rows(expert: int, rows: slice, biases: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    return (biases[expert, rows],)
