"""Experts and layers in packed files and in pickles: which arrays and which fields they are."""

from __future__ import annotations

import math
import os
from pathlib import Path
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .checkpoint._json import shorten
from .errors import PackedFormatError, check_choice, describe, type_error, value_error
from .formats import BFLOAT16, FORMATS
from .packed_file import PackedFile, Part, check_byte_order, is_packed_file, write_packed_file
from .packing import GATE_UP_LAYOUTS, MatrixDtypes, PackedExperts, block_shape_of

if TYPE_CHECKING:
    from .layer import MoELayer

_EXPERTS, _SHARED, _LAYER = "experts", "shared_experts", "layer"
_KINDS = {
    _EXPERTS: "packed experts, which PackedExperts.open reads",
    _LAYER: "a packed layer, which MoELayer.open reads",
}
_ROUTING = "routing/"  # before the names of the arrays that the routing function takes
_LAYER_FIELDS = ("activation", "alpha", "limit", "routed_scaling_factor", "shared_limit", "layer_number")
_MAX_SIZE = 1 << 40


# --- experts ------------------------------------------------------------------------------------------------


def save_experts(experts: PackedExperts, path: str | os.PathLike[str]) -> None:
    """Write `experts` to a packed file."""
    meta = {"kind": _EXPERTS, "layout_version": _core.layout_version(), _EXPERTS: _describe(experts)}
    write_packed_file(path, meta, _parts(_EXPERTS, experts))


def open_experts(path: str | os.PathLike[str], verify: bool) -> PackedExperts:
    """The experts of a packed file, mapped."""
    return _read(_open(path, _EXPERTS, verify), _EXPERTS)


def is_experts_file(path: Path) -> bool:
    """Whether the packed file at `path`, if it is one, holds experts and no layer."""
    return is_packed_file(path) and PackedFile(path).meta.get("kind") == _EXPERTS


def reduce_experts(experts: PackedExperts, protocol: int) -> tuple[Any, ...]:
    """What pickle stores; with protocol 5 the packed bytes are a buffer of their own."""
    data = PickleBuffer(experts.data) if protocol >= 5 else bytes(experts.data)
    return _unpickle, (_core.layout_version(), _describe(experts), data)


def pack_arguments(experts: PackedExperts) -> dict[str, Any]:
    """Arguments of `pack_experts`, but for the format, that make equal experts."""
    arrays = experts.unpack()._asdict()
    required = ("w13", "w13_scales", "w2", "w2_scales")
    arguments = {name: array for name, array in arrays.items() if array is not None or name in required}
    return arguments | {"gate_up_layout": experts.gate_up_layout, "block_shape": experts.block_shape}


def _unpickle(layout_version: int, fields: Any, data: Any) -> PackedExperts:
    check_byte_order("pickle")
    if layout_version != _core.layout_version():
        expected = f"packed layout {_core.layout_version()}"
        raise PackedFormatError(f"pickle: expected {expected}, got layout {shorten(layout_version)}")
    return _experts(fields, np.frombuffer(data, np.uint8), "pickle")


def _describe(experts: PackedExperts) -> dict[str, Any]:
    """Everything but the bytes, as JSON has it."""

    def names(dtypes: MatrixDtypes) -> list[str | None]:
        return [None if dtype is None else dtype.name for dtype in dtypes]

    block_shape = experts.block_shape
    spec = FORMATS[experts.format]
    # A field of its own only where the format does not say it: what never had it stays as it was.
    optional = {"tensor_scales": True} if experts._storage.has_tensor_scales > spec.has_tensor_scale else {}
    return optional | {
        "format": experts.format,
        "num_experts": experts.num_experts,
        "hidden_size": experts.hidden_size,
        "intermediate_size": experts.intermediate_size,
        "gate_up_layout": experts.gate_up_layout,
        "block_shape": None if block_shape is None else list(block_shape),
        "w13_dtypes": names(experts._dtypes[0]),
        "w2_dtypes": names(experts._dtypes[1]),
    }


