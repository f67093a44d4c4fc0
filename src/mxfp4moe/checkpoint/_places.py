"""Where the matrices of experts stand: each in tensors of its own, or all of them in a few tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from mxfp4moe.checkpoint._fused import ExpertSizes
from mxfp4moe.checkpoint._names import GATE_UP_DOWN, Block
from mxfp4moe.checkpoint.model_folder import ModelFolder
from mxfp4moe.checkpoint.schemes import Tensors

_STACKED = "switch_mlp"  # of MLX, whatever the matrices are called elsewhere
_STACKED_UNGATED = ("fc1", "fc2")


class Place(NamedTuple):
    """A matrix of an expert: its name, without what a scheme appends, and the tensors that have it."""

    tensors: Tensors
    name: str


class Part(NamedTuple):
    """The same matrix of all experts: gate, up, down, or gate and up in one."""

    shape: tuple[int, int]
    places: list[Place]
    gate_up: str = ""
    """How the rows of gate and up follow each other, if this is both: "concatenated" or "interleaved"."""


class _Stack:
    """Tensors whose first axis is that of the experts, as the tensors of one expert.

    The name of such a tensor may end otherwise: ``experts.down_proj_scale`` or ``down_proj_weight_scale`` for
    ``down_proj.weight_scale``.
    """

    def __init__(self, folder: ModelFolder, name: str, count: int) -> None:
        self._folder, self._name, self._count = folder, name, count
        self._expert = 0
        self._arrays: dict[str, NDArray[Any]] = {}

    @property
    def path(self) -> Path:
        return self._folder.path

    def expert(self, expert: int) -> _Stack:
        """The same tensors, for another expert."""
        other = _Stack(self._folder, self._name, self._count)
        other._expert, other._arrays = expert, self._arrays
        return other

    def __contains__(self, name: str) -> bool:
        return self._full(name) in self._folder

    def dtype(self, name: str) -> str | None:
        return self._folder.dtype(self._full(name))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._folder.shape(self._full(name))[1:]

    def tensor(self, name: str, dtypes: Sequence[str], shape: tuple[int, ...]) -> NDArray[Any]:
        full = self._full(name)
        if full not in self._arrays:
            self._arrays[full] = self._folder.tensor(full, dtypes, (self._count, *shape))
        array: NDArray[Any] = self._arrays[full][self._expert]
        return array

    def _full(self, name: str) -> str:
        rest = name.removeprefix(self._name)
        names = (name, self._name + rest.removeprefix(".weight"), self._name + rest.replace(".", "_", 1))
        has_dots = any(True for _ in self._folder.names_with(f"{self._name}."))
        return next((each for each in names if each in self._folder), names[0 if has_dots else 1])


def usual_parts(folder: ModelFolder, experts: Sequence[tuple[str, ...]], sizes: ExpertSizes) -> list[Part]:
    """Matrices with tensors of their own; `experts` are the names of each one's."""
    shapes = _shapes(sizes, len(experts[0]))
    columns = zip(*experts, strict=True)
    return [
        Part(shape, [Place(folder, name) for name in names])
        for shape, names in zip(shapes, columns, strict=True)
    ]


def find_parts(folder: ModelFolder, block: Block, sizes: ExpertSizes) -> list[Part] | None:
    """The matrices of experts that are not called as usual; None if there are none."""
    experts, matrices = block.names.experts, block.names.matrices
    fused = [name.rpartition(".") for name in block.names.fused]
    for names in (
        [block.full(experts, matrix, "*") for matrix in matrices],
        [block.full(head, "*", matrix) for head, _, matrix in fused],
    ):
        if _has(folder, names[0].replace("*", "0")):
            numbers = map(str, range(sizes.num_experts))
            of_experts = [tuple(name.replace("*", number) for name in names) for number in numbers]
            return _with_layout(usual_parts(folder, of_experts, sizes), block, sizes)
    for names in (
        list(block.fused),
        [block.full(experts, matrix) for matrix in matrices],
        [block.full(_STACKED, matrix) for matrix in (GATE_UP_DOWN if sizes.is_gated else _STACKED_UNGATED)],
    ):
        if _has(folder, names[0]):
            return _with_layout(_stacked_parts(folder, names, sizes), block, sizes)
    return None


def _shapes(sizes: ExpertSizes, num_parts: int) -> list[tuple[int, int]]:
    down = (sizes.hidden, sizes.intermediate)
    if num_parts == 2:
        return [(sizes.rows, sizes.hidden), down]
    return [(sizes.intermediate, sizes.hidden)] * 2 + [down]


def _has(folder: ModelFolder, name: str) -> bool:
    """Whether there is a tensor of this name, or one that a scheme appends something to."""
    return any(each[len(name) : len(name) + 1] in ("", ".", "_") for each in folder.names_with(name))


def _stacked_parts(folder: ModelFolder, names: Sequence[str], sizes: ExpertSizes) -> list[Part]:
    parts = []
    for name, shape in zip(names, _shapes(sizes, len(names)), strict=True):
        stack = _Stack(folder, name, sizes.num_experts)
        parts.append(Part(shape, [Place(stack.expert(e), name) for e in range(sizes.num_experts)]))
    return parts


def _with_layout(parts: list[Part], block: Block, sizes: ExpertSizes) -> list[Part]:
    """Say how gate and up follow each other, if they are one matrix."""
    if len(parts) == 3 or not sizes.is_gated:
        return parts
    interleaved = block.names.layouts[0].is_interleaved
    return [parts[0]._replace(gate_up="interleaved" if interleaved else "concatenated"), parts[1]]
