"""A decoder in a packed folder, beside the packed layers of its blocks, as docs/packed-files.md has it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import check_shape, value_error
from mxfp4moe._files import atomic_folder
from mxfp4moe._json import shorten
from mxfp4moe.checkpoint.packed import PackedCheckpoint, layer_file_name, write_index
from mxfp4moe.errors import PackedFormatError
from mxfp4moe.experts.packed_experts import PackedExperts
from mxfp4moe.experts.residence import MAPPED, Residence
from mxfp4moe.layer import MoELayer
from mxfp4moe.layer_file import open_layer
from mxfp4moe.layer_values import ROUTER_DTYPES
from mxfp4moe.linear import PackedLinear
from mxfp4moe.model.decoder import Attention, Decoder, DecoderLayer, Ends
from mxfp4moe.model.description import DecoderDescription
from mxfp4moe.packed.container import FOLDER_INDEX, PackedFile, Part, write_packed_file
from mxfp4moe.packed.kinds import DECODER, DECODER_LAYER, file_meta, open_packed_file

DECODER_FILE = "decoder.packed"
_TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files of a model folder that texts need, and that a packed folder gets copies of."""

_Weights = TypeVar("_Weights", PackedLinear, PackedExperts)
_VECTORS = ("input_norm", "post_norm", "q_norm", "k_norm", "sinks")
_QKV, _OUTPUT, _EXPERTS = "qkv_", "output", "experts"


def layer_part_name(layer: int) -> str:
    """The name of the file with all of a layer but its mixture of experts."""
    return f"decoder-{layer:05d}.packed"


def copy_text_files(source: Path, folder: Path) -> None:
    """Copy what texts need, as far as the folder `source` has it."""
    for name in _TEXT_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def write_layer(folder: Path, number: int, layer: DecoderLayer) -> None:
    """Write a layer: its mixture of experts, if it has one, to a file of its own."""
    attention = layer.attention
    vectors = {name: getattr(attention, name) for name in _VECTORS if name != "post_norm"}
    vectors["post_norm"] = layer.post_norm
    parts = [Part(name, vectors[name]) for name in _VECTORS if vectors[name] is not None]
    packed: dict[str, Any] = {f"{_QKV}{i}": matrix for i, matrix in enumerate(attention.projections)}
    packed[_OUTPUT] = attention.output
    if isinstance(layer.block, MoELayer):
        layer.block.save(folder / layer_file_name(number))
    else:
        packed[_EXPERTS] = layer.block
    specs = {name: weights.spec.to_json() for name, weights in packed.items()}
    for name, weights in packed.items():
        parts += weights._file_parts(name)
    write_packed_file(
        folder / layer_part_name(number),
        file_meta(DECODER_LAYER, {"layer_number": number}) | specs,
        parts,
    )


def write_ends(folder: Path, decoder: DecoderDescription, ends: Ends) -> None:
    """Write the description, and what stands before and after the layers."""
    parts = [Part("embedding", ends.embedding), Part("final_norm", ends.final_norm)]
    parts += ends.head._file_parts("head")
    meta = file_meta(DECODER, {"decoder": decoder.to_json()}) | {"head": ends.head.spec.to_json()}
    write_packed_file(folder / DECODER_FILE, meta, parts)


def save_decoder(decoder: Decoder, path: str | os.PathLike[str], source: str | None, replace: bool) -> None:
    """Write a decoder to a packed folder at `path`, with the files for texts of the folder `source`."""
    decoder = decoder.with_activation_format(None)  # an option of calls, which `open` takes anew
    with _folder(Path(path), replace) as folder:
        for number, layer in enumerate(decoder.layers):
            write_layer(folder, number, layer)
        write_ends(folder, decoder.description, decoder.ends())
        blocks = [i for i, layer in enumerate(decoder.layers) if isinstance(layer.block, MoELayer)]
        write_index(folder, decoder.description.model_type, len(decoder.layers), blocks)
        if source is not None:
            copy_text_files(Path(source), folder)


@contextmanager
def _folder(path: Path, replace: bool) -> Iterator[Path]:
    """A folder that gets the name `path` at the end."""
    if path.exists() and not (replace and (path / FOLDER_INDEX).is_file()):
        expected = f"a packed folder, with {FOLDER_INDEX}" if replace else "nothing at that path"
        raise value_error(str(path), expected, "a folder" if path.is_dir() else "a file")
    with atomic_folder(path, replace=replace) as folder:
        yield folder


