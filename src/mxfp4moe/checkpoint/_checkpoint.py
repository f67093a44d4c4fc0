"""A checkpoint that has been opened: what it is, which layers it has, and each layer's parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from mxfp4moe._arguments import check_layer_number, format_ranges, value_error
from mxfp4moe.experts.activation import Activation
from mxfp4moe.experts.packed_experts import PackedExperts
from mxfp4moe.experts.weights import ExpertWeights
from mxfp4moe.formats import format_text
from mxfp4moe.layer_description import LayerDescription
from mxfp4moe.layer_texts import later_texts

AnyExperts = ExpertWeights | PackedExperts


@dataclass(frozen=True)
class LayerInfo:
    """What one MoE layer of a checkpoint holds.

    Attributes
    ----------
    layer : int
    format : str
        The format that its experts are packed in.
    source : str
        How the checkpoint stores them, in words.
    routing : str
        The routing function and its arguments, in words.
    nbytes : int
        Size of the experts in the checkpoint, shared ones included.
    shared_source : str or None
        How the checkpoint stores the shared expert, in words.
    shared_nbytes : int
        Size of the shared expert, 0 without one.
    special : str
        The arguments of `MoELayer` that few layers have, as far as this one has them, in words.

    Examples
    --------
    >>> import mxfp4moe as mx
    >>> info = mx.checkpoint.LayerInfo(0, "mxfp4", "packed mxfp4", "topk_softmax()", 100, None, 0)
    >>> info.format
    'mxfp4'
    """

    layer: int
    format: str
    source: str
    routing: str
    nbytes: int
    shared_source: str | None
    shared_nbytes: int
    special: str = ""


class Checkpoint(ABC):
    """A model on disk. `open` makes one; nothing but its metadata is read before a layer is asked for.

    Attributes
    ----------
    path : pathlib.Path
    model_type : str
        ``model_type`` of config.json, or ``general.architecture`` of a GGUF file.
    hidden_size, intermediate_size, num_experts, top_k : int
        The sizes of the MoE layers.
    shared_intermediate_size : int
        The intermediate size of the shared expert; 0 if there is none.
    num_layers : int
        The number of layers of the model, dense ones included.
    moe_layers : tuple of int
        The numbers of the layers that have experts.
    activation : str
    alpha, limit : float or None

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
    ...     model.describe_layer(model.check_layer(0)).format, model.read_layer(0).top_k
    ('mxfp4', 2)
    """

    path: Path
    model_type: str
    hidden_size: int
    intermediate_size: int
    shared_intermediate_size: int
    num_experts: int
    top_k: int
    num_layers: int
    moe_layers: tuple[int, ...]
    activation: Activation
    alpha: float | None
    limit: float | None

    def read_layer(self, layer: int = 0) -> LayerDescription[AnyExperts]:
        """Read one layer without packing it; the experts of packed files are packed already.

        Parameters
        ----------
        layer : int
            Counted from 0 over all layers of the model, dense ones included.

        Returns
        -------
        LayerDescription

        Raises
        ------
        FileNotFoundError
            If one of the files is missing.
        TypeError, ValueError
            If the layer has no experts, or a file or a tensor is not as expected.
        """
        number = self.check_layer(layer)
        try:
            return self._read_layer(number)
        except ValueError as error:
            # What a layer is checked for as a whole knows of no file.
            if str(self.path) in str(error):
                raise
            raise ValueError(f"{self.path}, layer {number}: {error}") from None

    def describe_layer(self, layer: int) -> LayerInfo:
        """Say what a layer holds; its tensors are checked, but their data is not read.

        Parameters
        ----------
        layer : int
            As for `read_layer`.

        Returns
        -------
        LayerInfo

        Raises
        ------
        FileNotFoundError, TypeError, ValueError
            As `read_layer`.
        """
        description = self.read_layer(layer)
        shared = description.shared_experts
        return LayerInfo(
            layer=layer,
            format=format_text(description.experts.format),
            source=_stored(description.experts),
            routing=description.routing_text,
            nbytes=description.nbytes,
            shared_source=None if shared is None else _stored(shared),
            shared_nbytes=0 if shared is None else shared.nbytes,
            special=", ".join(later_texts(description)),
        )

    def check_layer(self, layer: int) -> int:
        """Return `layer` as an int, if it is the number of a layer that has experts.

        Parameters
        ----------
        layer : int
            As for `read_layer`.

        Returns
        -------
        int

        Raises
        ------
        TypeError, ValueError
            If it is no such number.
        """
        number = check_layer_number("layer", layer)
        if number >= self.num_layers:
            raise value_error("layer", f"an integer in [0, {self.num_layers - 1}]", str(number))
        if number not in self.moe_layers:
            expected = f"one that has experts ({format_ranges(self.moe_layers) or 'this model has none'})"
            raise value_error("layer", expected, f"{number}, a dense layer")
        return number

    @abstractmethod
    def _read_layer(self, layer: int) -> LayerDescription[AnyExperts]: ...

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({str(self.path)!r}, {self.model_type}, "
            f"MoE layers {format_ranges(self.moe_layers) or 'none'})"
        )


def _stored(experts: AnyExperts) -> str:
    """How the checkpoint stores experts, in words."""
    return experts.source if isinstance(experts, ExpertWeights) else f"packed {format_text(experts.format)}"
