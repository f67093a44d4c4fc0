"""Reading MoE layers from model checkpoints, one small file for each kind of checkpoint.

To add a kind: write a module with `MODEL_TYPES`, the ``model_type`` values of config.json that it reads, and
``read_layer(folder, layer)``, and name it in `_FORMATS`.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from typing import Any

from mxfp4moe.checkpoint import gpt_oss
from mxfp4moe.checkpoint._parts import LayerParts
from mxfp4moe.checkpoint.huggingface import ModelFolder
from mxfp4moe.errors import describe, join_choices, type_error, value_error

__all__ = ["LayerParts", "read_layer", "supported_model_types"]

_FORMATS = (gpt_oss,)

_READERS: dict[str, Callable[[ModelFolder, int], LayerParts]] = {
    model_type: module.read_layer for module in _FORMATS for model_type in module.MODEL_TYPES
}


def supported_model_types() -> tuple[str, ...]:
    """The ``model_type`` values of config.json that `read_layer` reads."""
    return tuple(_READERS)


def read_layer(path: str | os.PathLike[str], layer: int = 0) -> LayerParts:
    """Read MoE layer `layer` of the checkpoint at `path`, without packing it.

    Parameters
    ----------
    path : str or os.PathLike
        A Hugging Face model folder.
    layer : int

    Returns
    -------
    LayerParts
        Its arrays are read-only views of the memory-mapped files.

    Raises
    ------
    FileNotFoundError
        If the folder or one of its files is missing.
    TypeError, ValueError
        If an argument, the configuration, a file or a tensor is not as expected.
    """
    layer = _check_layer(layer)
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise type_error("path", "a str or os.PathLike", describe(path))
    if "\0" in os.fspath(path):
        raise value_error("path", "no null character", describe(os.fspath(path)))
    folder = ModelFolder(path)
    model_type = folder.config.string("model_type")
    if model_type not in _READERS:
        raise folder.config.error("model_type", join_choices(map(repr, _READERS)), describe(model_type))
    read = _READERS[model_type]
    return read(folder, layer)


def _check_layer(layer: Any) -> int:
    try:
        if isinstance(layer, bool):
            raise TypeError
        number = operator.index(layer)
    except TypeError:
        raise type_error("layer", "an integer", describe(layer)) from None
    if number < 0:
        raise value_error("layer", "an integer of at least 0", str(number))
    return number
