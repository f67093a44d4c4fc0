"""What a node QMoE or MoE of the domain com.microsoft computes, in the terms of `pack_experts`.

The documentation of ONNX Runtime's operators defines them. What is not computed here is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mxfp4moe._arguments import value_error

KINDS = ("QMoE", "MoE")
_BF16 = np.dtype(ml_dtypes.bfloat16)
_INPUTS = {
    "QMoE": (
        "input", "router_probs", "fc1_experts_weights", "fc1_scales", "fc1_experts_bias",
        "fc2_experts_weights", "fc2_scales", "fc2_experts_bias",
        "fc3_experts_weights", "fc3_scales", "fc3_experts_bias",
        "fc1_zero_points", "fc2_zero_points", "fc3_zero_points",
        "router_weights", "fc1_global_scale", "fc2_global_scale",
        "fc1_act_scale", "fc2_act_scale", "fc1_act_block_scale", "fc2_act_block_scale",
    ),
    "MoE": (
        "input", "router_probs", "fc1_experts_weights", "fc1_experts_bias",
        "fc2_experts_weights", "fc2_experts_bias", "fc3_experts_weights", "fc3_experts_bias",
    ),
}  # fmt: skip
# Attributes with their defaults; None stands for one that is not given.
_ATTRIBUTES: dict[str, Any] = {
    "k": 1,
    "activation_type": "relu",
    "activation_alpha": 1.0,
    "activation_beta": 0.0,
    "swiglu_fusion": 0,
    "swiglu_limit": None,
    "swiglu_limit_after_activation": 0,
    "normalize_routing_weights": 0,
    "use_sparse_mixer": 0,
}
_QUANTIZED_ATTRIBUTES: dict[str, Any] = {
    "quant_type": "int",
    "expert_weight_bits": 4,
    "fc1_expert_weight_bits": None,
    "fc2_expert_weight_bits": None,
    "fc3_expert_weight_bits": None,
    "block_size": None,
    "weights_prepacked": -1,
    "accuracy_level": 0,  # the least accuracy that the model asks for, which our result always has
}
_FP4 = {"fp4": ("mxfp4", 32), "nvfp4": ("nvfp4", 16)}


class MoENode(NamedTuple):
    """A node: what packs its weights, the attributes of `FusedExperts`, and its router."""

    arrays: dict[str, np.ndarray]
    attributes: dict[str, Any]
    router: Router


class Router(NamedTuple):
    """How experts are chosen: inputs by name, "" for one that is not given."""

    probabilities: str
    weights: str
    top_k: int
    renormalize: bool
    over_all: bool
    """The softmax is over all experts, and not over those that are chosen."""


class _Matrix(NamedTuple):
    weight: np.ndarray
    scales: np.ndarray | None
    bias: np.ndarray | None
    zero_points: np.ndarray | None


class _Reader:
    """Attributes and constant inputs of one node, whose errors name it."""

    def __init__(self, node: Any, get_value: Any, constants: Mapping[str, Any], where: str) -> None:
        self.where = where
        self._constants = constants
        known = _ATTRIBUTES | (_QUANTIZED_ATTRIBUTES if node.op_type == "QMoE" else {})
        given = {attribute.name: get_value(attribute) for attribute in node.attribute}
        given = {name: value.decode() if isinstance(value, bytes) else value for name, value in given.items()}
        for name in given.keys() - known.keys():
            raise self.error(name, f"no such attribute of {node.op_type}", str(given[name]))
        self.attributes = known | given
        names = _INPUTS[node.op_type]
        if len(node.input) > len(names):
            raise self.error("inputs", f"at most {len(names)}", str(len(node.input)))
        self.inputs = dict.fromkeys(names, "") | dict(zip(names, node.input, strict=False))

    def error(self, name: str, expected: str, got: str) -> ValueError:
        return value_error(f"{self.where}: {name}", expected, got)

    def require(self, name: str, *allowed: Any) -> Any:
        value = self.attributes[name]
        if value not in allowed:
            raise self.error(name, " or ".join(str(each) for each in allowed), str(value))
        return value

    def constant(self, name: str) -> np.ndarray | None:
        given = self.inputs.get(name, "")
        if not given:
            return None
        if given not in self._constants:
            raise self.error(name, "an initializer or a constant", f"{given}, which is computed")
        return np.asarray(self._constants[given]())

    def matrix(self, name: str) -> _Matrix | None:
        weight = self.constant(f"{name}_experts_weights")
        if weight is None:
            return None
        if weight.ndim != 3:
            raise self.error(f"{name}_experts_weights", "3 axes", f"shape {weight.shape}")
        bias = self.constant(f"{name}_experts_bias")
        if bias is not None and bias.dtype == np.float16:
            bias = bias.astype(np.float32)
        return _Matrix(weight, self.constant(f"{name}_scales"), bias, self.constant(f"{name}_zero_points"))


def read_node(node: Any, get_value: Any, constants: Mapping[str, Any], where: str) -> MoENode:
    """Read a node; `constants` has a function for each name that returns the array."""
    reader = _Reader(node, get_value, constants, where)
    quantized = node.op_type == "QMoE"
    activation = _activation(reader)
    fc1, fc2, fc3 = (reader.matrix(name) for name in ("fc1", "fc2", "fc3"))
    if fc1 is None or fc2 is None:
        raise reader.error("inputs", "fc1_experts_weights and fc2_experts_weights", "none of that name")
    arrays: dict[str, Any] = {}
    if not quantized:
        attributes, convert = {"format": "bf16"}, _in_bfloat16
    elif reader.require("quant_type", "int", *_FP4) == "int":
        attributes, convert = _integers(reader)
    else:
        attributes, convert = _fp4(reader, arrays, len(fc1.weight), fc3 is not None)
    for matrix, name, shape in ((fc1, "fc1", fc1), (fc3, "fc3", fc1), (fc2, "fc2", fc2)):
        if matrix is not None and matrix.weight.shape[1:] != shape.weight.shape[1:]:
            raise reader.error(
                f"{name}_experts_weights", f"shape {shape.weight.shape}", str(matrix.weight.shape)
            )
    w13 = convert(reader, fc1)
    w2 = convert(reader, fc2)
    attributes["gate_up_layout"] = (
        "interleaved" if reader.attributes["swiglu_fusion"] == 1 else "concatenated"
    )
    if fc3 is not None:
        w13 = _joined(reader, w13, convert(reader, fc3))
    for name, each in (("w13", w13), ("w2", w2)):
        parts = {
            "": each.weight,
            "_scales": each.scales,
            "_bias": each.bias,
            "_zero_points": each.zero_points,
        }
        arrays |= {name + part: value for part, value in parts.items() if value is not None}
    arrays = {name: value for name, value in arrays.items() if value is not None}
    return MoENode(arrays, attributes | activation, _router(reader, reader.attributes.get("quant_type")))


def _activation(reader: _Reader) -> dict[str, Any]:
    """Gated activations alone: G * sigmoid(alpha * G) * (L + beta), of clamped G and L."""
    kind = reader.require("activation_type", "swiglu", "silu")
    reader.require("swiglu_limit_after_activation", 0)
    fusion = reader.require("swiglu_fusion", *((0, 1, 2) if kind == "swiglu" else (0,)))
    gate = reader.inputs["fc3_experts_weights"]
    if bool(gate) != (fusion == 0):
        expected = "an input where swiglu_fusion is 0" if not gate else "none where swiglu_fusion is not 0"
        raise reader.error("fc3_experts_weights", expected, gate or "none")
    limit = reader.attributes["swiglu_limit"]
    if kind == "silu":
        return {"activation": "silu"}
    alpha, beta = reader.attributes["activation_alpha"], reader.attributes["activation_beta"]
    if beta == 1:
        # Without a limit in the node there is none.
        return {"activation": "swigluoai", "alpha": alpha, "limit": np.inf if limit is None else limit}
    if (alpha, beta) != (1, 0):
        expected = "activation_alpha 1 with activation_beta 0, or activation_beta 1"
        raise reader.error("activation_beta", expected, f"alpha {alpha} and beta {beta}")
    return {"activation": "silu"} | ({} if limit is None or np.isinf(limit) else {"limit": limit})


def _router(reader: _Reader, quant_type: str | None) -> Router:
    """The routing as the runtime's own kernels for CPUs compute it, which its documentation leaves open."""
    reader.require("use_sparse_mixer", 0)
    top_k = reader.attributes["k"]
    if top_k < 1:
        raise reader.error("k", "a positive integer", str(top_k))
    weights = reader.inputs.get("router_weights", "")
    renormalize = bool(reader.require("normalize_routing_weights", 0, 1))
    if weights and quant_type != "int":
        renormalize = False
    return Router(reader.inputs["router_probs"], weights, top_k, renormalize, quant_type != "int")


