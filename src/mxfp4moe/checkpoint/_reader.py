"""A Hugging Face model folder as a checkpoint: its model's facts applied to its tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mxfp4moe.checkpoint._checkpoint import Checkpoint
from mxfp4moe.checkpoint._model import Model, Names, Rule
from mxfp4moe.checkpoint._parts import ExpertWeights, LayerParts, Routing
from mxfp4moe.checkpoint.huggingface import ModelFolder
from mxfp4moe.checkpoint.models import MODELS
from mxfp4moe.checkpoint.schemes import FLOATS, Matrix, Scheme, plain
from mxfp4moe.errors import describe, join_choices, value_error


class HuggingFaceCheckpoint(Checkpoint):
    """A folder with config.json and safetensors files."""

    def __init__(self, folder: ModelFolder) -> None:
        config = folder.config
        self.path, self._folder = folder.path, folder
        self.model_type = config.string("model_type")
        if self.model_type not in MODELS:
            raise config.error("model_type", join_choices(map(repr, MODELS)), describe(self.model_type))
        self._model = model = MODELS[self.model_type](config)
        self.hidden_size, self.intermediate_size = model.hidden_size, model.intermediate_size
        self.shared_intermediate_size = model.shared_size
        self.num_experts, self.top_k = model.num_experts, model.top_k
        self.activation, self.alpha, self.limit = model.activation, model.alpha, model.limit
        layers: Sequence[int] = _layers_of_tensors(folder, model)
        if model.num_layers is not None:
            layers = range(model.num_layers)
        if not layers:
            names = model.names[0]
            raise value_error(str(self.path), f"a tensor {names.block}.{names.router}.weight", "none")
        self.num_layers = layers[-1] + 1
        self.moe_layers = tuple(layer for layer in layers if not model.is_dense(layer))

    def _read_layer(self, layer: int) -> LayerParts:
        folder, model = self._folder, self._model
        names, block = self._block(layer)
        router = f"{block}.{names.router}"
        num_experts, hidden = model.num_experts, model.hidden_size
        read_experts = model.read_experts or (lambda *_: self._read_experts(block, names))
        shared = None
        prefix = f"{block}.shared_experts"
        unexpected = [f"{prefix}.{names.shared[0]}.{suffix}" for suffix in ("weight", "weight_packed")]
        if not model.shared_size and (found := [name for name in unexpected if name in folder]):
            raise value_error(
                str(self.path), "no shared experts, as config.json says", f"a tensor {found[0]}"
            )
        if model.shared_size:
            triples = [
                (f"{prefix}.{names.shared[0]}", f"{prefix}.{names.shared[1]}", f"{prefix}.{names.shared[2]}")
            ]
            scheme = model.shared_scheme or model.scheme
            shared = _read_matrices(folder, triples, (hidden, model.shared_size), scheme)
        return LayerParts(
            hidden_size=hidden,
            intermediate_size=model.intermediate_size,
            num_experts=num_experts,
            top_k=model.top_k,
            experts=read_experts(folder, block, model),
            router_weight=folder.tensor(f"{router}.weight", FLOATS, (num_experts, hidden)),
            router_bias=folder.tensor(f"{router}.bias", FLOATS, (num_experts,))
            if model.router_bias
            else None,
            routing=self._routing(block, model.rule(layer)),
            activation=model.activation,
            alpha=model.alpha,
            limit=model.limit,
            routed_scaling_factor=model.routed_scaling_factor,
            shared_experts=shared,
            shared_limit=model.shared_limit,
        )

    def _block(self, layer: int) -> tuple[Names, str]:
        """The names of the tensors of a layer and their prefix: the first of which there is a router."""
        choices = [(names, names.block.format(layer=layer)) for names in self._model.names]
        for names, block in choices:
            if f"{block}.{names.router}.weight" in self._folder:
                return names, block
        return choices[0]

    def _read_experts(self, block: str, names: Names) -> ExpertWeights:
        model, folder = self._model, self._folder
        sizes = (model.hidden_size, model.intermediate_size)
        if f"{block}.experts.gate_up_proj" in folder:
            return _read_fused(folder, f"{block}.experts", model)
        gate, up, down = names.experts
        prefixes = (f"{block}.experts.{expert}" for expert in range(model.num_experts))
        triples = [(f"{p}.{gate}", f"{p}.{up}", f"{p}.{down}") for p in prefixes]
        return _read_matrices(folder, triples, sizes, model.scheme)

    def _routing(self, block: str, rule: Rule) -> Routing:
        arguments = dict(rule.arguments)
        for argument, (name, dtypes, shape) in rule.tensors.items():
            array = self._folder.tensor(f"{block}.{name}", dtypes, shape)
            # As the routing functions compute with them, which saves a conversion with each call.
            arguments[argument] = array.astype(
                np.int64 if array.dtype.kind in "iu" else np.float32, copy=False
            )
        table = arguments.get("tid2eid")
        if table is not None and table.size and not 0 <= table.min() <= table.max() < self.num_experts:
            place = f"{self.path}: tensor {block}.{rule.tensors['tid2eid'].name}"
            expected = f"expert ids in [0, {self.num_experts - 1}]"
            raise value_error(place, expected, f"{table.min()} to {table.max()}")
        return Routing(rule.name, arguments)


def _read_matrices(
    folder: ModelFolder, triples: Sequence[tuple[str, str, str]], sizes: tuple[int, int], scheme: Scheme
) -> ExpertWeights:
    """Experts with a tensor or a few for each matrix; `triples` are the names of gate, up and down."""
    hidden, intermediate = sizes
    if folder.dtype(f"{triples[0][0]}.weight") in FLOATS:
        scheme = plain.SCHEME  # quantization configurations leave some matrices out
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
        return ExpertWeights("bf16", scheme.name, plain.with_scales(arrays), plain.to_bfloat16)
    if scheme.block_shape is not None:
        arrays["block_shape"] = scheme.block_shape
    if down[0].tensor_scale is not None:
        pairs = [(g.tensor_scale, u.tensor_scale) for g, u in zip(gate, up, strict=True)]
        arrays["w13_tensor_scale"] = np.array(pairs, np.float32)
        arrays["w2_tensor_scale"] = np.array([d.tensor_scale for d in down], np.float32)
    return ExpertWeights(scheme.format, scheme.name, arrays)


def _read_fused(folder: ModelFolder, experts: str, model: Model) -> ExpertWeights:
    """Experts in two tensors, as newer versions of transformers write them: gate rows, then up rows."""
    count, hidden, intermediate = model.num_experts, model.hidden_size, model.intermediate_size
    arrays = {
        "w13": folder.tensor(f"{experts}.gate_up_proj", FLOATS, (count, 2 * intermediate, hidden)),
        "w2": folder.tensor(f"{experts}.down_proj", FLOATS, (count, hidden, intermediate)),
    }
    return ExpertWeights("bf16", "plain floats, fused", plain.with_scales(arrays), plain.to_bfloat16)


def _weights(matrices: Sequence[Matrix]) -> list[Any]:
    return [matrix.weight for matrix in matrices]


def _scales(matrices: Sequence[Matrix]) -> list[Any]:
    return [matrix.scales for matrix in matrices]


def _layers_of_tensors(folder: ModelFolder, model: Model) -> list[int]:
    """The layers of which there is a router, for configurations that do not say how many layers there are."""
    if model.num_layers is not None:
        return []
    layers = set()
    for names in model.names:
        pattern = re.escape(f"{names.block}.{names.router}.weight").replace(r"\{layer\}", r"(\d{1,9})")
        layers |= {int(match[1]) for name in folder if (match := re.fullmatch(pattern, name))}
    return sorted(layers)
