"""The names of the tensors of a MoE block, as data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from mxfp4moe.checkpoint._fused import FusedLayout

GATE_UP_DOWN = ("gate_proj", "up_proj", "down_proj")

_TENSORS = {
    "correction_bias": "gate.e_score_correction_bias",
    "tid2eid": "gate.tid2eid",
    "shared_gate": "shared_expert_gate.weight",
}
"""Where most models have the tensors that are arguments of a routing function, or fields of a layer."""


@dataclass(frozen=True)
class Names:
    """A style of naming the tensors of a MoE block, without what a quantization scheme appends.

    All names follow that of the block, but those that begin with "/", which follow the prefix of the layer.
    """

    block: str = "mlp"
    router: str = "gate"
    experts: str = "experts"
    """Before the number of an expert, where each matrix has a tensor of its own."""
    matrices: tuple[str, ...] = GATE_UP_DOWN
    """Gate, up and down of an expert; or up and down, where there is no gate."""
    fused: tuple[str, ...] = ("experts.gate_up_proj", "experts.down_proj")
    """The tensors with the matrices of all experts: gate and up, then down; or all three."""
    layouts: tuple[FusedLayout, ...] = (FusedLayout(),)
    """What the axes of these may be."""
    shared: str = "shared_experts"
    shared_matrices: tuple[str, ...] = GATE_UP_DOWN
    shared_fused: tuple[str, ...] = ("gate_up_proj.weight", "down_proj.weight")
    """Gate rows and then up rows of the shared expert in one tensor, as some have it; as `fused`, if the
    router weighs the shared experts."""
    tensors: Mapping[str, str] = field(default_factory=dict)
    """Other tensors, by the argument of the routing function or the field of the layer that they are."""


class Block(NamedTuple):
    """The MoE block of a layer under the names of one style."""

    layer: str
    """Prefix of the tensors of the layer, with a dot at its end unless it is empty."""
    names: Names

    def full(self, *parts: str) -> str:
        """A name of `Names`, whose parts are joined by dots, as the checkpoint has it."""
        name = ".".join(part for part in parts if part)
        if name.startswith("/"):
            return f"{self.layer}{name[1:]}"
        return self.layer + ".".join(part for part in (self.names.block, name) if part)

    @property
    def path(self) -> str:
        """Prefix of the tensors of the block, without a dot at its end."""
        return self.full().removesuffix(".")

    @property
    def router(self) -> str:
        """Name of the router, without what follows it."""
        return self.full(self.names.router)

    @property
    def fused(self) -> tuple[str, ...]:
        """Names of the tensors that hold the matrices of all experts."""
        return tuple(map(self.full, self.names.fused))

    @property
    def shared(self) -> str:
        """Prefix of the tensors of the shared expert."""
        return self.full(self.names.shared)

    def tensor(self, argument: str) -> str:
        """Name of the tensor that is this argument of the routing function, or field of the layer."""
        if argument == "router_bias":
            return f"{self.router}.bias"
        return self.full({**_TENSORS, **self.names.tensors}[argument])

    def expert_matrices(self, expert: int) -> tuple[str, ...]:
        """Names of gate, up and down of an expert, or of up and down."""
        return tuple(self.full(self.names.experts, str(expert), name) for name in self.names.matrices)

    def shared_matrices(self, *number: str) -> tuple[str, ...]:
        """Names of gate, up and down of the shared expert, or of up and down; `number`: of several."""
        return tuple(".".join((self.shared, *number, name)) for name in self.names.shared_matrices)

    @property
    def shared_fused(self) -> tuple[str, ...]:
        """Gate rows, then up rows of the shared expert in one tensor, and its down projection."""
        return tuple(f"{self.shared}.{name}" for name in self.names.shared_fused)

    def prefixes(self) -> Iterator[str]:
        """What the names of all tensors of the block begin with."""
        names = self.names
        if names.block:
            yield f"{self.path}."
        for name in (names.router, names.experts, names.shared, *names.fused, *names.tensors.values()):
            if not names.block or name.startswith("/"):
                yield f"{self.layer}{name.removeprefix('/').split('.')[0]}."
