"""Everything that makes a mixture-of-experts layer, as data: what checkpoints hold and packed files keep.

The fields of a layer are listed here and nowhere else: `MoELayer` is such a description that can be called, a
packed file holds the fields, and a checkpoint is read into them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxfp4moe._arguments import (
    as_array,
    check_choice,
    check_layer_number,
    check_positive_int,
    check_real,
    check_shape,
    describe,
    type_error,
    value_error,
)
from mxfp4moe.experts.activation import Activation, check_activation
from mxfp4moe.experts.packed_experts import PackedExperts
from mxfp4moe.experts.weights import ExpertWeights
from mxfp4moe.routing import ROUTING_FUNCTIONS

RoutingFunction = Callable[..., tuple[NDArray[np.float32], NDArray[np.int32]]]

_Experts = TypeVar("_Experts", bound=ExpertWeights | PackedExperts, covariant=True)

ROUTER_DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16)


# These say how a packed file stores a field that is no option in its table of contents.
_EXPERTS = {"kind": "experts"}  # as a spec and the parts of the packed bytes
_ARRAY = {"kind": "array"}  # as a part


@dataclass(frozen=True, eq=False, repr=False)
class LayerDescription(Generic[_Experts]):
    """One mixture-of-experts layer, its experts packed or not; the fields are the arguments of `MoELayer`.

    Every field is checked, so that a description which exists describes a layer that can be computed.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> arrays = {"w13": np.ones((4, 64, 96), np.float32), "w2": np.ones((4, 96, 32), np.float32)}
    >>> experts = mx.checkpoint.ExpertWeights("bf16", "float32", (96, 32), arrays)
    >>> description = mx.checkpoint.LayerDescription(experts, np.ones((4, 96), np.float32), top_k=2)
    >>> description.hidden_size, description.routing
    (96, 'topk_softmax')
    """

    experts: _Experts = field(metadata=_EXPERTS)
    router_weight: NDArray[Any] = field(metadata=_ARRAY)
    """An array of shape (num_experts, hidden_size): float32, bfloat16 or float16."""
    router_bias: NDArray[Any] | None = field(default=None, metadata=_ARRAY)
    _: KW_ONLY
    top_k: int
    routing: str | RoutingFunction = "topk_softmax"
    """The name of a routing function of this package, or a function of the caller's own."""
    routing_arguments: Mapping[str, Any] = field(default_factory=dict)
    """The keyword arguments of the routing function: numbers, bools, strings and arrays."""
    activation: Activation = "silu"
    alpha: float | None = None
    limit: float | None = None
    routed_scaling_factor: float = 1.0
    """Multiplies the routed sum, before the shared expert is added; not part of the routing weights."""
    shared_experts: _Experts | None = field(default=None, metadata=_EXPERTS)
    """One expert, to which every token goes."""
    shared_limit: float | None = None
    layer_number: int | None = None
    """The number of the layer in the model that it was read from."""

    def __post_init__(self) -> None:
        def normalize(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        _check_experts("experts", self.experts)
        normalize("top_k", check_positive_int("top_k", self.top_k, self.num_experts))
        check_activation(self.activation, self.alpha, self.limit)
        normalize("routed_scaling_factor", _check_factor(self.routed_scaling_factor))
        self._check_shared()
        if self.layer_number is not None:
            normalize("layer_number", check_layer_number("layer_number", self.layer_number))
        shape = (self.num_experts, self.hidden_size)
        normalize("router_weight", _router_array("router_weight", self.router_weight, shape))
        if self.router_bias is not None:
            normalize("router_bias", _router_array("router_bias", self.router_bias, shape[:1]))
        names = {function: name for name, function in ROUTING_FUNCTIONS.items()}
        if callable(self.routing):
            normalize("routing", names.get(self.routing, self.routing))
        elif not isinstance(self.routing, str):
            raise type_error(
                "routing", "the name of a routing function, or a function", describe(self.routing)
            )
        if not isinstance(self.routing_arguments, Mapping):
            raise type_error("routing_arguments", "a mapping", describe(self.routing_arguments))
        arguments = {name: _frozen(value) for name, value in self.routing_arguments.items()}
        normalize("routing_arguments", MappingProxyType(arguments))
        self._check_routing()

    @property
    def num_experts(self) -> int:
        """How many experts there are to choose from."""
        return self.experts.num_experts

    @property
    def hidden_size(self) -> int:
        """Length of a token's hidden state."""
        return self.experts.hidden_size

    @property
    def intermediate_size(self) -> int:
        """The size between up and down projection of each expert."""
        return self.experts.intermediate_size

    @property
    def nbytes(self) -> int:
        """Size of the experts, shared ones included."""
        return self.experts.nbytes + (0 if self.shared_experts is None else self.shared_experts.nbytes)

    @property
    def routing_text(self) -> str:
        """The routing function and its arguments, for a person to read."""

        def text(value: Any) -> str:
            return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else repr(value)

        rule = self.routing
        name = rule if isinstance(rule, str) else getattr(rule, "__name__", "function")
        return f"{name}({', '.join(f'{key}={text(value)}' for key, value in self.routing_arguments.items())})"

    def choose(
        self,
        router_logits: NDArray[np.float32],
        input_ids: ArrayLike | None,
        num_threads: int | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Choose experts by logits, or by token ids where the layer routes by them.

        Parameters
        ----------
        router_logits : ndarray of shape (..., num_experts), float32
        input_ids : integer ndarray of shape (...), or None
        num_threads : int, optional

        Returns
        -------
        topk_weights : ndarray of shape (..., top_k), float32
        topk_ids : ndarray of shape (..., top_k), int32
        """
        rule = self.routing
        if not isinstance(rule, str):
            return rule(router_logits, self.top_k, **self.routing_arguments)
        second = input_ids if rule == "hash_topk" else self.top_k
        function: RoutingFunction = ROUTING_FUNCTIONS[rule]
        return function(router_logits, second, num_threads=num_threads, **self.routing_arguments)

    def __eq__(self, other: object) -> bool:
        """Whether both compute the same: equal experts, router and options, whatever file they come from."""
        if not isinstance(other, LayerDescription):
            return NotImplemented
        names = [each.name for each in fields(LayerDescription) if each.name != "layer_number"]
        return all(_same(getattr(self, name), getattr(other, name)) for name in names)

    def __hash__(self) -> int:
        return hash((self.num_experts, self.hidden_size, self.intermediate_size, self.top_k, self.activation))

    def arguments(self) -> dict[str, Any]:
        """Return the fields by name: the arguments of an equal description.

        Returns
        -------
        dict
        """
        return {each.name: getattr(self, each.name) for each in fields(LayerDescription)}

    def _field_texts(self) -> list[str]:
        """Sizes and options as ``name=value``, as far as they are given, for a person to read."""
        texts: dict[str, Any] = {} if self.layer_number is None else {"layer": self.layer_number}
        texts |= {
            "num_experts": self.num_experts,
            "top_k": self.top_k,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "format": repr(self.experts.format),
            "routing": self.routing_text,
            "activation": repr(self.activation),
        }
        for name in ("alpha", "limit"):
            if getattr(self, name) is not None:
                texts[name] = getattr(self, name)
        if self.routed_scaling_factor != 1:
            texts["routed_scaling_factor"] = self.routed_scaling_factor
        if self.shared_experts is not None:
            shared = self.shared_experts
            texts["shared_experts"] = f"{shared.intermediate_size} of {shared.format!r}"
        return [f"{name}={value}" for name, value in texts.items()]

    def _check_shared(self) -> None:
        shared = self.shared_experts
        if shared is None:
            if self.shared_limit is not None:
                raise value_error("shared_limit", "None without shared_experts", describe(self.shared_limit))
            return
        _check_experts("shared_experts", shared)
        if shared.num_experts != 1:
            raise value_error("shared_experts", "one expert", str(shared.num_experts))
        if shared.hidden_size != self.hidden_size:
            expected = f"hidden_size {self.hidden_size}, as experts have"
            raise value_error("shared_experts", expected, str(shared.hidden_size))
        check_activation(self.activation, self.alpha, self.shared_limit)

    def _check_routing(self) -> None:
        """Find wrong arguments of the routing function now, by routing one token, not at the first call."""
        if not isinstance(self.routing, str):
            return
        check_choice("routing", self.routing, tuple(ROUTING_FUNCTIONS))
        _, ids = self.choose(np.zeros((1, self.num_experts), np.float32), np.zeros(1, np.int64))
        if self.routing == "hash_topk" and ids.shape[-1] != self.top_k:
            raise value_error("top_k", f"{ids.shape[-1]}, as in tid2eid", str(self.top_k))


def _check_experts(name: str, value: object) -> None:
    if not isinstance(value, PackedExperts | ExpertWeights):
        raise type_error(name, "PackedExperts", describe(value))


def _router_array(name: str, value: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    array = as_array(name, value, ROUTER_DTYPES)
    check_shape(name, array, shape)
    return array


def _check_factor(value: Any) -> float:
    factor = check_real("routed_scaling_factor", value)
    if not 0 < factor <= float(np.finfo(np.float32).max):
        raise value_error("routed_scaling_factor", "a finite float32 number above 0", repr(factor))
    return factor


def _frozen(value: Any) -> Any:
    """Arrays copied and read-only, all else as it is."""
    if isinstance(value, np.ndarray):
        value = value.copy()
        value.flags.writeable = False
    return value


def _same(a: Any, b: Any) -> bool:
    """Whether two values of a field are equal; arrays by dtype, shape and bytes, so NaN equals itself."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        arrays = isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
        return arrays and (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(a == b)