def _experts(fields: Any, data: NDArray[np.uint8], place: str) -> PackedExperts:
    """The inverse of `_describe`, with the packed bytes `data`; every field is checked."""
    try:
        return _checked_experts(fields, data)
    except (TypeError, ValueError) as error:
        raise PackedFormatError(f"{place}: {error}") from None


def _checked_experts(fields: Any, data: NDArray[np.uint8]) -> PackedExperts:
    names = ["format", "num_experts", "hidden_size", "intermediate_size", "gate_up_layout", "block_shape"]
    names += ["w13_dtypes", "w2_dtypes"]
    if not isinstance(fields, dict) or sorted(fields.keys() - {"tensor_scales"}) != sorted(names):
        raise value_error("fields", ", ".join(names), shorten(fields))
    spec = FORMATS[check_choice("format", fields["format"], tuple(FORMATS))]
    sizes = {name: fields[name] for name in names[1:4]}
    for name, size in sizes.items():
        multiple = 1 if name == "num_experts" else spec.k_multiple
        if type(size) is not int or not 1 <= size <= _MAX_SIZE or size % multiple:
            raise value_error(name, f"a multiple of {multiple} in [1, {_MAX_SIZE}]", shorten(size))
    has_tensor_scales = fields.get("tensor_scales", spec.has_tensor_scale)
    if type(has_tensor_scales) is not bool or not spec.has_tensor_scale <= has_tensor_scales <= (
        not spec.has_block_shape
    ):
        raise value_error("tensor_scales", "true or false, as the format has it", shorten(has_tensor_scales))
    layout = check_choice("gate_up_layout", fields["gate_up_layout"], GATE_UP_LAYOUTS)
    blocks = fields["block_shape"]
    if spec.has_block_shape and not isinstance(blocks, list):
        raise value_error("block_shape", "a list of two sizes or nulls", shorten(blocks))
    block_shape = block_shape_of(spec, blocks)

    choices: list[dict[str | None, Any]] = [
        {dtype.name: dtype for dtype in spec.weight_dtypes},
        {dtype.name: dtype for dtype in spec.scale_dtypes} if spec.has_scales else {None: None},
        {None: None, "float32": np.dtype(np.float32), "bfloat16": BFLOAT16},
    ]
    dtypes = [_dtypes(name, fields[name], choices) for name in ("w13_dtypes", "w2_dtypes")]
    codes = {spec.weight_dtypes[each.weights] for each in dtypes}
    if len(codes) != 1:
        raise value_error("w2_dtypes", "elements as of w13", shorten(fields["w2_dtypes"]))
    storage = _core.ExpertStorage(
        codes.pop(),
        tuple(sizes.values()),
        (dtypes[0].bias is not None, dtypes[1].bias is not None),
        layout == "interleaved",
        (0, 0) if block_shape is None else tuple(size or 0 for size in block_shape),
        data,
        has_tensor_scales,
    )
    return PackedExperts._make(
        _storage=storage, format=spec.name, **sizes, gate_up_layout=layout, block_shape=block_shape,
        _dtypes=tuple(dtypes),
    )  # fmt: skip


def _dtypes(field: str, value: Any, choices: list[dict[str | None, Any]]) -> MatrixDtypes:
    """The dtypes of weights, scales and bias by their names, each one of its `choices`."""
    names = value if isinstance(value, list) and len(value) == len(choices) else [[]] * len(choices)
    pairs = list(zip(names, choices, strict=True))
    if any(not isinstance(name, str | None) or name not in choice for name, choice in pairs):
        raise value_error(field, f"one each of {[list(choice) for choice in choices]}", shorten(value))
    return MatrixDtypes(*(choice[name] for name, choice in pairs))


def _parts(prefix: str, experts: PackedExperts) -> list[Part]:
    """The parts of the packed bytes, in their order: a row for each expert."""
    data, count = np.asarray(experts.data), experts.num_experts
    return [
        Part(f"{prefix}/{name}", data[begin : begin + count * size].reshape(count, size), by_row=True)
        for name, begin, size in experts._storage.parts()
    ]


