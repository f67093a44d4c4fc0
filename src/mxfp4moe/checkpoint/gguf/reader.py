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
        architecture, num_experts = self._architecture, self.num_experts
        block, tensors = f"blk.{layer}", self._tensors.recording()
        routing = read_routing(architecture, self._metadata, tensors, layer, num_experts)
        experts, shared = self._experts(tensors, layer), self._shared(tensors, layer)
        latent, intermediate = experts.sizes()
        self._check_size("expert_feed_forward_length", intermediate, layer)
        if architecture.latent is None:
            latent = self.hidden_size
        activation = self._activation(layer)
        average = 0.5 if architecture.is_average and shared is not None else 1.0
        shape = (num_experts, self.hidden_size)
        more = self._around(tensors, block, latent)
        if shared is not None:
            shared_size = shared.sizes()[1]
            more["shared_experts"] = shared.read(1, (self.hidden_size, shared_size))
            more["shared_limit"] = activation.shared_limit
        if average != 1:
            more["shared_scaling_factor"] = average
        if architecture.has_biases:
            more["router_bias"] = tensors.tensor(f"{block}.ffn_gate_inp.bias", FLOATS, shape[:1])
        description = LayerDescription(
            top_k=self._top_k(layer),
            experts=experts.read(num_experts, (latent, intermediate), architecture.has_biases),
            router_weight=tensors.tensor(f"{block}.ffn_gate_inp.weight", FLOATS, shape),
            routing=routing.function,
            routing_arguments=routing.arguments,
            activation=activation.activation,
            alpha=activation.alpha,
            limit=activation.limit,
            routed_scaling_factor=routing.factor * average,
            layer_number=layer,
            **more,
        )
        for name in architecture.beside:
            tensors.read |= {f"{block}.{name}.{suffix}" for suffix in ("weight", "scale", "bias")}
        tensors.check_all_read([f"{block}.ffn", f"{block}.exp"])
        self._metadata.check_all_used()
        return description

    def _around(self, tensors: Tensors, block: str, latent_size: int) -> dict[str, Any]:
        """The fields of a description that stand for tensors which few architectures have."""
        architecture, hidden = self._architecture, self.hidden_size
        fields: dict[str, Any] = {}
        if architecture.apply_router_weight_on_input:
            fields["apply_router_weight_on_input"] = True
        if architecture.has_shared_gate:
            name = f"{block}.ffn_gate_inp_shexp.weight"
            shape = (1, hidden) if tensors.num_axes(name) == 2 else (hidden,)
            fields["shared_gate"] = tensors.tensor(name, FLOATS, shape).reshape(hidden)
        if architecture.has_router_norm:
            scale = tensors.tensor(f"{block}.ffn_gate_inp.scale", ("F32",), (hidden,))
            fields |= {
                "separate_router_input": True,
                "router_norm_eps": self._metadata.number("attention.layer_norm_rms_epsilon"),
                "router_scale": scale * scale.dtype.type(1 / math.sqrt(hidden)),
            }
        latent = architecture.latent
        if latent is not None and f"{block}.{latent.down}.weight" in tensors:
            for field, name, shape in (
                ("latent_down", latent.down, (latent_size, hidden)),
                ("latent_up", latent.up, (hidden, latent_size)),
            ):
                fields[field] = tensors.tensor(f"{block}.{name}.weight", FLOATS, shape)
            if latent.norm and f"{block}.{latent.norm}.weight" in tensors:
                norm = tensors.tensor(f"{block}.{latent.norm}.weight", FLOATS, (latent_size,))
                epsilon = self._metadata.number("attention.layer_norm_rms_epsilon")
                fields |= {"latent_norm": norm, "latent_norm_eps": epsilon}
        for key in ("moe_latent_size", "expert_latent_length"):
            size = latent_size if "latent_down" in fields else 0
            if self._metadata.integer(key, default=size, minimum=0) != size:
                raise self._metadata.error(
                    key, f"{size}, as the tensors have", str(self._metadata.integer(key))
                )
        return fields

    def _experts(self, tensors: Tensors, layer: int) -> Matrices:
        return Matrices(tensors, f"blk.{layer}.ffn_{{}}_exps", self._architecture.is_gated)

    def _shared(self, tensors: Tensors, layer: int) -> Matrices | None:
        """The shared expert of a layer, or None; the metadata must not contradict."""
        architecture, metadata = self._architecture, self._metadata
        if not architecture.has_shared:
            for key in ("expert_shared_count", "expert_shared_feed_forward_length"):
                metadata.integer(key, default=0, minimum=0, maximum=0)
            return None
        name = f"blk.{layer}.ffn_{{}}_shexp"
        matrices = Matrices(tensors, name, architecture.is_gated, architecture.fused_shared)
        length = metadata.integer("expert_shared_feed_forward_length", default=0, minimum=0)
        has_any = matrices.exists
        count = metadata.integer("expert_shared_count", default=int(has_any or length > 0), minimum=0)
        if has_any and not count:
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
        return self._metadata.integer("expert_used_count", maximum=self.num_experts, layer=layer)

    def _check_size(self, key: str, size: int, layer: int | None = None) -> None:
        found = self._metadata.integer(key, default=size, layer=layer)
        if found != size:
            raise self._metadata.error(key, f"{size}, as the tensors have", str(found))
