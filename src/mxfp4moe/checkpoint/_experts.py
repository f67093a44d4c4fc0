"""The experts of a layer, and its shared expert, read as their schemes say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import cast, message, value_error
from mxfp4moe.checkpoint._fused import ExpertSizes, FusedLayout, fused_arrays, read_fused
from mxfp4moe.checkpoint._model import Model
from mxfp4moe.checkpoint._names import Block
from mxfp4moe.checkpoint._places import Part, Place, find_parts, usual_parts
from mxfp4moe.checkpoint.model_folder import ModelFolder, TensorError
from mxfp4moe.checkpoint.schemes import FLOATS, Matrix, Scheme, plain
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
    scheme = _common_scheme([Place(folder, name)], scheme)
    weight, scales, tensor_scale = scheme.read(folder, name, *shape)
    arguments: dict[str, Any] = {"weight": weight, "scales": scales, "tensor_scale": tensor_scale}
    arguments |= {"block_shape": scheme.block_shape, "format": scheme.format}
    return {key: value for key, value in arguments.items() if value is not None}


def read_floats(
    folder: ModelFolder, name: str, shape: tuple[int | None, ...], scheme: Scheme
) -> NDArray[Any]:
    """A tensor of floats; a matrix that is quantized all the same as the numbers that it stands for."""
    module, _, suffix = name.rpartition(".")
    if suffix == "weight" and len(shape) == 2 and folder.dtype(name) in _CODES:
        of_module = scheme.of(module)
        if of_module is not plain.SCHEME:
            return of_module.read_floats(folder, module, shape)  # type: ignore[arg-type]
    return folder.tensor(name, FLOATS, shape)


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


class _Read(NamedTuple):
    """A matrix of all experts, and its biases, if it has some."""

    matrices: list[Matrix]
    biases: list[NDArray[Any]]


def _read_parts(
    parts: Sequence[Part], scheme: Scheme, sizes: ExpertSizes, has_biases: bool = False
) -> ExpertWeights:
    """Experts with a tensor or a few for each matrix."""
    scheme = _common_scheme([place for part in parts for place in part.places], scheme)
    _check_sizes(parts[0].places[0], scheme, sizes)
    *first, down = (each for part in parts for each in _read_part(part, scheme, has_biases))
    arrays: dict[str, Any] = {
        "w13": _both([[m.weight for m in part.matrices] for part in first]),
        "w13_scales": _both([[m.scales for m in part.matrices] for part in first]),
        "w2": [m.weight for m in down.matrices],
        "w2_scales": [m.scales for m in down.matrices],
        **sizes.options,
    }
    if has_biases:
        arrays["w13_bias"] = np.concatenate([np.stack(part.biases) for part in first], axis=1)
        arrays["w2_bias"] = np.stack(down.biases)
    if scheme.format == "bf16":
        return _plain_experts(plain.with_scales(arrays), scheme.name, sizes)
    if scheme.block_shape is not None:
        arrays["block_shape"] = scheme.block_shape
    if down.matrices[0].tensor_scale is not None:
        scales = [[m.tensor_scale for m in part.matrices] for part in first]
        arrays["w13_tensor_scale"] = np.array(scales, np.float32).T.reshape(-1, *[2] * sizes.is_gated)
        arrays["w2_tensor_scale"] = np.array([m.tensor_scale for m in down.matrices], np.float32)
    return ExpertWeights(scheme.format, scheme.name, (sizes.hidden, sizes.intermediate), arrays)


def _both(parts: Sequence[list[Any]]) -> Any:
    """Gate and up as a pair; or up, where there is no gate."""
    return tuple(parts) if len(parts) > 1 else parts[0]


def _check_sizes(place: Place, scheme: Scheme, sizes: ExpertSizes) -> None:
    multiple = scheme.multiple_of
    if sizes.hidden % multiple or sizes.intermediate % multiple:
        expected = f"rows and columns that are multiples of {multiple} in {scheme.name}"
        got = f"{sizes.intermediate} and {sizes.hidden}"
        raise TensorError(message(f"{place.tensors.path}: {place.name}", expected, got))


def _common_scheme(places: Sequence[Place], scheme: Scheme) -> Scheme:
    """The scheme of all these matrices: what is stored in floats was left out by the quantization."""
    found: dict[Scheme, str] = {}
    for tensors, name in places:
        is_plain = tensors.dtype(f"{name}.weight") in FLOATS
        found.setdefault(plain.SCHEME if is_plain else scheme.of(name), name)
    if len(found) > 1:
        kinds = " and ".join(f"{each.name} for {name}" for each, name in list(found.items())[:2])
        raise value_error(str(places[0].tensors.path), "experts of a layer that are all stored alike", kinds)
    return next(iter(found))


def _read_part(part: Part, scheme: Scheme, has_biases: bool) -> list[_Read]:
    """One matrix of all experts; of gate and up in one, each."""
    matrices = [scheme.read(*place, *part.shape) for place in part.places]
    biases = [_read_bias(place, part.shape[0]) for place in part.places] if has_biases else []
    if not part.gate_up:
        return [_Read(matrices, biases)]
    rows, block_rows = part.shape[0], (scheme.block_shape or (1,))[0] or 1
    if block_rows > 1 and (part.gate_up == "interleaved" or rows // 2 % block_rows):
        place = f"{part.places[0].tensors.path}: {part.places[0].name}"
        expected = f"gate and up of a multiple of {block_rows} rows each, one above the other"
        raise value_error(place, expected, f"{rows // 2} rows each, {part.gate_up}")
    return [
        _Read([_half(m, part, half) for m in matrices], [_rows(b, part, half) for b in biases])
        for half in range(2)
    ]


def _half(matrix: Matrix, part: Part, half: int) -> Matrix:
    """Gate or up of a matrix that is both."""
    scales = matrix.scales
    if scales is not None and len(scales) > 1:
        scales = _rows(scales, part, half)
    return matrix._replace(weight=_rows(matrix.weight, part, half), scales=scales)


def _rows(array: NDArray[Any], part: Part, half: int) -> NDArray[Any]:
    if part.gate_up == "interleaved":
        return array[half::2]
    middle = len(array) // 2
    return array[middle:] if half else array[:middle]


def _read_bias(place: Place, rows: int) -> NDArray[Any]:
    bias = place.tensors.tensor(f"{place.name}.bias", FLOATS, (rows,))
    # pack_experts takes no float16 biases; float32 holds every float16 value.
    return cast(bias, np.float32) if bias.dtype == np.float16 else bias
