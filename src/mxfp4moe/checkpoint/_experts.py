"""The experts of a layer, and its shared expert, read as their schemes say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import cast, message, value_error
from mxfp4moe.checkpoint._arrange import Stored, half_of_rows, halves
from mxfp4moe.checkpoint._fused import ExpertSizes, FusedLayout, fused_arrays, read_fused
from mxfp4moe.checkpoint._model import Model
from mxfp4moe.checkpoint._names import Block
from mxfp4moe.checkpoint._places import Part, Place, find_parts, usual_parts
from mxfp4moe.checkpoint.model_folder import ModelFolder, TensorError
from mxfp4moe.checkpoint.schemes import FLOATS, WEIGHTS, Scheme, plain
from mxfp4moe.experts.weights import ExpertWeights

_CODES = ("U8", "I8", "U32", "F8_E4M3")
"""Dtypes of ``weight`` where a matrix is quantized."""


def read_experts(folder: ModelFolder, block: Block, model: Model) -> ExpertWeights:
    """The experts of a block, wherever the checkpoint has their matrices."""
    sizes = model.expert_sizes
    if folder.dtype(block.fused[0]) in FLOATS:
        arrays = plain.with_scales(fused_arrays(model.read_fused(folder, block)))
        return _plain_experts(arrays, "plain floats, fused", sizes)
    names = model.expert_matrices(block)
    has_names = any(True for _ in folder.names_with(f"{names[0][0]}."))
    parts = None if has_names or model.num_weighted_shared else find_parts(folder, block, sizes)
    # Transformers saves matrices of LongCat's zero experts too, which nothing computes with.
    for expert in range(sizes.num_zero):
        for name in block.expert_matrices(model.num_experts + expert):
            folder.read.update(folder.names_with(f"{name}."))
    return _read_parts(parts or usual_parts(folder, names, sizes), model.scheme, sizes, model.has_biases)


def read_shared(folder: ModelFolder, block: Block, model: Model) -> ExpertWeights | None:
    """The shared expert of a block; None where there is none, or the router weighs them as others."""
    names, size = block.shared_matrices(), model.shared_size
    if model.num_weighted_shared:
        return None
    if not size:
        _check_no_shared(folder, block)
        return None
    sizes = model.expert_sizes._replace(num_experts=1, hidden=model.hidden_size, intermediate=size)
    if block.shared_fused[0] not in folder:
        parts = usual_parts(folder, [names], sizes)
        return _read_parts(parts, model.shared_scheme or model.scheme, sizes)
    fused = read_fused(folder, block.shared_fused, sizes, (FusedLayout(is_flat=True),))
    return _plain_experts(plain.with_scales(fused_arrays([fused])), "plain floats, fused", sizes)


def read_dense(
    folder: ModelFolder, names: tuple[str, ...], sizes: ExpertSizes, scheme: Scheme
) -> ExpertWeights:
    """The block of a layer without experts as one expert; `names` are those of its matrices."""
    return _read_parts(usual_parts(folder, [names], sizes), scheme, sizes)


def read_matrix(folder: ModelFolder, name: str, shape: tuple[int, int], scheme: Scheme) -> dict[str, Any]:
    """A matrix that stands alone: the arguments of `mxfp4moe.pack_linear`, but for the bias."""
    place = Place(folder, name)
    scheme = _scheme_of(place, scheme)
    _check_columns(place, scheme, shape[1])
    matrix = scheme.read(folder, name, *shape)
    if scheme.decode is not None:
        matrix = scheme.decode(matrix)
    if matrix.order is not None:
        expected = "groups of neighbours (no activation order) in a matrix beside the experts"
        raise TensorError(message(f"{folder.path}: {name}", expected, "others"))
    if matrix.zero_points is not None:  # which say the same as the offsets
        matrix = matrix._replace(offsets=None)
    arguments = matrix._asdict() | {"block_shape": scheme.block_shape, "format": scheme.format}
    return {key: value for key, value in arguments.items() if value is not None}


def read_floats(
    folder: ModelFolder, name: str, shape: tuple[int | None, ...], scheme: Scheme
) -> NDArray[Any]:
    """A tensor of floats; a matrix that is quantized all the same as the numbers that it stands for."""
    if len(shape) == 2 and is_quantized(folder, name):
        module = name.removesuffix(".weight")
        of_module = scheme.of(module)
        if of_module is not plain.SCHEME:
            _check_columns(Place(folder, module), of_module, shape[1])  # type: ignore[arg-type]
            return of_module.read_floats(folder, module, shape)  # type: ignore[arg-type]
    return folder.tensor(name, FLOATS, shape)


def is_quantized(folder: ModelFolder, name: str) -> bool:
    """Whether a tensor called ``weight`` has codes, or is missing where others stand for it."""
    module, _, suffix = name.rpartition(".")
    if suffix != "weight":
        return False
    dtype = folder.dtype(name)
    return dtype in _CODES if dtype else any(f"{module}.{other}" in folder for other in WEIGHTS)


def _check_no_shared(folder: ModelFolder, block: Block) -> None:
    """Raise if there is a shared expert; transformers saves one of no rows in some models without one."""
    weights = [f"{name}.weight" for name in block.shared_matrices()]
    for name in (*weights, f"{block.shared_matrices()[0]}.weight_packed", *block.shared_fused):
        if name in folder:
            if 0 not in folder.shape(name):
                expected = "no shared experts, as config.json says"
                raise TensorError(message(str(folder.path), expected, f"a tensor {name}"))
            folder.read.add(name)


def _plain_experts(arrays: dict[str, Any], source: str, sizes: ExpertSizes) -> ExpertWeights:
    return ExpertWeights("bf16", source, (sizes.hidden, sizes.intermediate), arrays, plain.to_bfloat16)


def _read_parts(
    parts: Sequence[Part], scheme: Scheme, sizes: ExpertSizes, has_biases: bool = False
) -> ExpertWeights:
    """Experts with a tensor or a few for each matrix."""
    schemes = [[_scheme_of(place, scheme) for place in part.places] for part in parts]
    stored = Stored(parts, schemes)
    stored.check_alike()
    for part, of_part in zip(parts, schemes, strict=True):
        for place, each in zip(part.places, of_part, strict=True):
            _check_columns(place, each, part.shape[1])
            if not has_biases:
                _check_no_bias(place, part.shape[0])
        _check_ordered(part, of_part)
    biases = [[_read_bias(place, part.shape[0]) for place in part.places] for part in parts if has_biases]
    *first, down = (
        [each.read(*place, *part.shape) for place, each in zip(part.places, of_part, strict=True)]
        for part, of_part in zip(parts, schemes, strict=True)
    )
    arrays: dict[str, Any] = {"w13": first, "w2": down, **sizes.options}
    if has_biases:
        *of_first, of_down = (
            half
            for part, each in zip(parts, biases, strict=True)
            for half in halves(part, each, half_of_rows)
        )
        arrays["w13_bias"] = np.concatenate([np.stack(each) for each in of_first], axis=1)
        arrays["w2_bias"] = np.stack(of_down)
    found = dict.fromkeys(each for of_part in schemes for each in of_part)
    source = " and ".join(dict.fromkeys(each.name for each in found))
    if stored.format == "bf16":
        return _plain_experts(plain.with_scales(stored(arrays)), source, sizes)
    shape = (sizes.hidden, sizes.intermediate)
    if isinstance(stored.format, tuple) or any(
        each.decode is not None or each.format != stored.format for each in found
    ):
        return ExpertWeights(stored.format, source, shape, arrays, stored)
    return ExpertWeights(stored.format, source, shape, stored(arrays))


def _scheme_of(place: Place, scheme: Scheme) -> Scheme:
    """The scheme of a matrix: what is stored in floats was left out by the quantization."""
    is_plain = place.tensors.dtype(f"{place.name}.weight") in FLOATS
    return plain.SCHEME if is_plain else scheme.of(place.name)


def _check_columns(place: Place, scheme: Scheme, columns: int) -> None:
    if columns % scheme.multiple_of:
        expected = f"rows of a multiple of {scheme.multiple_of} in {scheme.name}"
        raise TensorError(message(f"{place.tensors.path}: {place.name}", expected, str(columns)))


def _check_ordered(part: Part, schemes: Sequence[Scheme]) -> None:
    """Raise if some experts have an order of activations and others have lost it."""
    pairs = [
        (place.tensors, f"{place.name}.{each.order}")
        for place, each in zip(part.places, schemes, strict=True)
        if each.order
    ]
    lost = [pair for pair in pairs if pair[1] not in pair[0]]
    if lost and len(lost) < len(pairs):
        tensors, name = lost[0]
        raise TensorError(message(str(tensors.path), f"a tensor {name}, as other experts have", "none"))


def _read_bias(place: Place, rows: int) -> NDArray[Any]:
    bias = place.tensors.tensor(f"{place.name}.bias", FLOATS, (rows,))
    # pack_experts takes no float16 biases; float32 holds every float16 value.
    return cast(bias, np.float32) if bias.dtype == np.float16 else bias


def _check_no_bias(place: Place, rows: int) -> None:
    """Raise if a matrix has a bias; old versions of AutoGPTQ store one of zeros for each."""
    name = f"{place.name}.bias"
    if name in place.tensors and place.tensors.tensor(name, FLOATS, (rows,)).any():
        expected = "no bias but zeros, as this model type has none"
        raise value_error(f"{place.tensors.path}: tensor {name}", expected, "others")
