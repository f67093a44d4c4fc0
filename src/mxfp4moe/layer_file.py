"""The description of a layer in a packed file: docs/packed-files.md says what each field is there."""

from __future__ import annotations

import math
import os
from dataclasses import fields, replace
from typing import Any

import numpy as np

from mxfp4moe._arguments import describe, type_error
from mxfp4moe._json import shorten
from mxfp4moe.errors import PackedFormatError
from mxfp4moe.experts.packed_experts import PackedExperts
from mxfp4moe.experts.residence import MAPPED, Residence
from mxfp4moe.experts.selection import ExpertIds, held_ids
from mxfp4moe.layer_description import DEFAULTS, LayerDescription, sliced
from mxfp4moe.layer_texts import later_fields
from mxfp4moe.packed.container import PackedFile, Part, packed_bytes, write_packed_file
from mxfp4moe.packed.kinds import LAYER, file_meta, open_packed_file

_ROUTING = "routing/"  # before the names of the arrays that the routing function takes
_MAX_LAYER_NUMBER = 1 << 40


def save_layer(layer: LayerDescription[PackedExperts], path: str | os.PathLike[str]) -> None:
    """Write `layer` to a packed file, from which `open_layer` reads it."""
    write_packed_file(path, *_describe(layer, with_experts=True))


def layer_bytes(layer: LayerDescription[PackedExperts]) -> bytes:
    """The packed file of `layer` without the weights of its experts, for who has them already."""
    return packed_bytes(*_describe(layer, with_experts=False))


def _describe(
    layer: LayerDescription[PackedExperts], *, with_experts: bool
) -> tuple[dict[str, Any], list[Part]]:
    """The table of contents of a packed file, and its parts."""
    if not isinstance(layer.routing, str):
        got = describe(layer.routing)
        raise type_error("routing", "the name of a routing function, for a layer to be saved", got)
    values = layer.arguments()
    later = later_fields(layer)
    options: dict[str, Any] = {}
    specs: dict[str, Any] = {}
    parts: list[Part] = []
    arrays: dict[str, Any] = {}
    for name, kind in _kinds().items():
        value = values[name]
        if kind == "experts":
            specs[name] = None if value is None else value.spec.to_json()
            parts += [] if value is None or not with_experts else value._file_parts(name)
        elif kind == "array":
            arrays[name] = value
            options |= {name: True} if name in later else {}
        elif name not in _LAST_FIELDS and (name in later or name not in _LATER_FIELDS):
            options[name] = _plain(name, value)
    arguments = {}
    for name, value in layer.routing_arguments.items():
        if isinstance(value, np.ndarray):
            arrays[_ROUTING + name] = value
        else:
            arguments[name] = _plain(f"routing_arguments[{name!r}]", value)
    parts += [Part(name, array) for name, array in arrays.items() if array is not None]
    last = {"top_k": layer.top_k, "routing": layer.routing, "routing_arguments": arguments}
    return file_meta(LAYER, options) | specs | last, parts


def open_layer(
    path: str | os.PathLike[str],
    verify: bool = False,
    experts: ExpertIds | None = None,
    residence: Residence = MAPPED,
) -> LayerDescription[PackedExperts]:
    """The layer of a packed file, or a slice of it; every field is checked.

    The weights are mapped, unless `residence` asks for more.
    """
    file = open_packed_file(path, LAYER, verify and experts is None)
    arguments = _read_fields(file)
    try:
        whole = LayerDescription(**arguments)
    except (TypeError, ValueError) as error:
        raise PackedFormatError(f"{os.fspath(path)}: {error}") from None
    layer = sliced(whole, experts)
    if verify and layer is not whole:
        ids = held_ids(layer.expert_map, layer.num_experts)
        used = set((ids if whole.expert_map is None else whole.expert_map[ids]).tolist())
        file.verify(is_used=lambda part, row: not part.startswith("experts/") or row in used)
    if residence.budget is not None:
        held = layer.experts._within(residence.budget, file, "experts", layer.top_k)
        return replace(layer, experts=held)
    if residence.is_local:
        shared = layer.shared_experts
        return replace(
            layer,
            experts=layer.experts._local(),
            shared_experts=None if shared is None else shared._local(),
        )
    return layer


_LAST_FIELDS = ("top_k", "routing", "routing_arguments")  # which packed files have after the experts
# The table of contents has these only if the layer has them, and says of an array that there is one.
_LATER_FIELDS = {each.name for each in fields(LayerDescription) if each.metadata.get("is_later")}


def _kinds() -> dict[str, str]:
    """How a packed file stores each field: experts, an array, or an option in the table of contents."""
    kinds = {each.name: each.metadata["kind"] for each in fields(LayerDescription)}
    return {name: kind for name, kind in kinds.items() if kind != "call"}


def _optional_fields() -> set[str]:
    """Fields that a file may lack, if its version did not know them: their defaults hold then."""
    return {*DEFAULTS} - {*_LAST_FIELDS}


def _read_fields(file: PackedFile) -> dict[str, Any]:
    """The fields of a layer that a packed file has; the inverse of what `save` writes."""
    kinds = _kinds()
    meta = {name: value for name, value in file.meta.items() if name not in file_meta(LAYER, {})}
    names = {name for name, kind in kinds.items() if kind != "array"} | _LATER_FIELDS
    if not names - _optional_fields() <= set(meta) <= names:
        raise file.error(f"fields {', '.join(sorted(names))}", shorten(sorted(meta)))
    arguments, number = meta["routing_arguments"], meta.get("layer_number")
    if not isinstance(arguments, dict) or not isinstance(meta["routing"], str):
        raise file.error("a routing function by name, with its arguments", shorten(arguments))
    if number is not None and (type(number) is not int or not 0 <= number <= _MAX_LAYER_NUMBER):
        raise file.error("a layer_number of at least 0", shorten(number))
    if "router_weight" not in file:
        raise file.error("a part router_weight", shorten(list(file)))
    result = {name: _number(value) for name, value in meta.items()}
    for name, kind in kinds.items():
        if kind == "experts":
            absent = meta.get(name) is None and name != "experts"
            result[name] = None if absent else PackedExperts._from_file(file, name)
        elif kind == "array":
            if name in _LATER_FIELDS and (meta.get(name) is True) != (name in file):
                raise file.error(f"a part {name} if the field of this name is true", shorten(meta.get(name)))
            result[name] = file.get(name)
    arrays = {name.removeprefix(_ROUTING): file[name] for name in file if name.startswith(_ROUTING)}
    return result | {
        "routing_arguments": {name: _number(value) for name, value in arguments.items()} | arrays
    }


def _plain(name: str, value: Any) -> str | float | None:
    """`value` as JSON has it; infinity is a string there."""
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, str | int | float | None) or value != value:
        raise type_error(name, "a number, a bool or an array, for a layer to be saved", describe(value))
    return "inf" if value == math.inf else value


def _number(value: Any) -> Any:
    """The inverse of `_plain`."""
    return math.inf if value == "inf" else value
