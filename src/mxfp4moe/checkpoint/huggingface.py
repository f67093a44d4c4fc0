"""A Hugging Face model folder as a checkpoint: its model's facts applied to its tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import cast, message, value_error
from mxfp4moe.checkpoint._checkpoint import Checkpoint
from mxfp4moe.checkpoint._fused import ExpertSizes, FusedLayout, fused_arrays, read_fused
from mxfp4moe.checkpoint._model import Model, Rule, TensorSpec
from mxfp4moe.checkpoint._names import Block
from mxfp4moe.checkpoint.model_folder import ModelFolder, TensorError
from mxfp4moe.checkpoint.models import read_model
from mxfp4moe.checkpoint.schemes import FLOATS, Matrix, Scheme, plain
from mxfp4moe.experts.weights import ExpertWeights
from mxfp4moe.layer_description import LayerDescription


class HuggingFaceCheckpoint(Checkpoint):
    """A folder with config.json and safetensors files."""

    def __init__(self, folder: ModelFolder) -> None:
        config = folder.config
        self.path, self._folder = folder.path, folder
        self.model_type = config.string("model_type")
        self._model = model = read_model(config)
        self.hidden_size, self.intermediate_size = model.hidden_size, model.intermediate_size
        self.shared_intermediate_size = model.shared_size
        self.num_experts, self.top_k = model.num_experts, model.top_k
        self.activation, self.alpha, self.limit = model.activation, model.alpha, model.limit
        layers: Sequence[int] = (
            model.find_layers(folder) if model.num_layers is None else range(model.num_layers)
        )
        if not layers:
            router = Block(model.layers[0], model.names[0]).router
            raise value_error(str(self.path), f"a tensor {router}.weight", "none")
        self.num_layers = layers[-1] + 1
        self.moe_layers = tuple(layer for layer in layers if not model.is_dense(layer))
        if model.shared_is_optional and not any(map(self._has_shared, self.moe_layers[:1])):
            self._model, self.shared_intermediate_size = model.without_shared(), 0

    def check_layer(self, layer: int) -> int:
        """Return `layer` as an int, if it is the number of a layer that has experts."""
        try:
            number = super().check_layer(layer)
        except ValueError as error:
            found = self._model.has_block(self._folder, layer) if layer >= 0 else False
            fields = self._model.layer_fields if layer < self.num_layers else ("num_hidden_layers",)
            says = f"; config.json says so ({', '.join(fields) or 'all layers'})"
            contradicts = ", and a router of it is in the tensors" if found else ""
            raise ValueError(f"{error}{says}{contradicts}") from None
        return number

    def _has_shared(self, layer: int) -> bool:
        prefix = f"{self._model.find_block(self._folder, layer).shared}."
        return any(True for _ in self._folder.names_with(prefix))

    def _read_layer(self, layer: int) -> LayerDescription[ExpertWeights]:
        folder, model = self._folder.recording(), self._model
        block = model.find_block(folder, layer)
        try:
            description = LayerDescription(**self._parts(folder, block, layer))
        except TensorError as error:
            sizes = f"{model.sizes_text}, layers with experts: {', '.join(model.layer_fields) or 'all'}"
            raise ValueError(f"{error}; config.json has {sizes}") from None
        folder.check_all_read(sorted({prefix for each in model.blocks(layer) for prefix in each.prefixes()}))
        return description

    def _parts(self, folder: ModelFolder, block: Block, layer: int) -> dict[str, Any]:
        """The fields of a layer."""
        model, rule = self._model, self._model.rule(layer)
        shared = _read_shared(folder, block, model)
        router = (model.num_router_rows or model.num_experts, model.hidden_size)
        return {
            "experts": (model.read_experts or _read_experts)(folder, block, model),
            "router_weight": folder.tensor(f"{block.router}.weight", FLOATS, router),
            "top_k": model.top_k,
            "routing": rule.name,
            "routing_arguments": self._routing_arguments(folder, block, rule),
            "activation": model.activation,
            "alpha": model.alpha,
            "limit": model.limit,
            "routed_scaling_factor": model.routed_scaling_factor,
            "shared_experts": shared,
            "shared_limit": model.shared_limit if shared is not None else None,
            "layer_number": layer,
            **self._tensors(folder, block),
            **model.options,
            **model.by_layer(layer),
        }

    def _tensors(self, folder: ModelFolder, block: Block) -> dict[str, NDArray[Any]]:
        """The fields of a layer that are tensors, apart from the router."""
        model = self._model
        tensors = {name: _read_tensor(folder, block, name, spec) for name, spec in model.tensors.items()}
        if "router_scale" in tensors:
            # Gemma-4, which has it, also divides by the root of the hidden size.
            tensors["router_scale"] = cast(tensors["router_scale"], np.float32) * model.hidden_size**-0.5
        return tensors

    def _routing_arguments(self, folder: ModelFolder, block: Block, rule: Rule) -> dict[str, Any]:
        arguments = dict(rule.arguments)
        for argument, spec in rule.tensors.items():
            array = _read_tensor(folder, block, argument, spec)
            # The routing functions compute with these dtypes; converting here saves it in each call.
            array = cast(array, np.int64 if array.dtype.kind in "iu" else np.float32)
            arguments[argument] = float(array[0]) * arguments[argument] if argument in arguments else array
        folder.read.update(block.tensor(argument) for argument in rule.unused)
        table = arguments.get("tid2eid")
        if table is not None and table.size and not 0 <= table.min() <= table.max() < self.num_experts:
            place = f"{self.path}: tensor {block.tensor('tid2eid')}"
            expected = f"expert ids in [0, {self.num_experts - 1}]"
            raise value_error(place, expected, f"{table.min()} to {table.max()}")
        return arguments


def _read_tensor(folder: ModelFolder, block: Block, name: str, spec: TensorSpec) -> NDArray[Any]:
    """A tensor by the argument or field that it is; a vector may be the only row of a matrix."""
    full, shape = block.tensor(name), spec.shape
    if len(shape) == 1 and full in folder and len(folder.shape(full)) == 2:
        return folder.tensor(full, spec.dtypes, (1, *shape)).reshape(-1)
    return folder.tensor(full, spec.dtypes, shape)


def _read_experts(folder: ModelFolder, block: Block, model: Model) -> ExpertWeights:
    sizes = model.expert_sizes
    if block.fused[0] in folder:
        arrays = plain.with_scales(fused_arrays(model.read_fused(folder, block)))
        return _plain_experts(arrays, "plain floats, fused", sizes)
    # Transformers saves matrices of LongCat's zero experts too, which nothing computes with.
    for expert in range(sizes.num_zero):
        names = block.expert_matrices(model.num_experts + expert)
        folder.read.update(f"{name}.weight" for name in names)
    return _read_matrices(folder, model.expert_matrices(block), sizes, model.scheme)


def _read_shared(folder: ModelFolder, block: Block, model: Model) -> ExpertWeights | None:
    names, size = block.shared_matrices(), model.shared_size
    if model.num_weighted_shared:
        return None
    if not size:
        _check_no_shared(folder, block)
        return None
    sizes = model.expert_sizes._replace(num_experts=1, hidden=model.hidden_size, intermediate=size)
    if block.shared_fused[0] not in folder:
        return _read_matrices(folder, [names], sizes, model.shared_scheme or model.scheme)
    fused = read_fused(folder, block.shared_fused, sizes, (FusedLayout(is_flat=True),))
    return _plain_experts(plain.with_scales(fused_arrays([fused])), "plain floats, fused", sizes)


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


def _read_matrices(
    folder: ModelFolder, experts: Sequence[tuple[str, ...]], sizes: ExpertSizes, scheme: Scheme
) -> ExpertWeights:
    """Experts with a tensor or a few for each matrix; `experts` are the names of each one's matrices."""
    hidden, intermediate = sizes.hidden, sizes.intermediate
    scheme = _common_scheme(folder, [name for names in experts for name in names], scheme)
    shapes = [(intermediate, hidden)] * (1 + sizes.is_gated) + [(hidden, intermediate)]
    *first, down = (
        [scheme.read(folder, names[i], *shape) for names in experts] for i, shape in enumerate(shapes)
    )
    arrays: dict[str, Any] = {
        "w13": _both(first, _weights),
        "w13_scales": _both(first, _scales),
        "w2": _weights(down),
        "w2_scales": _scales(down),
        **sizes.options,
    }
    if scheme.format == "bf16":
        return _plain_experts(plain.with_scales(arrays), scheme.name, sizes)
    if scheme.block_shape is not None:
        arrays["block_shape"] = scheme.block_shape
    if down[0].tensor_scale is not None:
        scales = [tuple(each.tensor_scale for each in matrices) for matrices in zip(*first, strict=True)]
        arrays["w13_tensor_scale"] = np.array(scales, np.float32).reshape(len(down), *[2] * sizes.is_gated)
        arrays["w2_tensor_scale"] = np.array([d.tensor_scale for d in down], np.float32)
    return ExpertWeights(scheme.format, scheme.name, (hidden, intermediate), arrays)


def _both(parts: Sequence[Sequence[Matrix]], take: Callable[[Sequence[Matrix]], list[Any]]) -> Any:
    """What `take` makes of gate and up, as a pair; or of up, where there is no gate."""
    return tuple(map(take, parts)) if len(parts) > 1 else take(parts[0])


def _common_scheme(folder: ModelFolder, matrices: Sequence[str], scheme: Scheme) -> Scheme:
    """The scheme of all these matrices: what is stored in floats was left out by the quantization."""
    found: dict[Scheme, str] = {}
    for name in matrices:
        is_plain = folder.dtype(f"{name}.weight") in FLOATS
        found.setdefault(plain.SCHEME if is_plain else scheme.of(name), name)
    if len(found) > 1:
        kinds = " and ".join(f"{each.name} for {name}" for each, name in list(found.items())[:2])
        raise value_error(str(folder.path), "experts of a layer that are all stored alike", kinds)
    return next(iter(found))


def _weights(matrices: Sequence[Matrix]) -> list[Any]:
    return [matrix.weight for matrix in matrices]


def _scales(matrices: Sequence[Matrix]) -> list[Any]:
    return [matrix.scales for matrix in matrices]
