"""A GGUF file as a checkpoint: which layers it has, and each layer's parts."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from mxfp4moe._arguments import join_choices, value_error
from mxfp4moe._json import shorten
from mxfp4moe.checkpoint._checkpoint import Checkpoint
from mxfp4moe.checkpoint.gguf.architectures import ARCHITECTURES
from mxfp4moe.checkpoint.gguf.matrices import Matrices
from mxfp4moe.checkpoint.gguf.metadata import Metadata
from mxfp4moe.checkpoint.gguf.routing import read_routing
from mxfp4moe.checkpoint.gguf.tensors import FLOATS, Tensors, open_files
from mxfp4moe.experts.activation import Activation
from mxfp4moe.experts.weights import ExpertWeights
from mxfp4moe.layer_description import LayerDescription

_EPSILON = "attention.layer_norm_rms_epsilon"
_OF_MOE_LAYER = re.compile(r"blk\.(\d{1,9})\.ffn_(?:gate_inp|(?:gate|up|gate_up|down)_exps)\.weight")


class _Activation(NamedTuple):
    """The activation of a layer and its parameters, as the fields of a description are called."""

    activation: Activation
    alpha: float | None
    limit: float | None
    shared_limit: float | None


class GgufCheckpoint(Checkpoint):
    """A GGUF file, or all files of a split one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        files = open_files(path)
        self._tensors = Tensors(path, files)
        self.model_type = files[0].value("general.architecture", "")
        if not isinstance(self.model_type, str) or self.model_type not in ARCHITECTURES:
            expected = join_choices(map(repr, ARCHITECTURES))
            raise value_error(f"{path}: general.architecture", expected, shorten(self.model_type))
        self._architecture = ARCHITECTURES[self.model_type]
        self._metadata = Metadata(files[0], self.model_type)
        self.num_layers, self.moe_layers = self._layers()
        first = self.moe_layers[0]
        self.num_experts = self._metadata.integer("expert_count")
        self.top_k = self._top_k(first)
        _, self.hidden_size = self._tensors.shape(f"blk.{first}.ffn_gate_inp.weight", 2)
        _, self.intermediate_size = self._experts(self._tensors, first).sizes()
        shared = self._shared(self._tensors, first)
        self.shared_intermediate_size = shared.sizes()[1] if shared is not None else 0
        self.activation, self.alpha, self.limit, _ = self._activation(first)
        self._check_size("embedding_length", self.hidden_size)
        self._check_size("expert_feed_forward_length", self.intermediate_size, first)

    def _layers(self) -> tuple[int, tuple[int, ...]]:
        """The number of layers, and those with experts; without those of multi-token prediction."""
        metadata = self._metadata
        found = {int(match[1]) for name in self._tensors if (match := _OF_MOE_LAYER.fullmatch(name))}
        count = metadata.integer("block_count", default=max(found, default=0) + 1)
        num_layers = count - metadata.integer("nextn_predict_layers", default=0, minimum=0, maximum=count - 1)
        moe_layers = tuple(sorted(layer for layer in found if layer < num_layers))
        if not moe_layers:
            raise value_error(str(self.path), "a tensor blk.<layer>.ffn_gate_inp.weight", "none")
        step = metadata.integer("interleave_moe_layer_step", default=1)
        dense = metadata.integer("leading_dense_block_count", default=0, minimum=0)
        for key, value, wrong in (
            ("interleave_moe_layer_step", step, [layer for layer in moe_layers if (layer + 1) % step]),
            ("leading_dense_block_count", dense, [layer for layer in moe_layers if layer < dense]),
        ):
            if wrong:
                raise metadata.error(
                    key, f"layer {wrong[0]} among those with experts, as it has some", str(value)
                )
        return num_layers, moe_layers

    def _read_layer(self, layer: int) -> LayerDescription[ExpertWeights]:
        architecture, metadata = self._architecture, self._metadata
        block, tensors = f"blk.{layer}", self._tensors.recording()
        routing = read_routing(architecture, metadata, tensors, layer, self.num_experts)
        experts = self._experts(tensors, layer)
        width, intermediate = experts.sizes()
        self._check_size("expert_feed_forward_length", intermediate, layer)
        latent = self._latent_fields(tensors, block, width)
        sizes = (width if latent else self.hidden_size, intermediate)
        activation = self._activation(layer)
        fields = latent | self._router_fields(tensors, block) | self._shared_fields(tensors, layer)
        description = LayerDescription(
            top_k=self._top_k(layer),
            experts=experts.read(self.num_experts, sizes, architecture.has_biases),
            routing=routing.function,
            routing_arguments=routing.arguments,
            activation=activation.activation,
            alpha=activation.alpha,
            limit=activation.limit,
            # Half the sum of both is the sum of half of each.
            routed_scaling_factor=routing.factor * fields.get("shared_scaling_factor", 1.0),
            apply_router_weight_on_input=architecture.apply_router_weight_on_input,
            layer_number=layer,
            **fields,
        )
        for name in architecture.beside:
            tensors.read |= {f"{block}.{name}.{suffix}" for suffix in ("weight", "scale", "bias")}
        tensors.check_all_read([f"{block}.ffn", f"{block}.exp"])
        metadata.check_all_used()
        return description

    def _router_fields(self, tensors: Tensors, block: str) -> dict[str, Any]:
        """The fields of a description that are the router's, and what it reads."""
        architecture, shape = self._architecture, (self.num_experts, self.hidden_size)
        name = f"{block}.ffn_gate_inp"
        fields: dict[str, Any] = {"router_weight": tensors.tensor(f"{name}.weight", FLOATS, shape)}
        if architecture.has_biases:
            fields["router_bias"] = tensors.tensor(f"{name}.bias", FLOATS, shape[:1])
        if architecture.has_router_norm:
            scale = tensors.tensor(f"{name}.scale", ("F32",), shape[1:])
            fields |= {
                "separate_router_input": True,
                "router_norm_eps": self._metadata.number(_EPSILON),
                "router_scale": scale * scale.dtype.type(1 / math.sqrt(self.hidden_size)),
            }
        return fields

    def _shared_fields(self, tensors: Tensors, layer: int) -> dict[str, Any]:
        """The fields of a description that are the shared expert's."""
        architecture, hidden = self._architecture, self.hidden_size
        shared = self._shared(tensors, layer)
        if shared is None:
            return {}
        fields: dict[str, Any] = {
            "shared_experts": shared.read(1, (hidden, shared.sizes()[1])),
            "shared_limit": self._activation(layer).shared_limit,
        }
        if architecture.has_shared_gate:
            name = f"blk.{layer}.ffn_gate_inp_shexp.weight"
            shape = (1, hidden) if tensors.num_axes(name) == 2 else (hidden,)
            fields["shared_gate"] = tensors.tensor(name, FLOATS, shape).reshape(hidden)
        if architecture.is_average:
            fields["shared_scaling_factor"] = 0.5
        return fields

    def _latent_fields(self, tensors: Tensors, block: str, width: int) -> dict[str, Any]:
        """The fields of a description around experts that work on fewer numbers; none if there are none."""
        latent, hidden = self._architecture.latent, self.hidden_size
        fields: dict[str, Any] = {}
        if latent is not None and f"{block}.{latent.down}.weight" in tensors:
            for field, name, shape in (
                ("latent_down", latent.down, (width, hidden)),
                ("latent_up", latent.up, (hidden, width)),
            ):
                fields[field] = tensors.tensor(f"{block}.{name}.weight", FLOATS, shape)
            norm = f"{block}.{latent.norm}.weight"
            if norm in tensors:
                fields["latent_norm"] = tensors.tensor(norm, FLOATS, (width,))
                fields["latent_norm_eps"] = self._metadata.number(_EPSILON)
        for key in ("moe_latent_size", "expert_latent_length"):
            self._check_size(key, width if fields else 0)
        return fields

    def _experts(self, tensors: Tensors, layer: int) -> Matrices:
        return Matrices(tensors, f"blk.{layer}.ffn_{{}}_exps", self._architecture.is_gated)

    def _shared(self, tensors: Tensors, layer: int) -> Matrices | None:
        """The shared expert of a layer, or None; the metadata must not contradict."""
        architecture, metadata = self._architecture, self._metadata
        if architecture.shared == "never":
            for key in ("expert_shared_count", "expert_shared_feed_forward_length"):
                metadata.integer(key, default=0, minimum=0, maximum=0)
            return None
        name = f"blk.{layer}.ffn_{{}}_shexp"
        matrices = Matrices(tensors, name, architecture.is_gated, architecture.fused_shared)
        length = metadata.integer("expert_shared_feed_forward_length", default=0, minimum=0)
        default = int(architecture.shared == "always" or matrices.exists or length > 0)
        count = metadata.integer("expert_shared_count", default=default, minimum=0)
        if matrices.exists and not count:
            raise metadata.error("expert_shared_count", f"at least 1, as blk.{layer} has one", "0")
        if not count:
            return None
        size = matrices.sizes()[1]
        if length and size not in (length, length * count):
            expected = f"{size}, as the tensors of blk.{layer} have"
            raise metadata.error("expert_shared_feed_forward_length", expected, str(length))
        return matrices

    def _activation(self, layer: int) -> _Activation:
        architecture, metadata = self._architecture, self._metadata
        if architecture.has_situ_keys:
            alpha, most = (metadata.number(f"activation.situ_{name}") for name in ("beta", "linear_beta"))
            return _Activation(architecture.activation, alpha, most, most)
        if architecture.clamped is None:
            return _Activation(architecture.activation, None, architecture.limit, architecture.limit)
        limit = metadata.factor("swiglu_clamp_exp", layer=layer)
        default = limit if architecture.is_shared_clamped else None
        shared_limit = metadata.factor("swiglu_clamp_shexp", default=default, layer=layer)
        if limit is None and shared_limit is None:
            return _Activation(architecture.activation, None, None, None)
        return _Activation(architecture.clamped, None, limit, shared_limit)

    def _top_k(self, layer: int) -> int:
        only = self._architecture.top_k
        bounds = {"minimum": only or 1, "maximum": only or self.num_experts}
        return self._metadata.integer("expert_used_count", **bounds, layer=layer)

    def _check_size(self, key: str, size: int, layer: int | None = None) -> None:
        found = self._metadata.integer(key, default=size, minimum=0, layer=layer)
        if found != size:
            raise self._metadata.error(key, f"{size}, as the tensors have", str(found))
