"""The MoE layers of a model, as its type and its configuration say: sizes, names, routing, activation."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from mxfp4moe.checkpoint._fused import ExpertSizes, FusedExperts, read_fused
from mxfp4moe.checkpoint._names import Block, Names
from mxfp4moe.checkpoint.schemes import WEIGHTS, Scheme
from mxfp4moe.experts.activation import Activation
from mxfp4moe.experts.weights import ExpertWeights

if TYPE_CHECKING:
    from mxfp4moe.checkpoint.model_folder import ModelFolder


class TensorSpec(NamedTuple):
    """A tensor of the MoE block: dtypes, and shape (None: any size)."""

    dtypes: tuple[str, ...]
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Rule:
    """How a layer routes: a function of `mxfp4moe`, its keyword arguments, those in tensors apart.

    The names of the tensors are those of `Block.tensor`. An argument that is both is the product.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, TensorSpec] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    """Arguments that the configuration turns off, whose tensors may be there all the same."""


def _same_for_all(layer: int) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Model:
    """The MoE layers of a model, from its configuration alone."""

    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int
    names: tuple[Names, ...]
    """Styles of names. The first is that of the published model, which `mxfp4moe quantize` writes."""
    scheme: Scheme
    """How the weights of the experts are stored."""
    rule: Callable[[int], Rule]
    """The routing of a layer."""
    layers: tuple[str, ...] = ("model.layers.{layer}.",)
    """Prefixes of the tensors of a layer; any may go with any style of names."""
    storage_fields: tuple[str, ...] = ()
    """Fields of config.json, apart from quantization_config, that say how the experts are stored."""
    is_stacked: bool = False
    """Whether quantized experts stay in the fused tensors, as in gpt-oss."""
    num_layers: int | None = None
    """The number of layers; None if only the tensors show which layers there are."""
    is_dense: Callable[[int], bool] = lambda layer: False
    is_gated: bool = True
    """Whether experts have a gate."""
    activation: Activation = "silu"
    alpha: float | None = None
    limit: float | None = None
    routed_scaling_factor: float = 1.0
    """Multiplies the routed sum instead of being part of the weights."""
    shared_size: int = 0
    """Intermediate size of the shared expert, 0 without one."""
    shared_is_optional: bool = False
    """Whether the configuration leaves it to the tensors if there is one."""
    shared_scheme: Scheme | None = None
    """How its weights are stored, if otherwise than those of the experts."""
    shared_limit: float | None = None
    num_weighted_shared: int = 0
    """Shared experts that the router weighs instead, which are packed after the others."""
    latent_size: int = 0
    """The width that the experts work on, 0 if it is the hidden size."""
    num_router_rows: int = 0
    """Rows of the router, 0 if they are as many as the experts."""
    tensors: Mapping[str, TensorSpec] = field(default_factory=dict)
    """Fields of a layer that are tensors, apart from the router."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Other fields of a layer, all of them the same in each."""
    by_layer: Callable[[int], Mapping[str, Any]] = _same_for_all
    """Fields of a layer that are not the same in each."""
    sizes_text: str = ""
    """The fields of the configuration that sizes come from, for errors of tensors."""
    layer_fields: tuple[str, ...] = ()
    """The fields of the configuration that say which layers have experts."""
    has_biases: bool = False
    """Whether the matrices of experts have biases."""
    read_experts: Callable[[ModelFolder, Block, Model], ExpertWeights] | None = None
    """Reads the experts of a block, where no scheme does."""

    @property
    def expert_sizes(self) -> ExpertSizes:
        """The sizes of the matrices of the experts."""
        hidden = self.latent_size or self.hidden_size
        num_zero = self.options.get("num_zero_experts", 0)
        return ExpertSizes(self.num_experts, hidden, self.intermediate_size, self.is_gated, num_zero)

    def without_shared(self) -> Model:
        """The same model without a shared expert."""
        tensors = {name: spec for name, spec in self.tensors.items() if name != "shared_gate"}
        return replace(self, shared_size=0, tensors=tensors)

    def blocks(self, layer: int) -> list[Block]:
        """The MoE block of a layer by each prefix and style of names."""
        return [Block(prefix.format(layer=layer), names) for names in self.names for prefix in self.layers]

    def has_block(self, folder: ModelFolder, layer: int) -> bool:
        """Whether the router of a layer is in the folder."""
        return any(_has_router(folder, block) for block in self.blocks(layer))

    def find_block(self, folder: ModelFolder, layer: int) -> Block:
        """The block whose router and most of whose other tensors are in the folder; else the first of all."""
        blocks = self.blocks(layer)
        found = [block for block in blocks if _has_router(folder, block)]
        return max(found, key=lambda block: self._num_found(folder, block)) if found else blocks[0]

    def _num_found(self, folder: ModelFolder, block: Block) -> int:
        prefixes = [block.fused[0], f"{block.expert_matrices(0)[0]}."]
        prefixes += [f"{block.shared}."] if self.shared_size or self.num_weighted_shared else []
        prefixes += [block.tensor(name) for name in (*self.tensors, *self.rule(_layer_of(block)).tensors)]
        return sum(any(True for _ in folder.names_with(prefix)) for prefix in prefixes)

    def expert_matrices(self, block: Block) -> list[tuple[str, ...]]:
        """Names of the matrices of each expert, those of shared experts that the router weighs last."""
        names = [block.expert_matrices(expert) for expert in range(self.num_experts)]
        return names + [block.shared_matrices(str(i)) for i in range(self.num_weighted_shared)]

    def read_fused(self, folder: ModelFolder, block: Block) -> list[FusedExperts]:
        """The tensors that hold the matrices of all experts; those of weighted shared ones last."""
        sizes, layouts = self.expert_sizes, block.names.layouts
        groups = [read_fused(folder, block.fused, sizes, layouts)]
        if self.num_weighted_shared:
            sizes = sizes._replace(num_experts=self.num_weighted_shared)
            groups.append(read_fused(folder, block.shared_fused, sizes, layouts))
        return groups

    def find_layers(self, folder: ModelFolder) -> list[int]:
        """The layers whose router is in the folder, also those beyond `num_layers`."""
        layers = set()
        for names, prefix in product(self.names, self.layers):
            router = f"{Block(prefix, names).router}.weight"
            pattern = re.compile(re.escape(router).replace(r"\{layer\}", r"(\d{1,9})"))
            layers |= {int(match[1]) for name in folder if (match := pattern.fullmatch(name))}
        return sorted(layers)


def _layer_of(block: Block) -> int:
    return int(re.findall(r"\d+", block.layer)[-1])


def _has_router(folder: ModelFolder, block: Block) -> bool:
    return any(f"{block.router}.{name}" in folder for name in WEIGHTS)
