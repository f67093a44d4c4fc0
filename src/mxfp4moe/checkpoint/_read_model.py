"""A row of data and a configuration make a `Model`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from mxfp4moe._json import shorten
from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint._fields import Choice, Count, Field, Value, read_value
from mxfp4moe.checkpoint._model import Model, Rule, TensorSpec
from mxfp4moe.checkpoint._moe_layers import Predicate, find_moe_layers
from mxfp4moe.checkpoint._options import check_options
from mxfp4moe.checkpoint.model_type import Groups, ModelType, Routing
from mxfp4moe.checkpoint.schemes import FLOATS, find_scheme

_FURTHER_LAYERS = Count("num_nextn_predict_layers|num_mtp_layers", 0, minimum=0, maximum=1024)
"""Layers that predict further tokens, which lists for each layer may have as well."""


def language_model(config: Config, section: str = "text_config") -> tuple[Config, Config]:
    """Return the configuration of the language model, and the one that says how its weights are quantized.

    A model for several kinds of input has it in objects within objects, of which `section` has the names; a
    checkpoint of the language model alone leaves them out.
    """
    quantized = config
    for name in section.split(".") if section else ():
        if config.section(name).fields:
            config = config.section(name)
            quantized = config if "quantization_config" in config.fields else quantized
    return config, quantized


def read_model(row: ModelType, config: Config) -> Model:
    """What the row of a model type says, applied to the fields of a configuration."""
    text, quantized = language_model(config, row.section)
    _check_nested_type(row, config, text)
    for name, values in row.constants.items():
        text.choice(name, values, default=values[0])
    scheme = (row.scheme or find_scheme)(quantized)
    num_layers = row.num_layers.read(text)
    if num_layers is not None:
        further = read_value(_FURTHER_LAYERS, text)
        text.list_lengths = tuple(dict.fromkeys((num_layers, num_layers + further)))
    multiple_of = scheme.multiple_of
    num_experts, num_zero = row.num_experts.read(text), read_value(row.num_zero_experts, text)
    latent = read_value(row.latent_size, text) or 0
    hidden = _multiple(row.hidden_size, 1 if latent else multiple_of).read(text)
    intermediate = read_value(_multiple(row.intermediate_size, multiple_of), text)
    top_k = replace(row.top_k, maximum=num_experts + num_zero).read_layers(text)
    has_experts = find_moe_layers(row.moe_layers, text, num_layers)
    rule = _read_rule(row, text, num_experts + num_zero, top_k(0))
    sizes = {"hidden": hidden, "latent": latent, "experts": num_experts + num_zero}
    model = Model(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_experts=num_experts,
        top_k=top_k(next(filter(has_experts, range(num_layers or 1)), 0)),
        names=row.names,
        layers=row.layers,
        scheme=scheme,
        rule=lambda layer: rule,
        num_layers=num_layers,
        is_dense=_not(has_experts),
        is_gated=row.is_gated,
        activation=read_value(row.activation, text),
        alpha=read_value(row.alpha, text),
        limit=_read_layers(row.limit, text)(0),
        routed_scaling_factor=read_value(row.routed_scaling_factor, text),
        latent_size=latent,
        num_router_rows=num_experts + num_zero,
        tensors={
            name: spec for name in read_value(row.tensors, text) if all((spec := _spec(name, sizes)).shape)
        },
        options=_read_options(row, text, latent, num_zero),
        by_layer=_by_layer({"top_k": top_k, "limit": _read_layers(row.limit, text)}),
        layer_fields=_layer_fields(row, text),
    )
    model = _read_shared(row, text, model)
    model = model if row.change is None else row.change(model, text)
    check_options(text, model.rule(0))
    texts = [*_texts(row, text), *([model.sizes_text] if model.sizes_text else [])]
    return replace(model, sizes_text=", ".join(dict.fromkeys(texts)))


def _check_nested_type(row: ModelType, config: Config, text: Config) -> None:
    nested = text.get("model_type")
    if text is not config and nested not in (None, "", *row.model_types):
        text.choice("model_type", row.model_types)


def _not(predicate: Predicate) -> Predicate:
    return lambda layer: not predicate(layer)


def _multiple(count: Count, multiple_of: int) -> Count:
    return replace(count, multiple_of=multiple_of)


def _read_rule(row: ModelType, text: Config, num_rows: int, top_k: int) -> Rule:
    routing: Routing = read_value(row.routing, text)
    values = {name: read_value(value, text) for name, value in routing.arguments.items()}
    arguments = {name: value for name, value in values.items() if value is not None}
    name = routing.function
    if routing.groups is not None:
        groups = _read_groups(routing.groups, text, (row.num_experts.name_in(text), num_rows))
        if groups:
            name, arguments = routing.groups.function, {**groups, **arguments, **routing.groups.arguments}
            _check_groups(routing.groups, text, arguments, (num_rows, top_k))
    shapes = {"routed_scaling_factor": (1,)}
    tensors = {name: TensorSpec(FLOATS, shapes.get(name, (num_rows,))) for name in routing.tensors}
    return Rule(name, arguments, tensors, routing.unused)


def _read_groups(groups: Groups, text: Config, experts: tuple[str, int]) -> dict[str, int]:
    """The arguments of routing by groups, none if there is one group; `experts`: their field and number."""
    field, num_experts = groups.num_groups, experts[1]
    num_groups = read_value(replace(field, maximum=num_experts), text)
    if num_experts % num_groups:
        name = field.name_in(text)
        raise text.error(name, f"a divisor of {experts[0]} = {num_experts}", str(num_groups))
    maximum = num_groups if num_groups > 1 else groups.topk_group.maximum
    kept = read_value(replace(groups.topk_group, maximum=maximum), text)
    return {"num_groups": num_groups, "topk_group": kept} if num_groups > 1 else {}


def _check_groups(groups: Groups, text: Config, arguments: Mapping[str, Any], sizes: tuple[int, int]) -> None:
    """Raise if the kept groups have fewer experts than are chosen; `sizes`: experts, chosen ones."""
    kept, each, top_k = arguments["topk_group"], sizes[0] // arguments["num_groups"], sizes[1]
    if top_k > kept * each and arguments.get("masked_groups") != "zero":
        expected = f"at least {top_k} experts (num_experts_per_tok) in the groups that are kept"
        got = f"{kept} groups of {each}, with {groups.num_groups.name_in(text)} = {arguments['num_groups']}"
        raise text.error(groups.topk_group.name_in(text), expected, got)


def _read_shared(row: ModelType, text: Config, model: Model) -> Model:
    shared = row.shared
    if shared is None:
        return model
    size = model.intermediate_size if shared.size is None else read_value(shared.size, text)
    size *= read_value(shared.count, text)
    is_average = read_value(shared.average, text)
    is_optional = shared.is_optional and isinstance(shared.count, Field) and not shared.count.is_in(text)
    limit = _read_layers(shared.limit, text)
    model = replace(
        model,
        shared_size=size,
        shared_is_optional=is_optional,
        shared_limit=limit(0),
        by_layer=_by_layer({"shared_limit": limit}, model.by_layer),
    )
    if not size:
        return model
    if shared.is_gated:
        gate = {"shared_gate": _spec("shared_gate", {"hidden": model.hidden_size})}
        model = replace(model, tensors={**model.tensors, **gate})
    if is_average:
        half = model.routed_scaling_factor / 2
        options = {**model.options, "shared_scaling_factor": 0.5}
        model = replace(model, routed_scaling_factor=half, options=options)
    return model


def _read_options(row: ModelType, text: Config, latent: int, num_zero: int) -> dict[str, Any]:
    options = {name: read_value(value, text) for name, value in row.options.items()}
    options["num_zero_experts"] = num_zero or None
    options["latent_norm_eps"] = options.get("latent_norm_eps") if latent else None
    return {name: value for name, value in options.items() if value is not None}


FIELD_SHAPES = {
    "router_bias": ("experts",),
    "shared_gate": ("hidden",),
    "router_scale": ("hidden",),
    "output_bias": ("hidden",),
    "latent_down": ("latent", "hidden"),
    "latent_norm": ("latent",),
    "latent_up": ("hidden", "latent"),
}
"""The sizes of the fields of a layer that are tensors; those of width 0 are left out."""


def _spec(name: str, sizes: Mapping[str, int]) -> TensorSpec:
    return TensorSpec(FLOATS, tuple(sizes[size] for size in FIELD_SHAPES[name]))


def _read_layers(value: Value, text: Config) -> Callable[[int], Any]:
    while isinstance(value, Choice):
        value = value.read(text)
    if isinstance(value, Field):
        return value.read_layers(text)
    return lambda layer: value


def _by_layer(
    values: Mapping[str, Callable[[int], Any]], more: Callable[[int], Mapping[str, Any]] | None = None
) -> Callable[[int], Mapping[str, Any]]:
    return lambda layer: {
        **(more(layer) if more else {}),
        **{key: value(layer) for key, value in values.items()},
    }


def _layer_fields(row: ModelType, text: Config) -> tuple[str, ...]:
    """The fields that say which layers have experts, or those that are missing for that."""
    names = tuple(name for rule in row.moe_layers for name in rule.names)
    return tuple(name if text.get(name) is not None else f"no {name}" for name in names)


def _texts(row: ModelType, text: Config) -> Iterator[str]:
    """The fields that shapes follow from, each with its value."""
    shared = () if row.shared is None else (row.shared.count, row.shared.size)
    sizes = (row.hidden_size, row.intermediate_size, row.num_experts, row.num_zero_experts, row.top_k)
    arguments = read_value(row.routing, text).arguments.values()
    for field in (*sizes, *shared, row.latent_size, row.tensors, row.routing, *arguments):
        while isinstance(field, Field):
            name, value = field.name_in(text), text.get(field.name_in(text))
            yield f"no {field.names}" if value is None else f"{name} = {shorten(value)}"
            field = field.read(text) if isinstance(field, Choice) else None
