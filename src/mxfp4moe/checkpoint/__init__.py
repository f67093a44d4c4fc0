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
from mxfp4moe.checkpoint.model_type import ModelType
from mxfp4moe.checkpoint.models import MODELS, add_row
from mxfp4moe.checkpoint.packed import PackedCheckpoint, is_packed
from mxfp4moe.experts.weights import ExpertWeights
from mxfp4moe.layer_description import LayerDescription

__all__ = [
    "AnyExperts",
    "Checkpoint",
    "ExpertWeights",
    "LayerDescription",
    "LayerInfo",
    "ModelType",
    "get_model_type",
    "open",
    "read_layer",
    "register_model",
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


def get_model_type(name: str) -> ModelType:
    """Return the row of data that a model type is, for one of your own to be made from it.

    Parameters
    ----------
    name : str
        One of `supported_model_types`.

    Returns
    -------
    ModelType

    Raises
    ------
    TypeError, ValueError
        If there is no such type.

    Examples
    --------
    >>> import mxfp4moe as mx
    >>> mx.checkpoint.get_model_type("mixtral").names[0].block
    'block_sparse_moe'
    """
    if not isinstance(name, str):
        raise type_error("name", "a str", describe(name))
    if name not in MODELS:
        raise value_error("name", "one of mxfp4moe.checkpoint.supported_model_types()", describe(name))
    return MODELS[name]


def register_model(row: ModelType) -> None:
    """Make a model type known, so that checkpoints of it can be read.

    Parameters
    ----------
    row : ModelType
        All that the configuration and the tensors leave unsaid: from scratch, or `dataclasses.replace` of
        what `get_model_type` returns. Its parts are in `mxfp4moe.checkpoint.model_type`.

    Raises
    ------
    TypeError, ValueError
        If one of its names is registered already, or one of its attributes is wrong, which is named.

    Examples
    --------
    A type that is like Mixtral, but whose weights are not normalized unless its configuration says so, and
    with a gated shared expert:

    >>> import dataclasses
    >>> import mxfp4moe as mx
    >>> from mxfp4moe.checkpoint.model_type import Count, Flag, Routing, Shared
    >>> mx.register_model(
    ...     dataclasses.replace(
    ...         mx.checkpoint.get_model_type("mixtral"),
    ...         model_types=("my_mixtral",),
    ...         routing=Routing("topk_softmax", {"renormalize": Flag("norm_topk_prob", False)}),
    ...         shared=Shared(1, Count("shared_size"), is_gated=True),
    ...     )
    ... )
    >>> "my_mixtral" in mx.checkpoint.supported_model_types()
    True
    """
    add_row(row)


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
