"""Everything that makes a mixture-of-experts layer, as data: what checkpoints hold and packed files keep.

The fields of a layer are listed here and nowhere else: `MoELayer` is such a description that can be called, a
packed file holds the fields, and a checkpoint is read into them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Generic, Literal, Self, TypeVar, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxfp4moe._arguments import (
    as_array,
    check_bool,
    check_choice,
    check_int,
    check_layer_number,
    check_positive_int,
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
from mxfp4moe.layer_chooser import Chooser, RoutingFunction
from mxfp4moe.layer_values import (
    ROUTER_DTYPES,
    check_epsilon,
    check_experts,
    check_factor,
    frozen_copy,
    same_value,
)
from mxfp4moe.routing import ROUTING_FUNCTIONS

_Experts = TypeVar("_Experts", bound=ExpertWeights | PackedExperts, covariant=True)

Nonfinite = Literal["raise", "propagate"]
NONFINITE: tuple[Nonfinite, ...] = get_args(Nonfinite)


# How a packed file stores a field: experts as a spec and the parts of the packed bytes; an array as a part;
# an option in the table of contents; and what only calls use, not at all.
_EXPERTS = {"kind": "experts"}
_ARRAY = {"kind": "array", "dtype": np.float32}
_OPTION = {"kind": "option"}
_CALL = {"kind": "call"}
# The table of contents names these only where a layer has them: the files of other layers stay as they were,
# and readers that do not know them refuse a file instead of leaving them out.
_LATER_OPTION = _OPTION | {"is_later": True}
_LATER_ARRAY = _ARRAY | {"is_later": True}
# The dtype is that of floats in a layer that can be called, whatever floats were given; None keeps theirs.
_LATER_ARRAY_OF_ANY_FLOATS = _LATER_ARRAY | {"dtype": None}
_LATER_ARRAY_OF_INTEGERS = {"kind": "array", "is_later": True}


@dataclass(frozen=True, eq=False, repr=False, init=False)
class LayerDescription(Generic[_Experts]):
    """One mixture-of-experts layer, its experts packed or not.

    Every field is checked, so that a description which exists describes a layer that can be computed.

    Parameters
    ----------
    experts : PackedExperts or ExpertWeights
    router_weight : ndarray of shape (num_experts + num_zero_experts, hidden_size)
        float32, bfloat16 or float16, as all arrays here.
    router_bias : ndarray of shape (num_experts + num_zero_experts,), optional
    top_k : int
        How many experts each token goes to.
    routing : str or callable, optional
        The name of a routing function of this package ("topk_softmax" by default), or a function of your own:
        ``routing(router_logits, top_k)`` returns (topk_weights, topk_ids).
    routing_arguments : mapping, optional
        Keyword arguments of the routing function, such as ``{"renormalize": False}``.
    activation, alpha, limit
        As for `fused_experts`.
    routed_scaling_factor : float
        Multiplies the sum over the routed experts.
    shared_experts : PackedExperts or ExpertWeights, optional
        One expert that every token goes to, of any intermediate size, with the same activation and `alpha`.
        Several shared experts are one with all their rows.
    shared_limit : float, optional
        The `limit` of the shared expert.
    layer_number : int, optional
        The number of the layer in its model.
    apply_router_weight_on_input : bool
        As for `fused_experts`, of the routed experts (Llama-4).
    shared_gate : ndarray of shape (hidden_size,), optional
        The shared expert is multiplied by ``sigmoid(x . shared_gate)`` (Qwen2-MoE, Qwen3-Next).
    shared_scaling_factor : float
        Multiplies the shared expert.
    num_zero_experts : int
        The last so many rows of the router, with ids from `num_experts` on, are of experts that give the
        token itself: one that is chosen adds its weight times the token (LongCat).
    router_norm_eps : float, optional
        The router reads ``x / sqrt(mean(x**2) + router_norm_eps)`` instead of x (Gemma-4).
    router_scale : ndarray of shape (hidden_size,), optional
        Multiplies what the router reads, after the norm.
    separate_router_input : bool
        The router reads an array of its own, which each call then takes as `router_hidden_states`.
    latent_down, latent_up : ndarray, optional
        Of shape (latent_size, hidden_size) and (hidden_size, latent_size), both or none. The routed experts,
        whose own hidden size is `latent_size`, work on ``x @ latent_down.T``, and `latent_up` projects their
        sum back (Nemotron-3). Router and shared expert see x itself.
    latent_norm, latent_norm_eps : ndarray of shape (latent_size,) and float, optional
        Both or none. The routed sum ``s`` becomes ``s / sqrt(mean(s**2) + latent_norm_eps) * latent_norm``
        before it is projected back (Kimi-K3).
    output_bias : ndarray of shape (hidden_size,), optional
        Added to the result of each token (JetMoE).
    expert_map : integer ndarray of shape (num_experts,), optional
        Makes the layer a slice, of which `experts` are a part of all: for each expert of the layer its place
        among them, in ascending order, or -1. Calling a slice gives the sum of the experts that it has, times
        `routed_scaling_factor`, without what is added once for each token, such as the shared expert.
    activation_format : {None, "int8"}
        As for `fused_experts`: `experts` must be in one of its formats, `shared_experts` are computed with it
        if they are. Nothing else of the layer is.
    nonfinite : {"raise", "propagate"}
        What a token does whose hidden states, or router logits, are NaN or infinite: "raise" is a ValueError
        for the whole call; with "propagate" that token's result is NaN, and the others are what they are
        without it. Rows that are mere padding may then hold anything.

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

    # What each field is once it is checked. The constructor says what is taken, and the defaults.
    experts: _Experts = field(metadata=_EXPERTS)
    router_weight: NDArray[Any] = field(metadata=_ARRAY)
    router_bias: NDArray[Any] | None = field(metadata=_ARRAY)
    top_k: int = field(metadata=_OPTION)
    routing: str | RoutingFunction = field(metadata=_OPTION)
    routing_arguments: Mapping[str, Any] = field(metadata=_OPTION)
    activation: Activation = field(metadata=_OPTION)
    alpha: float | None = field(metadata=_OPTION)
    limit: float | None = field(metadata=_OPTION)
    routed_scaling_factor: float = field(metadata=_OPTION)
    shared_experts: _Experts | None = field(metadata=_EXPERTS)
    shared_limit: float | None = field(metadata=_OPTION)
    layer_number: int | None = field(metadata=_OPTION)
    apply_router_weight_on_input: bool = field(metadata=_LATER_OPTION)
    shared_gate: NDArray[Any] | None = field(metadata=_LATER_ARRAY)
    shared_scaling_factor: float = field(metadata=_LATER_OPTION)
    num_zero_experts: int = field(metadata=_LATER_OPTION)
    router_norm_eps: float | None = field(metadata=_LATER_OPTION)
    router_scale: NDArray[Any] | None = field(metadata=_LATER_ARRAY)
    separate_router_input: bool = field(metadata=_LATER_OPTION)
    latent_down: NDArray[Any] | None = field(metadata=_LATER_ARRAY_OF_ANY_FLOATS)
    latent_norm: NDArray[Any] | None = field(metadata=_LATER_ARRAY)
    latent_norm_eps: float | None = field(metadata=_LATER_OPTION)
    latent_up: NDArray[Any] | None = field(metadata=_LATER_ARRAY_OF_ANY_FLOATS)
    output_bias: NDArray[Any] | None = field(metadata=_LATER_ARRAY)
    expert_map: NDArray[np.int32] | None = field(metadata=_LATER_ARRAY_OF_INTEGERS)
    activation_format: ActivationFormat | None = field(metadata=_LATER_OPTION)
    nonfinite: Nonfinite = field(metadata=_CALL)

    def __init__(
        self,
        experts: _Experts,
        router_weight: ArrayLike,
        router_bias: ArrayLike | None = None,
        *,
        top_k: int,
        routing: str | RoutingFunction = "topk_softmax",
        routing_arguments: Mapping[str, Any] | None = None,
        activation: Activation = "silu",
        alpha: float | None = None,
        limit: float | None = None,
        routed_scaling_factor: float = 1.0,
        shared_experts: _Experts | None = None,
        shared_limit: float | None = None,
        layer_number: int | None = None,
        apply_router_weight_on_input: bool = False,
        shared_gate: ArrayLike | None = None,
        shared_scaling_factor: float = 1.0,
        num_zero_experts: int = 0,
        router_norm_eps: float | None = None,
        router_scale: ArrayLike | None = None,
        separate_router_input: bool = False,
        latent_down: ArrayLike | None = None,
        latent_norm: ArrayLike | None = None,
        latent_norm_eps: float | None = None,
        latent_up: ArrayLike | None = None,
        output_bias: ArrayLike | None = None,
        expert_map: ArrayLike | None = None,
        activation_format: ActivationFormat | None = None,
        nonfinite: Nonfinite = "raise",
    ) -> None:
        given = locals()
        for each in fields(LayerDescription):
            self._set(each.name, given[each.name])
        self.__post_init__()

    def __post_init__(self) -> None:
        check_choice("nonfinite", self.nonfinite, NONFINITE)
        check_experts("experts", self.experts)
        if self.expert_map is not None:
            held = check_expert_map("expert_map", self.expert_map, self.experts.num_experts)
            self._set("expert_map", held)
        self._check_latent()
        self._set("num_zero_experts", check_int("num_zero_experts", self.num_zero_experts, 0))
        self._set("top_k", check_positive_int("top_k", self.top_k, self.num_choices))
        check_activation(self.activation, self.alpha, self.limit, self.experts.gated)
        check_activation_format(self.activation_format, self.experts.format, "experts")
        self._set("routed_scaling_factor", check_factor("routed_scaling_factor", self.routed_scaling_factor))
        for name in ("apply_router_weight_on_input", "separate_router_input"):
            self._set(name, check_bool(name, getattr(self, name)))
        self._check_shared()
        if self.layer_number is not None:
            self._set("layer_number", check_layer_number("layer_number", self.layer_number))
        if self.router_norm_eps is not None:
            self._set("router_norm_eps", check_epsilon("router_norm_eps", self.router_norm_eps))
        for name, shape in (
            ("router_weight", (self.num_choices, self.hidden_size)),
            ("router_bias", (self.num_choices,)),
            ("router_scale", (self.hidden_size,)),
            ("output_bias", (self.hidden_size,)),
        ):
            self._check_array(name, shape)
        if callable(self.routing):  # which need not be hashable
            names = (name for name, function in ROUTING_FUNCTIONS.items() if function is self.routing)
            self._set("routing", next(names, self.routing))
        elif not isinstance(self.routing, str):
            raise type_error(
                "routing", "the name of a routing function, or a function", describe(self.routing)
            )
        given: Mapping[str, Any] | None = self.routing_arguments
        if not isinstance(given, Mapping | None):
            raise type_error("routing_arguments", "a mapping", describe(given))
        arguments = {
            name: frozen(f"routing_arguments[{name!r}]", value) for name, value in (given or {}).items()
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
        return self.chooser.text

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
        return type(self)(**arguments, nonfinite=self.nonfinite)

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
        """Whether both compute the same of finite tokens, whatever file they come from."""
        if not isinstance(other, LayerDescription):
            return NotImplemented
        own, others = self.arguments(), other.arguments()
        return all(same_value(own[name], others[name]) for name in own if name != "layer_number")

    def __hash__(self) -> int:
        return hash((self.num_experts, self.hidden_size, self.intermediate_size, self.top_k, self.activation))

    def arguments(self) -> dict[str, Any]:
        """Return the fields by name, but for `nonfinite`: the arguments of an equal description.

        Returns
        -------
        dict
        """
        kept = [each.name for each in fields(LayerDescription) if each.metadata["kind"] != "call"]
        return {name: getattr(self, name) for name in kept}

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _copy_floats(self) -> None:
        """Make arrays of floats read-only copies, as a layer that can be called has them."""
        for each in fields(LayerDescription):
            value = getattr(self, each.name)
            if value is not None and "dtype" in each.metadata:
                self._set(each.name, frozen_copy(each.name, value, each.metadata["dtype"]))

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
            self._set("latent_norm_eps", check_epsilon("latent_norm_eps", self.latent_norm_eps))
        if self.num_zero_experts:
            raise value_error("num_zero_experts", "0 with latent_down", describe(self.num_zero_experts))

    def _check_shared(self) -> None:
        factor = check_factor("shared_scaling_factor", self.shared_scaling_factor)
        self._set("shared_scaling_factor", factor)
        shared = self.shared_experts
        if shared is None:
            for name, absent in (("shared_limit", None), ("shared_gate", None), ("shared_scaling_factor", 1)):
                value = getattr(self, name)
                if value is not None and (absent is None or value != absent):
                    raise value_error(name, f"{absent} without shared_experts", describe(value))
            return
        check_experts("shared_experts", shared)
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


# The default of each field that has one.
DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(LayerDescription.__init__).parameters.items()
    if parameter.default is not inspect.Parameter.empty
}


def sliced(layer: LayerDescription[_Experts], experts: ExpertIds | None) -> LayerDescription[_Experts]:
    """The layer, or, if experts are asked for, the slice that has them."""
    return layer if experts is None else layer.slice(experts)
