"""A Hugging Face model folder as a checkpoint: its model's facts applied to its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mxfp4moe._arguments import cast, value_error
from mxfp4moe.checkpoint._checkpoint import Checkpoint
from mxfp4moe.checkpoint._fused import fused_names
from mxfp4moe.checkpoint._model import Block, Model, Rule
from mxfp4moe.checkpoint.model_folder import ModelFolder
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
            self._model, self.shared_intermediate_size = replace(model, shared_size=0), 0

    def _has_shared(self, layer: int) -> bool:
        prefix = f"{self._model.find_block(self._folder, layer).shared}."
        return any(True for _ in self._folder.names_with(prefix))

    def _read_layer(self, layer: int) -> LayerDescription[ExpertWeights]:
        folder, model = self._folder.recording(), self._model
        block = model.find_block(folder, layer)
        num_experts, hidden = model.num_experts, model.hidden_size
        read_experts = model.read_experts or _read_experts
        shared = _read_shared(folder, block, model)
        rule = model.rule(layer)
        description = LayerDescription(
            top_k=model.top_k,
            experts=read_experts(folder, block, model),
            router_weight=folder.tensor(f"{block.router}.weight", FLOATS, (num_experts, hidden)),
            router_bias=folder.tensor(f"{block.router}.bias", FLOATS, (num_experts,))
            if model.router_bias
            else None,
            routing=rule.name,
            routing_arguments=self._routing_arguments(folder, block, rule),
            activation=model.activation,
            alpha=model.alpha,
            limit=model.limit,
            routed_scaling_factor=model.routed_scaling_factor,
            shared_experts=shared,
            shared_limit=model.shared_limit if shared is not None else None,
            layer_number=layer,
        )
        folder.check_all_read([f"{each.path}." for each in model.blocks(layer)])
        return description

    def _routing_arguments(self, folder: ModelFolder, block: Block, rule: Rule) -> dict[str, Any]:
        arguments = dict(rule.arguments)
        for argument, (dtypes, shape) in rule.tensors.items():
            array = folder.tensor(f"{block.path}.{block.names.routing[argument]}", dtypes, shape)
            # The routing functions compute with these dtypes; converting here saves it in each call.
            arguments[argument] = cast(array, np.int64 if array.dtype.kind in "iu" else np.float32)
        folder.read.update(f"{block.path}.{block.names.routing[argument]}" for argument in rule.unused)
        table = arguments.get("tid2eid")
        if table is not None and table.size and not 0 <= table.min() <= table.max() < self.num_experts:
            place = f"{self.path}: tensor {block.path}.{block.names.routing['tid2eid']}"
            expected = f"expert ids in [0, {self.num_experts - 1}]"
            raise value_error(place, expected, f"{table.min()} to {table.max()}")
        return arguments


def _read_experts(folder: ModelFolder, block: Block, model: Model) -> ExpertWeights:
    if fused_names(block.experts)[0] in folder:
        arrays = plain.with_scales(model.read_fused(folder, block.experts).arrays())
        sizes = model.hidden_size, model.intermediate_size
        return ExpertWeights("bf16", "plain floats, fused", sizes, arrays, plain.to_bfloat16)
    matrices = [block.expert_matrices(expert) for expert in range(model.num_experts)]
    return _read_matrices(folder, matrices, (model.hidden_size, model.intermediate_size), model.scheme)


def _read_shared(folder: ModelFolder, block: Block, model: Model) -> ExpertWeights | None:
    names, size = block.shared_matrices(), model.shared_size
    gate_up = block.shared_gate_up
    if not size:
        possible = (f"{names[0]}.weight", f"{names[0]}.weight_packed", gate_up)
        if found := [name for name in possible if name in folder]:
            expected = "no shared experts, as config.json says"
            raise value_error(str(folder.path), expected, f"a tensor {found[0]}")
        return None
    hidden = model.hidden_size
    if gate_up not in folder:
        return _read_matrices(folder, [names], (hidden, size), model.shared_scheme or model.scheme)
    arrays = {
        "w13": folder.tensor(gate_up, FLOATS, (2 * size, hidden))[None],
        "w2": folder.tensor(f"{names[2]}.weight", FLOATS, (hidden, size))[None],
    }
    arrays = plain.with_scales(arrays)
    return ExpertWeights("bf16", "plain floats, fused", (hidden, size), arrays, plain.to_bfloat16)


def _read_matrices(
    folder: ModelFolder, triples: Sequence[tuple[str, ...]], sizes: tuple[int, int], scheme: Scheme
) -> ExpertWeights:
    """Experts with a tensor or a few for each matrix; `triples` are the names of gate, up and down."""
    hidden, intermediate = sizes
    scheme = _common_scheme(folder, [name for names in triples for name in names], scheme)
    shapes = ((intermediate, hidden), (intermediate, hidden), (hidden, intermediate))
    gate, up, down = (
        [scheme.read(folder, names[i], *shape) for names in triples] for i, shape in enumerate(shapes)
    )
    arrays: dict[str, Any] = {
        "w13": (_weights(gate), _weights(up)),
        "w13_scales": (_scales(gate), _scales(up)),
        "w2": _weights(down),
        "w2_scales": _scales(down),
    }
    if scheme.format == "bf16":
        return ExpertWeights("bf16", scheme.name, sizes, plain.with_scales(arrays), plain.to_bfloat16)
    if scheme.block_shape is not None:
        arrays["block_shape"] = scheme.block_shape
    if down[0].tensor_scale is not None:
        pairs = [(g.tensor_scale, u.tensor_scale) for g, u in zip(gate, up, strict=True)]
        arrays["w13_tensor_scale"] = np.array(pairs, np.float32)
        arrays["w2_tensor_scale"] = np.array([d.tensor_scale for d in down], np.float32)
    return ExpertWeights(scheme.format, scheme.name, sizes, arrays)


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