def _read(file: PackedFile, prefix: str) -> PackedExperts:
    """Experts whose packed bytes are those of the mapped file."""
    names = [name for name in file if name.startswith(f"{prefix}/")]
    data = file.span(names) if names else np.empty(0, np.uint8)
    experts = _experts(file.meta.get(prefix), data, f"{file.path}: {prefix}")
    sizes = {name: (experts.num_experts, size) for name, _, size in experts._storage.parts()}
    expected = [(f"{prefix}/{name}", "U8", shape) for name, shape in sizes.items()]
    found = [(part.name, part.dtype, part.shape) for part in map(file.parts.__getitem__, names)]
    if found != expected:
        raise file.error(f"parts {shorten(expected)}", shorten(found))
    return experts


# --- layers -------------------------------------------------------------------------------------------------


def save_layer(layer: MoELayer, path: str | os.PathLike[str]) -> None:
    """Write `layer` to a packed file."""
    if not isinstance(layer.routing, str):
        got = describe(layer.routing)
        raise type_error("routing", "the name of a routing function, for a layer to be saved", got)
    parts = _parts(_EXPERTS, layer.experts)
    shared = layer.shared_experts
    if shared is not None:
        parts += _parts(_SHARED, shared)
    arrays = {"router_weight": layer.router_weight, "router_bias": layer.router_bias}
    arguments: dict[str, Any] = {}
    for name, value in layer.routing_arguments.items():
        if isinstance(value, np.ndarray):
            arrays[_ROUTING + name] = value
        else:
            arguments[name] = _plain(f"routing_arguments[{name!r}]", value)
    parts += [Part(name, array) for name, array in arrays.items() if array is not None]
    meta: dict[str, Any] = {name: _plain(name, getattr(layer, name)) for name in _LAYER_FIELDS}
    meta |= {
        "kind": _LAYER,
        "layout_version": _core.layout_version(),
        _EXPERTS: _describe(layer.experts),
        _SHARED: None if shared is None else _describe(shared),
        "top_k": layer.top_k,
        "routing": layer.routing,
        "routing_arguments": arguments,
    }
    write_packed_file(path, meta, parts)


def open_layer(path: str | os.PathLike[str], verify: bool) -> tuple[dict[str, Any], int | None]:
    """The arguments of `MoELayer`, which checks them, and the layer's number."""
    file = _open(path, _LAYER, verify)
    meta = {name: value for name, value in file.meta.items() if name not in ("kind", "layout_version")}
    names = {_EXPERTS, _SHARED, "top_k", "routing", "routing_arguments", *_LAYER_FIELDS}
    if set(meta) != names:
        raise file.error(f"fields {', '.join(sorted(names))}", shorten(sorted(meta)))
    arguments, number = meta["routing_arguments"], meta.pop("layer_number")
    if not isinstance(arguments, dict) or not isinstance(meta["routing"], str):
        raise file.error("a routing function by name, with its arguments", shorten(arguments))
    if number is not None and (type(number) is not int or not 0 <= number <= _MAX_SIZE):
        raise file.error("a layer_number of at least 0", shorten(number))
    if "router_weight" not in file:
        raise file.error("a part router_weight", shorten(list(file)))
    arrays = {name.removeprefix(_ROUTING): file[name] for name in file if name.startswith(_ROUTING)}
    result = {name: _number(value) for name, value in meta.items()}
    result[_EXPERTS] = _read(file, _EXPERTS)
    result[_SHARED] = None if meta[_SHARED] is None else _read(file, _SHARED)
    result["routing_arguments"] = {name: _number(value) for name, value in arguments.items()} | arrays
    return result | {"router_weight": file["router_weight"], "router_bias": file.get("router_bias")}, number


def _open(path: str | os.PathLike[str], kind: str, verify: bool) -> PackedFile:
    file = PackedFile(path)
    found, version = file.meta.get("kind"), file.meta.get("layout_version")
    if found != kind:
        known = isinstance(found, str) and found in _KINDS
        raise file.error(_KINDS[kind], _KINDS[str(found)] if known else f"kind {shorten(found)}")
    if version != _core.layout_version():
        got = f"layout {shorten(version)}: use the mxfp4moe that wrote the file, or pack the checkpoint again"
        raise file.error(f"weights in packed layout {_core.layout_version()}", got)
    if verify:
        file.verify()
    return file


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
