"""Packed layers as a checkpoint: a packed file, or a folder with one for each layer and an index."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from mxfp4moe._arguments import message, value_error
from mxfp4moe._json import read_object, shorten
from mxfp4moe.checkpoint._checkpoint import Checkpoint
from mxfp4moe.errors import PackedFormatError
from mxfp4moe.experts.packed_experts import PackedExperts
from mxfp4moe.experts.residence import MAPPED, Residence
from mxfp4moe.experts.selection import ExpertIds
from mxfp4moe.layer_description import LayerDescription
from mxfp4moe.layer_file import open_layer
from mxfp4moe.packed.container import FOLDER_INDEX, is_packed_file

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


def write_index(folder: Path, model_type: str, num_layers: int, moe_layers: Sequence[int]) -> None:
    """Write the index of a packed folder that has a file for each of `moe_layers`."""
    index = {
        "packed_layers": _VERSION,
        "model_type": model_type,
        "num_layers": num_layers,
        "layers": {str(layer): layer_file_name(layer) for layer in moe_layers},
    }
    (folder / FOLDER_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def kept_packed(
    model: Checkpoint, residence: Residence, experts: ExpertIds | None = None
) -> PackedCheckpoint:
    """What `_kept` returns of a checkpoint that must be packed."""
    if not isinstance(model, PackedCheckpoint):
        name = "resident" if residence.is_local else "memory_limit"
        expected = "a packed folder, which mxfp4moe pack writes"
        raise value_error(name, expected, f"{model.path}, which is none")
    return model._kept(residence, experts)


class PackedCheckpoint(Checkpoint):
    """A packed file of one layer, or a packed folder; `read_layer` maps its files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._residence = MAPPED
        self._experts: ExpertIds | None = None
        self._files: dict[int, Path] = {}
        if path.is_dir():
            self._read_index(path / FOLDER_INDEX)
            first = self._read_layer(next(iter(self._files)))
        else:
            first = open_layer(path)
            number = first.layer_number or 0
            self._files, self.num_layers, self.model_type = {number: path}, number + 1, "packed layer"
        self.moe_layers = tuple(self._files)
        self.hidden_size, self.intermediate_size = first.hidden_size, first.intermediate_size
        shared = first.shared_experts
        self.shared_intermediate_size = 0 if shared is None else shared.intermediate_size
        self.num_experts, self.top_k = first.num_experts, first.top_k
        self.activation, self.alpha, self.limit = first.activation, first.alpha, first.limit

    @property
    def paths(self) -> list[Path]:
        """The packed files."""
        return list(self._files.values())

    def _kept(self, residence: Residence, experts: ExpertIds | None = None) -> PackedCheckpoint:
        """The same checkpoint, whose layers have these experts alone, where `residence` wants them."""
        result = copy(self)
        result._residence, result._experts = residence, experts
        return result

    def _read_layer(self, layer: int) -> LayerDescription[PackedExperts]:
        path = self._files[layer]
        description = open_layer(path, experts=self._experts, residence=self._residence)
        if description.layer_number not in (None, layer):
            raise PackedFormatError(f"{path}: expected layer {layer}, got layer {description.layer_number}")
        return replace(description, layer_number=layer)

    def _read_index(self, path: Path) -> None:
        def error(expected: str, got: Any) -> PackedFormatError:
            return PackedFormatError(message(str(path), expected, shorten(got)))

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
