"""What a model type says of its MoE layers: sizes, names, routing, activation."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from mxfp4moe.checkpoint._fused import FusedExperts, FusedLayout, read_fused
from mxfp4moe.checkpoint.schemes import Scheme
from mxfp4moe.experts.activation import Activation
from mxfp4moe.experts.weights import ExpertWeights

if TYPE_CHECKING:
    from mxfp4moe.checkpoint._config import Config
    from mxfp4moe.checkpoint.model_folder import ModelFolder

# No model has as many; lists of layers and of experts are made before the tensors can contradict.
_MAX_LAYERS = 100_000
_MAX_EXPERTS = 65_536

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""`hidden_act` of config.json by the name that this package has."""


@dataclass(frozen=True)
class Names:
    """A style of naming the tensors of a MoE block, without what a quantization scheme appends."""

    block: str = "mlp"
    """The name of the block in its layer; the names below follow it."""
    experts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    """Gate, up and down of ``experts.<number>``, where each matrix has a tensor of its own."""
    shared: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    """The names of gate, up and down in ``shared_experts``."""
    router: str = "gate"
    routing: Mapping[str, str] = field(
        default_factory=lambda: {
            "correction_bias": "gate.e_score_correction_bias",
            "tid2eid": "gate.tid2eid",
        }
    )
    """Tensors that are arguments of a routing function, by argument."""


class Block(NamedTuple):
    """The MoE block of a layer under the names of one style."""

    layer: str
    """Prefix of the tensors of the layer, with a dot at its end unless it is empty."""
    names: Names

    @property
    def path(self) -> str:
        """Prefix of the tensors of the block."""
        return f"{self.layer}{self.names.block}"

    @property
    def router(self) -> str:
        """Name of the router, without what follows it."""
        return f"{self.path}.{self.names.router}"

    @property
    def experts(self) -> str:
        """Prefix of the tensors of the experts."""
        return f"{self.path}.experts"

    @property
    def shared(self) -> str:
        """Prefix of the tensors of the shared expert."""
        return f"{self.path}.shared_experts"

    def expert_matrices(self, expert: int) -> tuple[str, ...]:
        """Names of gate, up and down of an expert."""
        return tuple(f"{self.experts}.{expert}.{name}" for name in self.names.experts)

    @property
    def shared_gate_up(self) -> str:
        """Gate rows, then up rows of the shared expert in one tensor, as transformers has some."""
        return f"{self.shared}.gate_up_proj.weight"

    def shared_matrices(self) -> tuple[str, ...]:
        """Names of gate, up and down of the shared expert."""
        return tuple(f"{self.shared}.{name}" for name in self.names.shared)


class TensorSpec(NamedTuple):
    """A tensor of the MoE block: dtypes, and shape (None: any size)."""

    dtypes: tuple[str, ...]
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Rule:
    """How a layer routes: a function of `mxfp4moe`, its keyword arguments, those in tensors apart.

    The names of the tensors are those of `Names.routing`.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, TensorSpec] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    """Arguments that the configuration turns off, whose tensors may be there all the same."""


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
    fused_layouts: tuple[FusedLayout, ...] = (FusedLayout(),)
    """The layouts that tensors with the matrices of all experts may have, if a checkpoint has such."""
    storage_fields: tuple[str, ...] = ()
    """Fields of config.json, apart from quantization_config, that say how the experts are stored."""
    is_stacked: bool = False
    """Whether quantized experts stay in the fused tensors, as in gpt-oss."""
    num_layers: int | None = None
    """The number of layers; None if only the tensors show which layers there are."""
    is_dense: Callable[[int], bool] = lambda layer: False
    router_bias: bool = False
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
    read_experts: Callable[[ModelFolder, Block, Model], ExpertWeights] | None = None
    """Reads the experts of a block, where no scheme does."""

    def blocks(self, layer: int) -> list[Block]:
        """The MoE block of a layer by each prefix and style of names."""
        return [Block(prefix.format(layer=layer), names) for names in self.names for prefix in self.layers]

    def find_block(self, folder: ModelFolder, layer: int) -> Block:
        """The first block whose router is in the folder; the first of all if there is none."""
        blocks = self.blocks(layer)
        return next((block for block in blocks if f"{block.router}.weight" in folder), blocks[0])

    def read_fused(self, folder: ModelFolder, experts: str) -> FusedExperts:
        """The tensors that hold the matrices of all experts with this prefix."""
        sizes = (self.num_experts, self.hidden_size, self.intermediate_size)
        return read_fused(folder, experts, sizes, self.fused_layouts)

    def find_layers(self, folder: ModelFolder) -> list[int]:
        """The layers whose router is in the folder, also those beyond `num_layers`."""
        layers = set()
        for names, prefix in product(self.names, self.layers):
            router = f"{Block(prefix, names).router}.weight"
            pattern = re.compile(re.escape(router).replace(r"\{layer\}", r"(\d{1,9})"))
            layers |= {int(match[1]) for name in folder if (match := pattern.fullmatch(name))}
        return sorted(layers)


def language_model(config: Config) -> tuple[Config, Config]:
    """Return the configuration of the language model, and the one that says how its weights are quantized.

    A model for several kinds of input has a ``text_config``. Without one, both are `config` itself.
    """
    text = config.section("text_config")
    if not text.fields:
        return config, config
    return text, text if "quantization_config" in text.fields else config


def read_activation(config: Config) -> Activation:
    """The activation that ``hidden_act`` names."""
    return ACTIVATIONS[config.choice("hidden_act", tuple(ACTIVATIONS), default="silu")]


def read_num_layers(config: Config) -> int | None:
    """``num_hidden_layers``, if the configuration has it."""
    if "num_hidden_layers" not in config.fields:
        return None
    return config.integer("num_hidden_layers", maximum=_MAX_LAYERS)


def read_num_experts(config: Config, *names: str) -> int:
    """The number of experts; of several names of its field, the first one found counts."""
    return config.integer(*names, maximum=_MAX_EXPERTS)
