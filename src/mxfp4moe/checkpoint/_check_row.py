"""The checks of a `ModelType` that a user has made: what is wrong is named as an attribute of the row."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from mxfp4moe._arguments import describe, join_choices, type_error, value_error
from mxfp4moe.checkpoint._fields import REQUIRED, Choice, Count, Field
from mxfp4moe.checkpoint._fused import FusedLayout
from mxfp4moe.checkpoint._moe_layers import LayerRule
from mxfp4moe.checkpoint._names import Block, Names
from mxfp4moe.checkpoint._read_model import FIELD_SHAPES
from mxfp4moe.checkpoint.model_type import Groups, ModelType, Routing, Shared
from mxfp4moe.experts.activation import ACTIVATIONS
from mxfp4moe.layer_description import LayerDescription
from mxfp4moe.routing import ROUTING_FUNCTIONS

_OPTIONS = {each.name for each in fields(LayerDescription) if each.metadata["kind"] == "option"}


def check_row(row: ModelType) -> None:
    """Raise a TypeError or ValueError that names the first attribute which is wrong."""
    _check_texts("model_types", row.model_types)
    _check_type("section", row.section, str)
    _check_texts("layers", row.layers)
    for prefix in row.layers:
        parts = prefix.split("{layer}")
        if len(parts) != 2 or any(brace in part for part in parts for brace in "{}") or parts[1][-1:] != ".":
            expected = "prefixes with {layer}, once, and a dot at the end"
            raise value_error("row.layers", expected, repr(prefix))
    _check_type("is_gated", row.is_gated, bool)
    _check_items("names", row.names, Names)
    for i, names in enumerate(row.names):
        _check_names(f"names[{i}]", names, row.is_gated)
    for name in ("hidden_size", "num_experts", "top_k", "num_layers", "intermediate_size"):
        _check_type(name, getattr(row, name), Count)
    _check_items("moe_layers", row.moe_layers, LayerRule)
    for i, rule in enumerate(row.moe_layers):
        step = getattr(rule, "step", 1)
        if not isinstance(step, Field) and (type(step) is not int or step < 1):
            raise value_error(f"row.moe_layers[{i}].step", "an integer of at least 1", describe(step))
    for name, routing in _possible("routing", row.routing):
        _check_routing(name, routing, row.names)
    for name, activation in _possible("activation", row.activation):
        _check_in(name, activation, ACTIVATIONS)
    for name in ("alpha", "limit", "routed_scaling_factor", "latent_size", "num_zero_experts"):
        _check_number(name, getattr(row, name))
    _check_type("shared", row.shared, Shared | None)
    if row.shared is not None:
        for name in ("count", "size", "limit"):
            _check_number(f"shared.{name}", getattr(row.shared, name))
        for name in ("is_gated", "is_optional"):
            _check_type(f"shared.{name}", getattr(row.shared, name), bool)
        _check_type("shared.average", row.shared.average, bool | Field)
    for name, tensors in _possible("tensors", row.tensors):
        _check_items(name, tensors, str, may_be_empty=True)
        for tensor in tensors:
            _check_in(name, tensor, tuple(FIELD_SHAPES))
            _check_named(name, tensor, row.names)
    _check_mapping("options", row.options)
    for option in row.options:
        _check_in("options", option, tuple(sorted(_OPTIONS)))
    _check_mapping("constants", row.constants)
    for name, values in row.constants.items():
        _check_items(f"constants[{name!r}]", values, object)
    for name in ("scheme", "change"):
        function = getattr(row, name)
        if not callable(function) and function is not None:
            raise type_error(f"row.{name}", "a function or None", describe(function))


def _possible(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Each thing that a value may stand for, with its name; of a field that is no choice, none."""
    if isinstance(value, Choice):
        for key, item in value.of.items():
            yield from _possible(f"{name}.of[{key!r}]", item)
        if value.otherwise is not REQUIRED:
            yield from _possible(f"{name}.otherwise", value.otherwise)
    elif not isinstance(value, Field):
        yield name, value


