"""Experts in two tensors, ``gate_up_proj`` and ``down_proj``, that hold the matrices of all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from numpy.typing import NDArray

from mxfp4moe._arguments import value_error
from mxfp4moe.checkpoint.model_folder import ModelFolder
from mxfp4moe.checkpoint.schemes import FLOATS

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class FusedLayout:
    """How the axes are ordered, which the model type says: a shape alone may fit two layouts."""

    is_transposed: bool = False
    """Whether the tensors are [E, H, 2I] and [E, I, H] instead of [E, 2I, H] and [E, H, I]."""
    is_interleaved: bool = False
    """Whether gate and up rows take turns, instead of all gate rows before all up rows."""

    def shapes(self, sizes: Shape) -> tuple[Shape, Shape]:
        """Return both shapes; `sizes` are the number of experts, hidden size and intermediate size."""
        count, hidden, intermediate = sizes
        if self.is_transposed:
            return (count, hidden, 2 * intermediate), (count, intermediate, hidden)
        return (count, 2 * intermediate, hidden), (count, hidden, intermediate)

    def by_rows(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return `array` as [E, N, K], viewing a transposed one the other way round."""
        return array.swapaxes(1, 2) if self.is_transposed else array

    def gate_and_up(self, gate_up: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return gate and up, [E, I, H] each, as views of the first tensor of the checkpoint."""
        rows = self.by_rows(gate_up)
        if self.is_interleaved:
            return rows[:, 0::2], rows[:, 1::2]
        half = rows.shape[1] // 2
        return rows[:, :half], rows[:, half:]


class FusedExperts(NamedTuple):
    """Both tensors as the checkpoint has them, and their layout."""

    layout: FusedLayout
    gate_up: NDArray[Any]
    down: NDArray[Any]

    def arrays(self) -> dict[str, Any]:
        """Return the arguments of `mxfp4moe.pack_experts`."""
        arrays = {"w13": self.layout.by_rows(self.gate_up), "w2": self.layout.by_rows(self.down)}
        return arrays | ({"gate_up_layout": "interleaved"} if self.layout.is_interleaved else {})


def fused_names(experts: str) -> tuple[str, str]:
    """The names of both tensors of the experts with this prefix."""
    return f"{experts}.gate_up_proj", f"{experts}.down_proj"


def read_fused(
    folder: ModelFolder, experts: str, sizes: Shape, layouts: tuple[FusedLayout, ...]
) -> FusedExperts:
    """The tensors of the experts with this prefix; both shapes together tell the layouts of a type apart."""
    names = fused_names(experts)
    layout = layouts[0]
    if len(layouts) > 1:
        any_shape = (sizes[0], None, None)
        found = tuple(folder.tensor(name, FLOATS, any_shape).shape for name in names)
        by_shapes = {each.shapes(sizes): each for each in layouts}
        if found not in by_shapes:
            expected = " or ".join(f"{list(gate_up)} and {list(down)}" for gate_up, down in by_shapes)
            place = f"{folder.path}: tensors {names[0]} and {names[1]}"
            raise value_error(place, expected, f"{list(found[0])} and {list(found[1])}")
        layout = by_shapes[found]
    gate_up, down = (
        folder.tensor(name, FLOATS, shape) for name, shape in zip(names, layout.shapes(sizes), strict=True)
    )
    return FusedExperts(layout, gate_up, down)
