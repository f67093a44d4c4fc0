"""Experts in two or three tensors that hold the matrices of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from numpy.typing import NDArray

from mxfp4moe._arguments import message
from mxfp4moe.checkpoint.model_folder import ModelFolder, TensorError
from mxfp4moe.checkpoint.schemes import FLOATS

Shape = tuple[int, ...]


class ExpertSizes(NamedTuple):
    """What the shapes of all matrices of the experts follow from."""

    num_experts: int
    hidden: int
    """The width of what the experts read and write."""
    intermediate: int
    is_gated: bool = True
    num_zero: int = 0
    """Experts that are the identity, which come after the others."""

    @property
    def rows(self) -> int:
        """The rows of gate and up together, or of up alone where there is no gate."""
        return (1 + self.is_gated) * self.intermediate

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of `mxfp4moe.pack_experts` that say so."""
        return {} if self.is_gated else {"gated": False}


@dataclass(frozen=True)
class FusedLayout:
    """How the axes are ordered, which the model type says: a shape alone may fit two layouts."""

    is_transposed: bool = False
    """Whether gate and up are [E, H, 2I] instead of [E, 2I, H]."""
    is_interleaved: bool = False
    """Whether gate and up rows take turns, instead of all gate rows before all up rows."""
    is_down_transposed: bool | None = None
    """Whether down is [E, I, H] instead of [E, H, I]; None: as `is_transposed` says."""
    is_flat: bool = False
    """Whether the first two axes are one."""
    has_zero_experts: bool = False
    """Whether gate and up also have matrices of zero experts, which nothing computes with."""

    def shapes(self, sizes: ExpertSizes, num_tensors: int = 2) -> tuple[Shape, ...]:
        """Return the shape of each tensor; three have gate, up and down apart."""
        rows = [sizes.rows] if num_tensors == 2 else [sizes.intermediate] * 2
        first = [(n, sizes.hidden)[:: -1 if self.is_transposed else 1] for n in rows]
        last = (sizes.hidden, sizes.intermediate)[:: -1 if self._turns_down else 1]
        count = sizes.num_experts
        counts = (*[count + self.has_zero_experts * sizes.num_zero] * len(first), count)
        shapes = [(n, *shape) for n, shape in zip(counts, (*first, last), strict=True)]
        return tuple((a * b, c) if self.is_flat else (a, b, c) for a, b, c in shapes)

    def by_rows(self, array: NDArray[Any], sizes: ExpertSizes, is_down: bool = False) -> NDArray[Any]:
        """Return a tensor as [E, N, K], viewing a transposed one the other way round."""
        if self.is_flat:
            array = array.reshape(sizes.num_experts, -1, array.shape[-1])
        array = array[: sizes.num_experts]
        return array.swapaxes(1, 2) if (self._turns_down if is_down else self.is_transposed) else array

    @property
    def _turns_down(self) -> bool:
        return self.is_transposed if self.is_down_transposed is None else self.is_down_transposed


class FusedExperts(NamedTuple):
    """The tensors as the checkpoint has them, and their layout."""

    layout: FusedLayout
    sizes: ExpertSizes
    tensors: tuple[NDArray[Any], ...]

    def by_rows(self) -> tuple[NDArray[Any], ...]:
        """Return each tensor as [E, N, K]."""
        *first, down = self.tensors
        rows = (self.layout.by_rows(each, self.sizes) for each in first)
        return *rows, self.layout.by_rows(down, self.sizes, is_down=True)

    def matrices(self) -> tuple[NDArray[Any], ...]:
        """Return gate, up and down, or up and down, [E, N, K] each, as views of the tensors."""
        *first, down = self.by_rows()
        if len(first) > 1 or not self.sizes.is_gated:
            return *first, down
        half = self.sizes.intermediate
        gate_up = first[0]
        if self.layout.is_interleaved:
            return gate_up[:, 0::2], gate_up[:, 1::2], down
        return gate_up[:, :half], gate_up[:, half:], down

    def replaced(self, index: int, tensor: NDArray[Any]) -> FusedExperts:
        """Return the same with another array in the place of one of the tensors."""
        return self._replace(tensors=(*self.tensors[:index], tensor, *self.tensors[index + 1 :]))

    def _arrays(self) -> dict[str, Any]:
        *first, down = self.by_rows()
        w13 = first[0] if len(first) == 1 else tuple(map(list, first))
        layout = {"gate_up_layout": "interleaved"} if self.layout.is_interleaved else {}
        return {"w13": w13, "w2": down, **layout, **self.sizes.options}


def fused_arrays(groups: Sequence[FusedExperts]) -> dict[str, Any]:
    """Return the arguments of `mxfp4moe.pack_experts` for the experts of all these tensors."""
    if len(groups) == 1:
        return groups[0]._arrays()
    parts = zip(*(group.matrices() for group in groups), strict=True)
    *first, down = ([matrix for matrices in part for matrix in matrices] for part in parts)
    return {"w13": tuple(first) if len(first) > 1 else first[0], "w2": down, **groups[0].sizes.options}


def read_fused(
    folder: ModelFolder, names: Sequence[str], sizes: ExpertSizes, layouts: tuple[FusedLayout, ...]
) -> FusedExperts:
    """The tensors of these names; the shapes of all of them tell the layouts of a type apart."""
    layout = layouts[0]
    if len(layouts) > 1:
        found = tuple(folder.shape(name) for name in names)
        by_shapes = {each.shapes(sizes, len(names)): each for each in layouts}
        if found not in by_shapes:
            expected = " or ".join(" and ".join(str(list(s)) for s in shapes) for shapes in by_shapes)
            got = " and ".join(str(list(shape)) for shape in found)
            raise TensorError(message(f"{folder.path}: tensors {' and '.join(names)}", expected, got))
        layout = by_shapes[found]
    shapes = layout.shapes(sizes, len(names))
    tensors = (folder.tensor(name, FLOATS, shape) for name, shape in zip(names, shapes, strict=True))
    return FusedExperts(layout, sizes, tuple(tensors))