def _in_bfloat16(reader: _Reader, matrix: _Matrix) -> _Matrix:
    return matrix._replace(weight=matrix.weight.astype(_BF16))


def _integers(reader: _Reader) -> tuple[dict[str, Any], Any]:
    reader.require("weights_prepacked", -1, 0)
    bits = reader.require("expert_weight_bits", 4, 8)
    for name in ("fc1", "fc2", "fc3"):
        reader.require(f"{name}_expert_weight_bits", None, bits)
    block = reader.attributes["block_size"]
    if block is not None and (block <= 0 or block % 32):
        raise reader.error("block_size", "a multiple of 32, or none", str(block))
    for name in ("fc1_global_scale", "fc2_global_scale", *_ACTIVATION_SCALES):
        _refuse(reader, name, "quant_type int")

    def convert(reader: _Reader, matrix: _Matrix) -> _Matrix:
        return _integer_matrix(reader, matrix, bits, block)

    return {"format": f"int{bits}"}, convert


_ACTIVATION_SCALES = ("fc1_act_scale", "fc2_act_scale", "fc1_act_block_scale", "fc2_act_block_scale")


def _refuse(reader: _Reader, name: str, where: str) -> None:
    if reader.inputs[name]:
        raise reader.error(name, f"none with {where}", reader.inputs[name])


