"""A Hugging Face model folder as a checkpoint: its model's facts applied to its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import cast, value_error
from mxfp4moe.checkpoint._checkpoint import Checkpoint
from mxfp4moe.checkpoint._experts import is_quantized, read_experts, read_floats, read_shared
from mxfp4moe.checkpoint._model import Rule, TensorSpec
from mxfp4moe.checkpoint._names import Block
from mxfp4moe.checkpoint.model_folder import ModelFolder, TensorError
from mxfp4moe.checkpoint.models import read_model
from mxfp4moe.checkpoint.schemes import FLOATS, Scheme
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

    @property
    def folder(self) -> ModelFolder:
        """The tensors of the model."""
        return self._folder

    def block_prefixes(self, layer: int) -> tuple[str, ...]:
        """What the names of the tensors of the block of a layer begin with, in any style."""
        return tuple({prefix for block in self._model.blocks(layer) for prefix in block.prefixes()})

    @property
    def scheme(self) -> Scheme:
        """How matrices are stored."""
        return self._model.scheme

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
        shared = read_shared(folder, block, model)
        router = (model.num_router_rows or model.num_experts, model.hidden_size)
        return {
            "experts": (model.read_experts or read_experts)(folder, block, model),
            "router_weight": read_floats(folder, f"{block.router}.weight", router, model.scheme),
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
        tensors = {name: self._tensor(folder, block, name, spec) for name, spec in model.tensors.items()}
        if "router_scale" in tensors:
            # Gemma-4, which has it, also divides by the root of the hidden size.
            tensors["router_scale"] = cast(tensors["router_scale"], np.float32) * model.hidden_size**-0.5
        return tensors

    def _routing_arguments(self, folder: ModelFolder, block: Block, rule: Rule) -> dict[str, Any]:
        arguments = dict(rule.arguments)
        for argument, spec in rule.tensors.items():
            array = self._tensor(folder, block, argument, spec)
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

    def _tensor(self, folder: ModelFolder, block: Block, name: str, spec: TensorSpec) -> NDArray[Any]:
        """A tensor by the argument or field that it is; a vector may be the only row of a matrix."""
        full, shape = block.tensor(name), spec.shape
        is_matrix = len(folder.shape(full)) == 2 if full in folder else is_quantized(folder, full)
        is_row = len(shape) == 1 and is_matrix
        if is_row:
            shape = (1, *shape)
        if spec.dtypes != FLOATS:
            return folder.tensor(full, spec.dtypes, shape)
        array = read_floats(folder, full, shape, self._model.scheme)
        return array.reshape(-1) if is_row else array
