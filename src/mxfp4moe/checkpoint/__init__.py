"""Reading MoE layers from models on disk.

`open` returns a `Checkpoint`, `read_layer` one layer of it. Two tables keep apart what may be combined:
`mxfp4moe.checkpoint.models` knows the model types (configuration, names of tensors, routing), and
`mxfp4moe.checkpoint.schemes` the ways in which weights are quantized. Each entry is a small module.
"""

from __future__ import annotations

import os
from pathlib import Path

from mxfp4moe._arguments import check_layer_number, describe, type_error, value_error
from mxfp4moe._json import missing_model_error
from mxfp4moe.checkpoint._checkpoint import AnyExperts, Checkpoint, LayerInfo
from mxfp4moe.checkpoint.gguf import GgufCheckpoint, is_gguf_file
from mxfp4moe.checkpoint.huggingface import HuggingFaceCheckpoint
from mxfp4moe.checkpoint.model_folder import ModelFolder
from mxfp4moe.checkpoint.models import MODELS
from mxfp4moe.checkpoint.packed import PackedCheckpoint, is_packed
from mxfp4moe.experts.weights import ExpertWeights
from mxfp4moe.layer_description import LayerDescription

__all__ = [
    "AnyExperts",
    "Checkpoint",
    "ExpertWeights",
    "LayerDescription",
    "LayerInfo",
    "open",
    "read_layer",
    "supported_model_types",
]


def supported_model_types() -> tuple[str, ...]:
    """The ``model_type`` values of config.json that can be read.

    Returns
    -------
    tuple of str

    Examples
    --------
    >>> import mxfp4moe as mx
    >>> "gpt_oss" in mx.checkpoint.supported_model_types()
    True
    """
    return tuple(MODELS)


def open(path: str | os.PathLike[str]) -> Checkpoint:
    """Open the model at `path` and read its metadata.

    Parameters
    ----------
    path : str or os.PathLike
        A Hugging Face model folder (config.json and safetensors files), a GGUF file (of one in several
        parts, any of them), a folder that ``mxfp4moe pack`` wrote, or a packed file of a layer.

    Returns
    -------
    Checkpoint

    Raises
    ------
    FileNotFoundError
        If the folder or one of its files is missing.
    TypeError, ValueError
        If `path` is no path, or the configuration is not as expected.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> w13 = mx.quantize_mxfp4(np.ones((4, 64, 96), np.float32))
    >>> w2 = mx.quantize_mxfp4(np.ones((4, 96, 32), np.float32))
    >>> layer = mx.MoELayer(mx.pack_experts(*w13, *w2), np.ones((4, 96), np.float32), top_k=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "layer.packed")
    ...     layer.save(path)
    ...     model = mx.checkpoint.open(path)
    >>> model.num_experts, model.top_k, model.moe_layers
    (4, 2, (0,))
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise type_error("path", "a str or os.PathLike", describe(path))
    if "\0" in os.fspath(path):
        raise value_error("path", "no null character", describe(os.fspath(path)))
    if is_packed(Path(path)):
        return PackedCheckpoint(Path(path))
    if is_gguf_file(Path(path)):
        if not os.path.lexists(path):
            raise missing_model_error(Path(path), "a file")
        return GgufCheckpoint(Path(path))
    return HuggingFaceCheckpoint(ModelFolder(path))


def read_layer(path: str | os.PathLike[str], layer: int = 0) -> LayerDescription[AnyExperts]:
    """Read MoE layer `layer` of the checkpoint at `path`, without packing it.

    Parameters
    ----------
    path : str or os.PathLike
        What `open` takes.
    layer : int
        Counted from 0, dense layers included.

    Returns
    -------
    LayerDescription
        Its arrays are read-only views of the memory-mapped files where possible.

    Raises
    ------
    FileNotFoundError
        If the folder or one of its files is missing.
    TypeError, ValueError
        If an argument, the configuration, a file or a tensor is not as expected.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> w13 = mx.quantize_mxfp4(np.ones((4, 64, 96), np.float32))
    >>> w2 = mx.quantize_mxfp4(np.ones((4, 96, 32), np.float32))
    >>> layer = mx.MoELayer(mx.pack_experts(*w13, *w2), np.ones((4, 96), np.float32), top_k=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "layer.packed")
    ...     layer.save(path)
    ...     description = mx.checkpoint.read_layer(path)
    >>> description.routing, description.router_weight.shape
    ('topk_softmax', (4, 96))
    """
    layer = check_layer_number("layer", layer)
    return open(path).read_layer(layer)