def _integer_matrix(reader: _Reader, matrix: _Matrix, bits: int, block: int | None) -> _Matrix:
    """Codes that are unsigned, with 8 or 128 as zero, become ours: int8 is signed, zero points are bytes."""
    weight, scales, zeros = matrix.weight, matrix.scales, matrix.zero_points
    if weight.dtype != np.uint8 or scales is None:
        got = str(weight.dtype) if scales is not None else "none of them"
        raise reader.error("weights", "uint8, and scales", got)
    num_experts, rows, row_bytes = weight.shape
    columns = row_bytes * 8 // bits
    groups = 1 if block is None else columns // block
    if scales.size != num_experts * rows * groups or (block is not None and columns % block):
        expected = f"{num_experts} x {rows} x {groups} of blocks of {block or columns}"
        raise reader.error("scales", expected, f"shape {scales.shape}")
    scales = scales.reshape(num_experts, rows, groups)
    if zeros is not None:
        zeros = _unpacked_zeros(reader, zeros, scales.shape, bits)
    if bits == 8:
        weight = (weight ^ np.uint8(0x80)).view(np.int8)
        zeros = None if zeros is None else (zeros ^ np.uint8(0x80)).view(np.int8)
    return _Matrix(weight, scales, matrix.bias, zeros)


def _unpacked_zeros(reader: _Reader, zeros: np.ndarray, shape: tuple[int, ...], bits: int) -> np.ndarray:
    """One byte each; packed along the groups of a row, or along the rows where a row is a group."""
    num_experts, rows, groups = shape
    along = (num_experts * rows, groups) if groups > 1 else (num_experts, rows)
    packed = -(-along[1] * bits // 8)
    if zeros.dtype != np.uint8 or zeros.size != along[0] * packed:
        raise reader.error("zero_points", f"{along[0] * packed} of uint8", f"{zeros.size} of {zeros.dtype}")
    values = zeros.reshape(along[0], packed)
    if bits == 4:
        values = np.stack([values & 15, values >> 4], axis=-1).reshape(along[0], -1)[:, : along[1]]
    return np.ascontiguousarray(values).reshape(shape)


def _fp4(
    reader: _Reader, arrays: dict[str, Any], num_experts: int, joined: bool
) -> tuple[dict[str, Any], Any]:
    format, block = _FP4[reader.attributes["quant_type"]]
    reader.require("expert_weight_bits", 4)
    reader.require("block_size", None, 0, block)
    for name in ("fc1_zero_points", "fc2_zero_points", *_ACTIVATION_SCALES):
        _refuse(reader, name, f"quant_type {reader.attributes['quant_type']}")
    if joined:
        raise reader.error("swiglu_fusion", "1 or 2 with fp4 weights", "0")
    for name, terms in (("w13", 2), ("w2", 1)):
        which = f"fc{1 if name == 'w13' else 2}_global_scale"
        scale = reader.constant(which)
        if scale is None or scale.shape != (num_experts,):
            raise reader.error(
                which, f"shape ({num_experts},)", "none" if scale is None else str(scale.shape)
            )
        arrays[f"{name}_tensor_scale"] = (
            np.repeat(scale, terms).reshape(num_experts, terms).astype(np.float32)
        )
    arrays["w2_tensor_scale"] = arrays["w2_tensor_scale"][:, 0]
    if format == "mxfp4" and all((arrays[f"{name}_tensor_scale"] == 1).all() for name in ("w13", "w2")):
        arrays.clear()

    def convert(reader: _Reader, matrix: _Matrix) -> _Matrix:
        expected = (*matrix.weight.shape[:2], matrix.weight.shape[2] * 2 // block)
        if matrix.scales is None or matrix.scales.shape != expected:
            got = "none" if matrix.scales is None else str(matrix.scales.shape)
            raise reader.error("scales", f"shape {expected}", got)
        return matrix._replace(scales=matrix.scales.view(np.uint8))

    return {"format": format}, convert


def _joined(reader: _Reader, gate: _Matrix, up: _Matrix) -> _Matrix:
    """Rows of the gate, then those of up; what only one of them has, the other has as what it means."""
    parts = []
    for name, one, other in zip(_Matrix._fields, gate, up, strict=True):
        if (one is None) != (other is None):
            raise reader.error(f"{name} of fc1 and fc3", "both or none", "one of them")
        parts.append(None if one is None or other is None else np.concatenate([one, other], axis=1))
    weight, scales, bias, zeros = parts
    assert weight is not None
    return _Matrix(weight, scales, bias, zeros)
