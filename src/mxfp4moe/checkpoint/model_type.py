"""A model type as a row of data: all that its configuration and its tensors leave unsaid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any

from mxfp4moe.checkpoint._fields import Choice, Count, Field, Flag, Number, Value
from mxfp4moe.checkpoint._fused import FusedLayout
from mxfp4moe.checkpoint._moe_layers import LayerFlags, LayerNumbers, LayerRule, LayersFrom, LayerTypes
from mxfp4moe.checkpoint._names import Names

if TYPE_CHECKING:
    from mxfp4moe.checkpoint._config import Config
    from mxfp4moe.checkpoint._model import Model
    from mxfp4moe.checkpoint.schemes import Scheme

__all__ = [
    "Choice",
    "Count",
    "Field",
    "Flag",
    "FusedLayout",
    "Groups",
    "LayerFlags",
    "LayerNumbers",
    "LayerTypes",
    "LayersFrom",
    "ModelType",
    "Names",
    "Number",
    "Routing",
    "Shared",
]

# No model has as many; lists of layers and of experts are made before the tensors can contradict.
MAX_LAYERS = 100_000
MAX_EXPERTS = 65_536

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""``hidden_act`` of config.json by the name that this package has."""

HIDDEN_ACT = Choice("hidden_act", "silu", of=ACTIVATIONS)
SILU_ALONE = Choice("hidden_act", "silu", of={"silu": "silu", "swish": "silu"})
"""For types whose experts compute silu whatever ``hidden_act`` says: that name is of their shared expert."""

TOP_K = Count(
    "num_experts_per_tok|num_experts_per_token|experts_per_token|moe_topk|moe_top_k|moe_k|top_k_experts"
)
NUM_EXPERTS = Count("num_experts|num_local_experts|n_routed_experts|moe_num_experts", maximum=MAX_EXPERTS)
_HIDDEN_SIZE = Count("hidden_size")
_INTERMEDIATE_SIZE = Count("moe_intermediate_size", per_layer=True)
_NUM_LAYERS = Count("num_hidden_layers", None, maximum=MAX_LAYERS)
_ALL_LAYERS = (LayersFrom(),)
_NUM_GROUPS = Count("n_group|num_expert_group", 1)
_TOPK_GROUP = Count("topk_group", 1)
RENORMALIZE = "norm_topk_prob|moe_renormalize"
NUM_SHARED = "n_shared_experts|num_shared_experts|num_shared_expert|moe_num_shared_experts"


_NUM_SHARED = Count(NUM_SHARED, 1, minimum=0, maximum=1024)


@dataclass(frozen=True)
class Groups:
    """Routing by groups of experts, where there is more than one."""

    num_groups: Value = _NUM_GROUPS
    topk_group: Value = _TOPK_GROUP
    function: str = "grouped_topk"
    """The routing function then."""
    arguments: Mapping[str, Value] = field(default_factory=dict)
    """Further arguments then."""


@dataclass(frozen=True)
class Routing:
    """A routing function of `mxfp4moe`, and its arguments as constants, fields or tensors."""

    function: str
    arguments: Mapping[str, Value] = field(default_factory=dict)
    """Constants or fields. Those that are None are left out."""
    tensors: tuple[str, ...] = ()
    """The arguments that are tensors; `Names.tensors` has their names."""
    unused: tuple[str, ...] = ()
    """Arguments whose tensors may be there all the same."""
    groups: Groups | None = None


@dataclass(frozen=True)
class Shared:
    """The shared experts, which are stored as one."""

    count: Value = _NUM_SHARED
    size: Value = None
    """The intermediate size of one of them; None: that of the experts."""
    is_gated: bool = False
    """Whether its output is multiplied by the sigmoid of a product of the token with a tensor."""
    is_optional: bool = False
    """Whether the tensors tell, if there is no field."""
    average: Value = False
    """Whether the layer's output is the mean of both outputs instead of the sum."""
    limit: Value = None
    """What limits gate and up, as `ModelType.limit` does for the other experts."""


@dataclass(frozen=True)
class ModelType:
    """A model type of Hugging Face folders, as data.

    Attributes
    ----------
    model_types : tuple of str
        The values of ``model_type`` in config.json, those of nested objects included.
    routing : Routing
        Or a `Choice` of several.

    Examples
    --------
    >>> import mxfp4moe as mx
    >>> mx.checkpoint.get_model_type("qwen3_moe").model_types
    ('qwen3_moe',)
    """

    model_types: tuple[str, ...]
    routing: Value
    _: KW_ONLY
    section: str = ""
    """Objects of config.json in which that of the language model is, as ``thinker_config.text_config``."""
    names: tuple[Names, ...] = (Names(),)
    """Styles of names; the first is the published one."""
    layers: tuple[str, ...] = ("model.layers.{layer}.",)
    """Prefixes of the tensors of a layer; the first is the published one."""
    hidden_size: Count = _HIDDEN_SIZE
    intermediate_size: Count = _INTERMEDIATE_SIZE
    """The field with the intermediate size of one expert."""
    num_experts: Count = NUM_EXPERTS
    top_k: Count = TOP_K
    num_layers: Count = _NUM_LAYERS
    moe_layers: tuple[LayerRule, ...] = _ALL_LAYERS
    """Which layers have experts: the first rule whose fields are there counts, and the others must agree."""
    is_gated: bool = True
    activation: Value = HIDDEN_ACT
    alpha: Value = None
    limit: Value = None
    routed_scaling_factor: Value = 1.0
    """What multiplies the routed sum; a factor of the weights is an argument of the routing."""
    shared: Shared | None = None
    tensors: Value = ()
    """The names of the fields of `LayerDescription` that are tensors, apart from the router."""
    options: Mapping[str, Value] = field(default_factory=dict)
    """Other fields of `LayerDescription`: constants or fields of the configuration."""
    latent_size: Value = 0
    num_zero_experts: Value = 0
    constants: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Fields that may be missing or have these values; another one would change what is computed."""
    scheme: Callable[[Config], Scheme] | None = None
    """What finds out how the weights of the experts are stored, if not ``quantization_config`` says it."""
    change: Callable[[Model, Config], Model] | None = None
    """What no data says."""
