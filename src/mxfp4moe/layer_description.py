"""Everything that makes a mixture-of-experts layer, as data: what checkpoints hold and packed files keep.

The fields of a layer are listed here and nowhere else: `MoELayer` is such a description that can be called, a
packed file holds the fields, and a checkpoint is read into them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, Self, TypeVar

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxfp4moe._arguments import (
    as_array,
    cast,
    check_bool,
    check_choice,
    check_int,
    check_layer_number,
    check_positive_int,
    check_real,
    check_shape,
    describe,
    format_ranges,
    frozen,
    type_error,
    value_error,
)
from mxfp4moe.experts.activation import Activation, check_activation
from mxfp4moe.experts.activation_format import ActivationFormat, check_activation_format
from mxfp4moe.experts.packed_experts import PackedExperts
from mxfp4moe.experts.selection import (
    ExpertIds,
    check_expert_ids,
    check_expert_map,
    held_ids,
    make_expert_map,
)
from mxfp4moe.experts.weights import ExpertWeights
from mxfp4moe.routing import ROUTING_FUNCTIONS

RoutingFunction = Callable[..., tuple[NDArray[np.float32], NDArray[np.int32]]]

_Experts = TypeVar("_Experts", bound=ExpertWeights | PackedExperts, covariant=True)

ROUTER_DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16)


# These say how a packed file stores a field that is no option in its table of contents.
_EXPERTS = {"kind": "experts"}  # as a spec and the parts of the packed bytes
_ARRAY = {"kind": "array"}  # as a part
# The table of contents names these only where a layer has them: the files of other layers stay as they were,
# and readers that do not know them refuse a file instead of leaving them out.
_LATER_OPTION = {"kind": "option", "later": True}
_LATER_ARRAY = {"kind": "array", "later": True}


class Chooser(NamedTuple):
    """How a layer makes experts and weights of logits."""

    routing: str | RoutingFunction
    top_k: int
    arguments: dict[str, Any]

    def __call__(
        self, router_logits: NDArray[np.float32], input_ids: ArrayLike | None, num_threads: int | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        rule = self.routing
        if not isinstance(rule, str):
            return rule(router_logits, self.top_k, **self.arguments)
        second = input_ids if rule == "hash_topk" else self.top_k
        function: RoutingFunction = ROUTING_FUNCTIONS[rule]
        return function(router_logits, second, num_threads=num_threads, **self.arguments)


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
    >>> mx.checkpoint.LayerDescription(**description.arguments()) == description
    True
    >>> topk_weights, topk_ids = description.choose(np.eye(3, 4, dtype=np.float32), None)
    >>> topk_ids[:, 0].tolist()
    [0, 1, 2]
    """

    experts: _Experts = field(metadata=_EXPERTS)
    router_weight: NDArray[Any] = field(metadata=_ARRAY)
    """An array of shape (num_experts + num_zero_experts, hidden_size): float32, bfloat16 or float16."""
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
    apply_router_weight_on_input: bool = field(default=False, metadata=_LATER_OPTION)
    """The weight of a slot multiplies what the expert reads, and not what it gives."""
    shared_gate: NDArray[Any] | None = field(default=None, metadata=_LATER_ARRAY)
    """An array of shape (hidden_size,): the shared expert is multiplied by sigmoid(x . shared_gate)."""
    shared_scaling_factor: float = field(default=1.0, metadata=_LATER_OPTION)
    """Multiplies the shared expert."""
    num_zero_experts: int = field(default=0, metadata=_LATER_OPTION)
    """The last so many rows of the router are of experts that give the token itself."""
    router_norm_eps: float | None = field(default=None, metadata=_LATER_OPTION)
    """The router reads ``x / sqrt(mean(x**2) + eps)`` instead of x."""
    router_scale: NDArray[Any] | None = field(default=None, metadata=_LATER_ARRAY)
    """An array of shape (hidden_size,) that multiplies what the router reads, after the norm."""
    separate_router_input: bool = field(default=False, metadata=_LATER_OPTION)
    """The router does not read what the experts do, but an array of its own."""
    latent_down: NDArray[Any] | None = field(default=None, metadata=_LATER_ARRAY)
    """An array of shape (latent_size, hidden_size): the routed experts work on ``x @ latent_down.T``."""
    latent_norm: NDArray[Any] | None = field(default=None, metadata=_LATER_ARRAY)
    """An array of shape (latent_size,): the weight of an RMS norm of the routed sum."""
    latent_norm_eps: float | None = field(default=None, metadata=_LATER_OPTION)
    """What is added to the mean of the squares in that norm."""
    latent_up: NDArray[Any] | None = field(default=None, metadata=_LATER_ARRAY)
    """An array of shape (hidden_size, latent_size), which projects the routed sum back."""
    output_bias: NDArray[Any] | None = field(default=None, metadata=_LATER_ARRAY)
    """An array of shape (hidden_size,) that is added to the result of each token."""
    expert_map: NDArray[np.int32] | None = field(default=None, metadata=_LATER_ARRAY)
    """In a slice, the place in `experts` of each expert of the layer, or -1; None if all are there."""
    activation_format: ActivationFormat | None = field(default=None, metadata=_LATER_OPTION)
    """What experts round hidden states and intermediates to, the shared one if its format allows it; None is
    bfloat16."""

    def __post_init__(self) -> None:
        _check_experts("experts", self.experts)
        if self.expert_map is not None:
            held = check_expert_map("expert_map", self.expert_map, self.experts.num_experts)
            self._set("expert_map", held)
        self._check_latent()
        self._set("num_zero_experts", check_int("num_zero_experts", self.num_zero_experts, 0))
        self._set("top_k", check_positive_int("top_k", self.top_k, self.num_choices))
        check_activation(self.activation, self.alpha, self.limit, self.experts.gated)
        check_activation_format(self.activation_format, self.experts.format, "experts")
        self._set("routed_scaling_factor", _check_factor("routed_scaling_factor", self.routed_scaling_factor))
        for name in ("apply_router_weight_on_input", "separate_router_input"):
            self._set(name, check_bool(name, getattr(self, name)))
        self._check_shared()
        if self.layer_number is not None:
            self._set("layer_number", check_layer_number("layer_number", self.layer_number))
        if self.router_norm_eps is not None:
            self._set("router_norm_eps", _check_epsilon("router_norm_eps", self.router_norm_eps))
        for name, shape in (
            ("router_weight", (self.num_choices, self.hidden_size)),
            ("router_bias", (self.num_choices,)),
            ("router_scale", (self.hidden_size,)),
            ("output_bias", (self.hidden_size,)),
        ):
            self._check_array(name, shape)
        names = {function: name for name, function in ROUTING_FUNCTIONS.items()}
        if callable(self.routing):
            self._set("routing", names.get(self.routing, self.routing))
        elif not isinstance(self.routing, str):
            raise type_error(
                "routing", "the name of a routing function, or a function", describe(self.routing)
            )
        if not isinstance(self.routing_arguments, Mapping):
            raise type_error("routing_arguments", "a mapping", describe(self.routing_arguments))
        arguments = {
            name: frozen(f"routing_arguments[{name!r}]", value)
            for name, value in self.routing_arguments.items()
        }
        self._set("routing_arguments", MappingProxyType(arguments))
        self._check_routing()

    @property
    def num_experts(self) -> int:
        """How many experts the layer has, those that give the token itself not counted.

        A slice of the layer holds fewer; those that it holds have a place in `expert_map`.
        """
        return self.experts.num_experts if self.expert_map is None else len(self.expert_map)

    @property
    def num_choices(self) -> int:
        """How many experts the router chooses from: `num_experts` + `num_zero_experts`."""
        return self.num_experts + self.num_zero_experts

    @property
    def hidden_size(self) -> int:
        """Length of a token's hidden state."""
        return self.experts.hidden_size if self.latent_down is None else self.latent_down.shape[1]

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
        rule = self.routing
        name = rule if isinstance(rule, str) else getattr(rule, "__name__", "function")
        arguments = (f"{key}={_text(value)}" for key, value in self.routing_arguments.items())
        return f"{name}({', '.join(arguments)})"

    def slice(self, experts: ExpertIds) -> Self:
        """Return the layer with some of its experts alone, in the same memory.

        Parameters
        ----------
        experts : range or iterable of int
            Ids of experts that are held.

        Returns
        -------
        LayerDescription
            With an `expert_map`.

        Raises
        ------
        TypeError, ValueError
            If an id is no integer, is there twice, or is not that of an expert that is held.

        Examples
        --------
        >>> import numpy as np
        >>> import mxfp4moe as mx
        >>> arrays = {"w13": np.ones((4, 64, 96), np.float32), "w2": np.ones((4, 96, 32), np.float32)}
        >>> experts = mx.checkpoint.ExpertWeights("bf16", "float32", (96, 32), arrays)
        >>> description = mx.checkpoint.LayerDescription(experts, np.ones((4, 96), np.float32), top_k=2)
        >>> part = description.slice(range(2, 4))
        >>> part.num_experts, part.experts.num_experts, part.expert_map.tolist()
        (4, 2, [-1, -1, 0, 1])
        """
        ids = check_expert_ids("experts", experts, self.num_experts)
        places = ids if self.expert_map is None else self.expert_map[ids]
        if (places < 0).any():
            held = format_ranges(held_ids(self.expert_map, self.num_experts).tolist())
            raise value_error("experts", f"experts of this slice ({held})", str(ids[places < 0][0]))
        arguments = self.arguments() | {"expert_map": make_expert_map(ids, self.num_experts)}
        return self._of(arguments | {"experts": self.experts._select(places)})

    def _of(self, arguments: dict[str, Any]) -> Self:
        return type(self)(**arguments)

    def choose(
        self,
        router_logits: NDArray[np.float32],
        input_ids: ArrayLike | None,
        *,
        num_threads: int | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Choose experts by logits, or by token ids where the layer routes by them.

        Parameters
        ----------
        router_logits : ndarray of shape (..., num_choices), float32
        input_ids : integer ndarray of shape (...), or None
        num_threads : int, optional

        Returns
        -------
        topk_weights : ndarray of shape (..., top_k), float32
        topk_ids : ndarray of shape (..., top_k), int32
            More than `top_k` where the router weighs shared experts, which then come last.

        Raises
        ------
        TypeError, ValueError
            As the routing function of the layer does, or if `input_ids` are missing where it needs them.
        """
        return self.chooser(router_logits, input_ids, num_threads)

    @property
    def chooser(self) -> Chooser:
        """What `choose` calls."""
        return Chooser(self.routing, self.top_k, dict(self.routing_arguments))

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
        return [*(f"{name}={value}" for name, value in texts.items()), *later_texts(self)]

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_array(self, name: str, shape: tuple[int | str, ...]) -> None:
        value = getattr(self, name)
        if value is not None or name == "router_weight":
            array = as_array(name, value, ROUTER_DTYPES)
            check_shape(name, array, shape)
            self._set(name, array)

    def _check_latent(self) -> None:
        """Both projections or none, for they give the layer its hidden size; the norm is between them."""
        latent = self.experts.hidden_size
        for name, other in (
            ("latent_up", "latent_down"),
            ("latent_down", "latent_up"),
            ("latent_norm", "latent_down"),
            ("latent_norm_eps", "latent_norm"),
        ):
            value = getattr(self, name)
            if value is not None and getattr(self, other) is None:
                raise value_error(name, f"None without {other}", describe(value))
        if self.latent_down is None:
            return
        self._check_array("latent_down", (latent, "hidden_size"))
        if not self.hidden_size:
            raise value_error("latent_down", "a hidden_size of at least 1", "0")
        self._check_array("latent_up", (self.hidden_size, latent))
        self._check_array("latent_norm", (latent,))
        if self.latent_norm is not None:
            self._set("latent_norm_eps", _check_epsilon("latent_norm_eps", self.latent_norm_eps))
        if self.num_zero_experts:
            raise value_error("num_zero_experts", "0 with latent_down", describe(self.num_zero_experts))

    def _check_shared(self) -> None:
        factor = _check_factor("shared_scaling_factor", self.shared_scaling_factor)
        self._set("shared_scaling_factor", factor)
        shared = self.shared_experts
        if shared is None:
            for name, absent in (("shared_limit", None), ("shared_gate", None), ("shared_scaling_factor", 1)):
                value = getattr(self, name)
                if value is not None and (absent is None or value != absent):
                    raise value_error(name, f"{absent} without shared_experts", describe(value))
            return
        _check_experts("shared_experts", shared)
        if shared.num_experts != 1:
            raise value_error("shared_experts", "one expert", str(shared.num_experts))
        if shared.hidden_size != self.hidden_size:
            whose = "experts have" if self.latent_down is None else "latent_down has"
            expected = f"hidden_size {self.hidden_size}, as {whose}"
            raise value_error("shared_experts", expected, str(shared.hidden_size))
        self._check_array("shared_gate", (self.hidden_size,))
        if shared.gated != self.experts.gated:
            expected = f"gated={self.experts.gated}, as experts have"
            raise value_error("shared_experts", expected, f"gated={shared.gated}")
        check_activation(self.activation, self.alpha, self.shared_limit, shared.gated)

    def _check_routing(self) -> None:
        """Find wrong arguments of the routing function now, by routing one token, not at the first call."""
        if not isinstance(self.routing, str):
            return
        check_choice("routing", self.routing, tuple(ROUTING_FUNCTIONS))
        _, ids = self.choose(np.zeros((1, self.num_choices), np.float32), np.zeros(1, np.int64))
        if self.routing == "hash_topk" and ids.shape[-1] != self.top_k:
            raise value_error("top_k", f"{ids.shape[-1]}, as in tid2eid", str(self.top_k))


def sliced(layer: LayerDescription[_Experts], experts: ExpertIds | None) -> LayerDescription[_Experts]:
    """The layer, or, if experts are asked for, the slice that has them."""
    return layer if experts is None else layer.slice(experts)


def later_fields(layer: LayerDescription[Any]) -> dict[str, Any]:
    """The fields that this layer has and most layers do not have, by name."""
    later = [each for each in fields(LayerDescription) if each.metadata.get("later")]
    values = {each.name: (getattr(layer, each.name), each.default) for each in later}
    return {name: value for name, (value, default) in values.items() if not _same(value, default)}


def later_texts(layer: LayerDescription[Any]) -> list[str]:
    """The fields that most layers do not have as ``name=value``, for a person to read."""
    return [f"{name}={_text(value)}" for name, value in later_fields(layer).items()]


def _check_experts(name: str, value: object) -> None:
    if not isinstance(value, PackedExperts | ExpertWeights):
        raise type_error(name, "PackedExperts", describe(value))


def _check_factor(name: str, value: Any) -> float:
    factor = check_real(name, value)
    if not 0 < factor <= float(np.finfo(np.float32).max):
        raise value_error(name, "a finite float32 number above 0", repr(factor))
    return factor


def _check_epsilon(name: str, value: Any) -> float:
    """What is added to the mean of squares; above 0, so that the norm of a token of zeros is not NaN."""
    epsilon = check_real(name, value)
    least, most = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    if not least <= epsilon <= most:
        raise value_error(name, f"a number in [{least:.4g}, {most:.4g}]", repr(epsilon))
    return epsilon


def _text(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else repr(value)


def float32_copy(name: str, value: ArrayLike | None) -> Any:
    """A read-only float32 copy of array `name` of a layer, or None."""
    return (
        None if value is None else frozen_copy(name, cast(as_array(name, value, ROUTER_DTYPES), np.float32))
    )


def frozen_copy(name: str, value: ArrayLike | None) -> Any:
    """A read-only copy of array `name` of a layer in its own dtype, or None."""
    if value is None:
        return None
    result = np.array(as_array(name, value, ROUTER_DTYPES), order="C")
    result.flags.writeable = False
    return result


def _same(a: Any, b: Any) -> bool:
    """Whether two values of a field are equal; arrays by dtype, shape and bytes, so NaN equals itself."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        arrays = isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
        return arrays and (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(a == b)
