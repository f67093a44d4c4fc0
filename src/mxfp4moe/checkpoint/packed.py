"""Packed layers as a checkpoint: a packed file, or a folder with one for each layer and an index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mxfp4moe.checkpoint._checkpoint import Checkpoint, LayerInfo
from mxfp4moe.checkpoint._json import read_object, shorten
from mxfp4moe.checkpoint._parts import ExpertWeights, LayerParts, Routing
from mxfp4moe.errors import PackedFormatError
from mxfp4moe.packed_file import FOLDER_INDEX, is_packed_file

if TYPE_CHECKING:
    from mxfp4moe.layer import MoELayer
    from mxfp4moe.packing import PackedExperts

_Layer = TypeVar("_Layer", bound="MoELayer")

_VERSION = 1
_MAX_LAYERS = 100_000


def is_packed(path: Path) -> bool:
    """Whether `path` is a packed file or a packed folder."""
    try:
        return is_packed_file(path) or (path / FOLDER_INDEX).is_file()
    except OSError:  # paths that are no paths are refused by name elsewhere
        return False


def layer_file_name(layer: int) -> str:
    """The name of the file of a layer in a packed folder."""
    return f"layer-{layer:05d}.packed"


def write_index(folder: Path, model: Checkpoint) -> None:
    """Write the index of a packed folder that has a file for each layer of `model`."""
    index = {
        "packed_layers": _VERSION,
        "model_type": model.model_type,
        "num_layers": model.num_layers,
        "layers": {str(layer): layer_file_name(layer) for layer in model.moe_layers},
    }
    (folder / FOLDER_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


class PackedCheckpoint(Checkpoint):
    """A packed file of one layer, or a packed folder; `open_layer` maps its files, `read_layer` unpacks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[int, Path] = {}
        if path.is_dir():
            self._read_index(path / FOLDER_INDEX)
            first = self._open(next(iter(self._files)), _layer_class(), False)
        else:
            first = _layer_class().open(path)
            number = first.layer_number or 0
            self._files, self.num_layers, self.model_type = {number: path}, number + 1, "packed layer"
        self.moe_layers = tuple(self._files)
        self.hidden_size, self.intermediate_size = first.hidden_size, first.intermediate_size
        shared = first.shared_experts
        self.shared_intermediate_size = 0 if shared is None else shared.intermediate_size
        self.num_experts, self.top_k = first.num_experts, first.top_k
        self.activation, self.alpha, self.limit = first.activation, first.alpha, first.limit

    def open_layer(self, layer: int, layer_class: type[_Layer], verify: bool = False) -> _Layer:
        """Layer `layer`, its weights memory-mapped; `layer_class` is `MoELayer`."""
        return self._open(self.check_layer(layer), layer_class, verify)

    @property
    def paths(self) -> list[Path]:
        """The packed files."""
        return list(self._files.values())

    def describe_layer(self, layer: int) -> LayerInfo:
        """What MoE layer `layer` holds."""
        opened = self.open_layer(layer, _layer_class())
        shared = opened.shared_experts
        shared_nbytes = 0 if shared is None else shared.nbytes
        return LayerInfo(
            layer=layer,
            format=opened.experts.format,
            source="packed",
            routing=str(Routing(str(opened.routing), dict(opened.routing_arguments))),
            nbytes=opened.experts.nbytes + shared_nbytes,
            shared_source=None if shared is None else f"packed {shared.format}",
            shared_nbytes=shared_nbytes,
        )

    def _open(self, layer: int, layer_class: type[_Layer], verify: bool) -> _Layer:
        path = self._files[layer]
        result = layer_class.open(path, verify=verify)
        if result.layer_number not in (None, layer):
            raise PackedFormatError(f"{path}: expected layer {layer}, got layer {result.layer_number}")
        return result

    def _read_layer(self, layer: int) -> LayerParts:
        opened = self._open(layer, _layer_class(), False)
        shared = opened.shared_experts
        assert isinstance(opened.routing, str)
        return LayerParts(
            hidden_size=opened.hidden_size,
            intermediate_size=opened.intermediate_size,
            num_experts=opened.num_experts,
            top_k=opened.top_k,
            experts=_unpack(opened.experts),
            router_weight=opened.router_weight,
            router_bias=opened.router_bias,
            routing=Routing(opened.routing, dict(opened.routing_arguments)),
            activation=opened.activation,
            alpha=opened.alpha,
            limit=opened.limit,
            routed_scaling_factor=opened.routed_scaling_factor,
            shared_experts=None if shared is None else _unpack(shared),
            shared_limit=opened.shared_limit,
        )

    def _read_index(self, path: Path) -> None:
        def error(expected: str, got: Any) -> PackedFormatError:
            return PackedFormatError(f"{path}: expected {expected}, got {shorten(got)}")

        try:
            index = read_object(path)
        except ValueError as invalid:
            raise PackedFormatError(str(invalid)) from None
        if index.get("packed_layers") != _VERSION:
            raise error(f"packed_layers {_VERSION}", index.get("packed_layers"))
        layers, num_layers = index.get("layers"), index.get("num_layers")
        if type(num_layers) is not int or not 1 <= num_layers <= _MAX_LAYERS:
            raise error(f"num_layers in [1, {_MAX_LAYERS}]", num_layers)
        # Only these names are followed: an index must not reach outside its folder.
        known = {str(layer): layer_file_name(layer) for layer in range(num_layers)}
        if not isinstance(layers, dict) or not layers or not layers.items() <= known.items():
            raise error(f"layers such as {{'0': '{layer_file_name(0)}'}}", layers)
        if not isinstance(index.get("model_type"), str):
            raise error("a string as model_type", index.get("model_type"))
        self._files = {layer: path.with_name(layers[str(layer)]) for layer in sorted(map(int, layers))}
        self.num_layers, self.model_type = num_layers, index["model_type"]


def _unpack(experts: PackedExperts) -> ExpertWeights:
    """The arrays that were packed, copied."""
    from mxfp4moe._packed import pack_arguments

    return ExpertWeights(experts.format, "packed", pack_arguments(experts))


def _layer_class() -> type[MoELayer]:
    from mxfp4moe.layer import MoELayer  # which imports this package

    return MoELayer
