"""What a model type says of its MoE layers: sizes, names, routing, activation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from mxfp4moe.checkpoint._parts import ExpertWeights
from mxfp4moe.checkpoint.schemes import Scheme

if TYPE_CHECKING:
    from mxfp4moe.checkpoint._config import Config
    from mxfp4moe.checkpoint.huggingface import ModelFolder

# Above any model; lists of layers and of experts are made before the tensors can contradict.
_MAX_LAYERS = 100_000
_MAX_EXPERTS = 65_536

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""`hidden_act` of config.json by the name that this package has."""


@dataclass(frozen=True)
class Names:
    """Names of the tensors of one MoE block, without what a quantization scheme appends."""

    block: str
    """Prefix of them all, with ``{layer}``."""
    experts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    """Gate, up and down of ``experts.<number>``."""
    shared: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    """Of ``shared_experts``."""
    router: str = "gate"


class TensorSpec(NamedTuple):
    """A tensor of the MoE block: its name after the prefix, dtypes, and shape (None: any size)."""

    name: str
    dtypes: tuple[str, ...]
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Rule:
    """How a layer routes: a function of `mxfp4moe`, its keyword arguments, those in tensors apart."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, TensorSpec] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """The MoE layers of a model, from its configuration alone."""

    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int
    names: tuple[Names, ...]
    """Of these, the first whose router is in the checkpoint counts."""
    scheme: Scheme
    """How the weights of the experts are stored."""
    rule: Callable[[int], Rule]
    """The routing of a layer."""
    num_layers: int | None = None
    """None: the tensors show which layers there are."""
    is_dense: Callable[[int], bool] = lambda layer: False
    router_bias: bool = False
    activation: str = "silu"
    alpha: float | None = None
    limit: float | None = None
    routed_scaling_factor: float = 1.0
    """Multiplies the routed sum instead of being part of the weights."""
    shared_size: int = 0
    """Intermediate size of the shared expert, 0 without one."""
    shared_scheme: Scheme | None = None
    """How its weights are stored, if otherwise than those of the experts."""
    shared_limit: float | None = None
    read_experts: Callable[[ModelFolder, str, Model], ExpertWeights] | None = None
    """Reads the experts of the block with this prefix, where they are not a tensor or two per matrix."""


def read_activation(config: Config) -> str:
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