def _check_names(place: str, names: Names, is_gated: bool) -> None:
    for each in fields(Names):
        value, name = getattr(names, each.name), f"{place}.{each.name}"
        if each.name in ("block", "router", "experts", "shared"):
            _check_type(name, value, str)
        elif each.name == "layouts":
            _check_items(name, value, FusedLayout)
        elif each.name == "tensors":
            _check_mapping(name, value)
            for text in value.values():
                _check_type(name, text, str)
        else:
            _check_items(name, value, str)
            most = 2 + is_gated
            counts = (2, most) if each.name in ("fused", "shared_fused") else (most,)
            if len(value) not in counts:
                expected = f"{join_choices(dict.fromkeys(map(str, counts)))} names"
                raise value_error(f"row.{name}", expected, str(len(value)))


def _check_routing(place: str, routing: Any, names: Sequence[Names]) -> None:
    _check_type(place, routing, Routing)
    _check_in(f"{place}.function", routing.function, tuple(ROUTING_FUNCTIONS))
    _check_mapping(f"{place}.arguments", routing.arguments)
    _check_items(f"{place}.tensors", routing.tensors, str, may_be_empty=True)
    parts: list[tuple[str, Any, str]] = [("arguments", routing.arguments, routing.function)]
    parts.append(("tensors", routing.tensors, routing.function))
    _check_type(f"{place}.groups", routing.groups, Groups | None)
    if routing.groups is not None:
        scored_alike = {"topk_sigmoid": "grouped_topk"}.get(routing.function, routing.function)
        _check_in(f"{place}.groups.function", routing.groups.function, (scored_alike,))
        parts.append(("groups.arguments", routing.groups.arguments, routing.groups.function))
    for name, arguments, function in parts:
        known = _keywords(ROUTING_FUNCTIONS[function])
        for argument in arguments:
            _check_in(f"{place}.{name}", argument, tuple(known))
    for name, is_needed in _keywords(ROUTING_FUNCTIONS[routing.function]).items():
        if is_needed and name not in (*routing.arguments, *routing.tensors):
            expected = f"{name} in arguments or tensors, which {routing.function} needs"
            raise value_error(f"row.{place}", expected, "none")
    for tensor in (*routing.tensors, *routing.unused):
        _check_named(f"{place}.tensors", tensor, names)


def _keywords(function: Callable[..., Any]) -> dict[str, bool]:
    """The arguments of a routing function but its first two, and whether each must be given."""
    _, _, *others = inspect.signature(function).parameters.items()
    return {name: each.default is each.empty for name, each in others if name != "num_threads"}


def _check_named(place: str, tensor: str, names: Sequence[Names]) -> None:
    """Raise if a tensor has no name in a style."""
    for i, each in enumerate(names):
        try:
            Block("", each).tensor(tensor)
        except KeyError:
            raise value_error(
                f"row.names[{i}].tensors", f"a name of {tensor}, of row.{place}", "none"
            ) from None


def _check_number(name: str, value: Any) -> None:
    is_number = isinstance(value, int | float | Field | None) and not isinstance(value, bool)
    if not is_number:
        raise type_error(f"row.{name}", "a number, a field or None", describe(value))


def _check_in(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise value_error(f"row.{name}", join_choices(map(repr, choices)), describe(value))


def _check_type(name: str, value: Any, kind: Any) -> None:
    if not isinstance(value, kind):
        expected = getattr(kind, "__name__", str(kind))
        raise type_error(f"row.{name}", f"a value of type {expected}", describe(value))


def _check_mapping(name: str, value: Any) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise type_error(f"row.{name}", "a mapping of names", describe(value))


def _check_items(name: str, value: Any, kind: type, may_be_empty: bool = False) -> None:
    if not isinstance(value, tuple) or not all(isinstance(item, kind) for item in value):
        raise type_error(f"row.{name}", f"a tuple of {kind.__name__}", describe(value))
    if not value and not may_be_empty:
        raise value_error(f"row.{name}", "at least one", "none")


def _check_texts(name: str, value: Any) -> None:
    _check_items(name, value, str)
    if not all(value):
        raise value_error(f"row.{name}", "no empty text", repr(value))