def open_decoder(model: PackedCheckpoint, verify: bool = False, residence: Residence = MAPPED) -> Decoder:
    """The decoder of a packed folder, whose weights are mapped unless `residence` asks for more."""
    folder = model.path
    if not (folder / DECODER_FILE).is_file():
        expected = f"a packed folder of a whole model, with {DECODER_FILE}"
        raise PackedFormatError(f"{folder}: expected {expected}, got {model!r}")
    file = open_packed_file(folder / DECODER_FILE, DECODER, verify)
    try:
        description = DecoderDescription.from_json(file.meta.get("decoder"))
    except (TypeError, ValueError) as error:
        raise PackedFormatError(f"{file.path}: {error}") from None
    if description.num_layers != model.num_layers:
        raise file.error(f"{model.num_layers} layers, as {FOLDER_INDEX} says", str(description.num_layers))
    hidden = description.hidden_size
    _check_parts(file, ("embedding", "final_norm"), ("head",))
    options = verify, residence
    layers = [_open_layer(model, description, number, options) for number in range(model.num_layers)]
    blocks = [layer.block for layer in layers if isinstance(layer.block, MoELayer)]
    for block, following in pairwise(blocks):
        block._precede(following)
    ends = Ends(
        _array(file, "embedding", (description.vocab_size, hidden)),
        _array(file, "final_norm", (hidden,)),
        _matrix(file, "head", (description.vocab_size, hidden), residence),
    )
    return Decoder(description, layers, ends)


def _open_layer(
    model: PackedCheckpoint, decoder: DecoderDescription, number: int, options: tuple[bool, Residence]
) -> DecoderLayer:
    verify, residence = options
    path, hidden = model.path / layer_part_name(number), decoder.hidden_size
    file = open_packed_file(path, DECODER_LAYER, verify)
    if file.meta.get("layer_number") != number:
        raise file.error(f"layer {number}", f"layer {shorten(file.meta.get('layer_number'))}")
    sizes = {"input_norm": hidden, "post_norm": hidden}
    if decoder.qk_norm != "none":
        whole = dict(zip(("q_norm", "k_norm"), decoder.projections, strict=False))
        sizes |= whole if decoder.qk_norm == "whole" else dict.fromkeys(whole, decoder.head_dim)
    if decoder.has_sinks:
        sizes["sinks"] = decoder.num_heads
    vectors = {name: _array(file, name, (size,)) for name, size in sizes.items()}
    names = [name for name in file.meta if name.startswith(_QKV)]
    blocks = () if number in model.moe_layers else (_EXPERTS,)
    _check_parts(file, sizes, (*names, _OUTPUT, *blocks))
    projections = tuple(_weights(PackedLinear, file, name, residence) for name in names)
    rows = sum(each.shape[0] for each in projections)
    if rows != sum(decoder.projections) or any(each.shape[1] != hidden for each in projections):
        raise file.error(f"matrices with {sum(decoder.projections)} rows of {hidden}", f"{rows} rows")
    post_norm = vectors.pop("post_norm")
    output = _matrix(file, _OUTPUT, (hidden, decoder.projections[0]), residence)
    attention = Attention(projections=projections, output=output, **vectors)
    return DecoderLayer(attention, post_norm, _open_block(model, file, number, (hidden, verify, residence)))


def _open_block(
    model: PackedCheckpoint, file: PackedFile, number: int, options: tuple[int, bool, Residence]
) -> MoELayer | PackedExperts:
    hidden, verify, residence = options
    block: MoELayer | PackedExperts
    if number in model.moe_layers:
        path = model.path / layer_file_name(number)
        block = MoELayer._of_description(open_layer(path, verify, None, residence), None, os.fspath(path))
        if block.expert_map is not None:
            raise file.error("layers with all of their experts beside it", f"a slice of layer {number}")
    else:
        block = _weights(PackedExperts, file, _EXPERTS, residence)
        if block.num_experts != 1:
            raise file.error("one expert, which every token goes to", str(block.num_experts))
    if block.hidden_size != hidden:
        raise file.error(f"hidden_size {hidden}", str(block.hidden_size))
    return block


def _check_parts(file: PackedFile, arrays: Collection[str], packed: Collection[str]) -> None:
    """Raise for a part that is neither one of these arrays nor of one of these packed matrices."""
    for name in file:
        if name not in arrays and name.partition("/")[0] not in packed:
            raise file.error(f"no parts but {', '.join((*arrays, *packed))}", shorten(name))


def _weights(kind: type[_Weights], file: PackedFile, name: str, residence: Residence) -> _Weights:
    weights = kind._from_file(file, name)
    return weights._local() if residence.is_local else weights


def _array(file: PackedFile, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """An array of floats; norms and sinks are float32."""
    array = file.get(name)
    if array is None or array.dtype not in (ROUTER_DTYPES if len(shape) > 1 else (np.float32,)):
        raise file.error(f"a part {name} of floats", "none" if array is None else str(array.dtype))
    try:
        check_shape(name, array, shape)
    except ValueError as error:
        raise PackedFormatError(f"{file.path}: {error}") from None
    return array


def _matrix(file: PackedFile, name: str, shape: tuple[int, int], residence: Residence) -> PackedLinear:
    matrix = _weights(PackedLinear, file, name, residence)
    if matrix.shape != shape:
        raise file.error(f"a matrix {name} of shape {shape}", str(matrix.shape))
    return matrix
