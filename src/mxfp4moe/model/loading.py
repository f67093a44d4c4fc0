"""From a folder to a decoder: each layer is read, packed and let go of before the next one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

from mxfp4moe import checkpoint
from mxfp4moe._arguments import value_error
from mxfp4moe._progress import ProgressBar
from mxfp4moe.checkpoint import Checkpoint
from mxfp4moe.checkpoint.huggingface import HuggingFaceCheckpoint
from mxfp4moe.checkpoint.packed import PackedCheckpoint, kept_packed
from mxfp4moe.errors import PackedFormatError
from mxfp4moe.experts.packed_experts import PackedExperts
from mxfp4moe.experts.quantizing import QuantizeFormat, pack_weights
from mxfp4moe.experts.residence import MAPPED, Residence
from mxfp4moe.layer import MoELayer
from mxfp4moe.layer_description import sliced
from mxfp4moe.model.configuration import read_decoder
from mxfp4moe.model.decoder import Attention, Decoder, DecoderLayer, Ends
from mxfp4moe.model.decoder_type import DECODERS
from mxfp4moe.model.files import DECODER_FILE, open_decoder
from mxfp4moe.model.packing import pack_matrices, pack_matrix
from mxfp4moe.model.weights import DecoderReader, is_whole

_Part = TypeVar("_Part")
ChooseExperts = Callable[[int], Sequence[int]]


class DecoderLoader:
    """The decoder of a checkpoint, part by part; all that does not depend on weights is checked at once.

    Parameters
    ----------
    model : Checkpoint
    quantize, quantize_dense : str or None
        The formats that experts, and all other matrices, are quantized to.
    choose : callable, optional
        The ids of the experts to hold of each layer, of which there are so many. All if not given.
    """

    def __init__(
        self,
        model: Checkpoint,
        quantize: QuantizeFormat | None,
        quantize_dense: QuantizeFormat | None,
        choose: ChooseExperts | None = None,
    ) -> None:
        if not isinstance(model, HuggingFaceCheckpoint):
            expected = "a Hugging Face model folder, for a whole model"
            raise value_error(str(model.path), expected, type(model).__name__)
        self.description, options = read_decoder(model)
        self._model, self._reader = model, DecoderReader(model, self.description, options)
        self._reader.check_ends()
        self._quantize, self._dense, self._choose = quantize, quantize_dense, choose

    def ends(self) -> Ends:
        """What stands before and after the layers; the embedding is a copy in memory."""
        with self._named("lm_head"):
            head = pack_matrix(self._reader.head(), self._dense)
        self._model.folder.release()
        ends = Ends(np.array(self._reader.embedding()), self._reader.final_norm(), head)
        self._model.folder.release()
        return ends

    def layer(self, number: int) -> DecoderLayer:
        """A layer, packed."""
        vectors, projections, output = self._reader.attention(number)
        post_norm = vectors.pop("post_norm")
        with self._named(f"layer {number}, self_attn"):
            qkv, out = pack_matrices(projections, self._dense), pack_matrix(output, self._dense)
        del projections, output
        attention = Attention(projections=qkv, output=out, **vectors)
        layer = DecoderLayer(attention, post_norm, self._block(number))
        self._model.folder.release()
        return layer

    @contextmanager
    def _named(self, place: str) -> Iterator[None]:
        """Let errors of packing, which name an argument, name the file and the place of a matrix too."""
        try:
            yield
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self._model.path}, {place}: {error}") from error

    def _block(self, number: int) -> MoELayer | PackedExperts:
        if number in self._model.moe_layers:
            ids = None if self._choose is None else self._choose(self._model.num_experts)
            description = sliced(self._model.read_layer(number), ids)
            shared = description.shared_experts
            is_dense = shared is not None and shared.format == "bf16"
            return MoELayer._of_description(
                description,
                self._quantize,
                str(self._model.path),
                quantize_shared=self._dense if is_dense else None,
            )
        weights = self._reader.dense(number)
        with self._named(f"layer {number}, mlp"):
            return pack_weights(weights, self._dense)


def load_decoder(
    path: str | os.PathLike[str],
    quantize: QuantizeFormat | None,
    quantize_dense: QuantizeFormat | None,
    progress: bool | None,
    choose: ChooseExperts | None = None,
    residence: Residence = MAPPED,
) -> Decoder:
    """The decoder of the model folder, or of the packed folder, at `path`.

    With `choose`, layers of a model folder hold the experts that it names alone. `residence` is for packed
    ones.
    """
    model = checkpoint.open(path)
    if residence != MAPPED:
        model = kept_packed(model, residence)
    if isinstance(model, PackedCheckpoint):
        for name, value in (("quantize", quantize), ("quantize_dense", quantize_dense)):
            if value is not None:
                raise value_error(name, "None for a model that is packed", repr(value))
        return open_decoder(model, residence=residence)
    loader = DecoderLoader(model, quantize, quantize_dense, choose)
    count = loader.description.num_layers
    shown = sys.stderr.isatty() if progress is None else progress
    bar = ProgressBar("loading", count + 1, f"{count} layers") if shown else None

    def counted(part: _Part) -> _Part:
        if bar is not None:
            bar.advance(1)
        return part

    # Embedding and head, the largest tensors, come first, while little else is in memory.
    ends = counted(loader.ends())
    layers = [counted(loader.layer(number)) for number in range(count)]
    return Decoder(loader.description, layers, ends)


def find_whole_model(
    model: Checkpoint, quantize: QuantizeFormat | None, quantize_dense: QuantizeFormat | None
) -> DecoderLoader | Decoder | None:
    """What packs the whole of a model; None if it is of no type that can be run, or has experts alone."""
    if isinstance(model, PackedCheckpoint):
        return open_decoder(model) if (model.path / DECODER_FILE).is_file() else None
    if isinstance(model, HuggingFaceCheckpoint) and model.model_type in DECODERS and is_whole(model.folder):
        return DecoderLoader(model, quantize, quantize_dense)
    return None


def open_packed_decoder(path: str | os.PathLike[str], verify: bool, residence: Residence) -> Decoder:
    """The decoder of the packed folder at `path`."""
    model = checkpoint.open(path)
    if not isinstance(model, PackedCheckpoint):
        expected = "a packed folder, which mxfp4moe pack writes"
        raise PackedFormatError(f"{model.path}: expected {expected}, got a model that is not packed")
    return open_decoder(model, verify, residence)
