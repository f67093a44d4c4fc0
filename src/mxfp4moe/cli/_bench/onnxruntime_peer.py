"""The peer onnxruntime: its operator com.microsoft.QMoE on MXFP4 or NVFP4 weights.

The CPU kernel takes `quant_type` "fp4" or "nvfp4" with `weights_prepacked=1`, which means the checkpoint's
bytes: blocks [E, 2I, K/2] and [E, K, I/2], float8e8m0 scales per 32 or float8e4m3fn scales per 16, gate and
up rows interleaved (`swiglu_fusion=1`), and a float32 scale for each expert. `swiglu` with alpha 1 and beta 0
is silu(gate) * up.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from mxfp4moe.cli._bench.problem import Batch, Shape
from mxfp4moe.reference import ExpertArrays

# Each format has a quant_type, a block_size and a type of the scales.
_FORMATS = {"mxfp4": ("fp4", 32, "FLOAT8E8M0"), "nvfp4": ("nvfp4", 16, "FLOAT8E4M3FN")}
_ALPHA_BETA = {"silu": (1.0, 0.0), "swigluoai": (1.702, 1.0)}
# These are the inputs of the operator in its order; "" stands for one that is not given.
_INPUTS = ["hidden_states", "router_probs", "w13", "w13_scales", "w13_bias", "w2", "w2_scales", "w2_bias"]
_INPUTS += [""] * 6 + ["router_weights", "w13_global_scale", "w2_global_scale"]


class OnnxruntimePeer:
    """QMoE on the CPU, with float32 inputs and results: the fastest of the types that it takes."""

    name = "onnxruntime"
    formats: tuple[str, ...] = tuple(_FORMATS)
    isa: str | None = None
    copies = 2.0

    def __init__(self, shape: Shape, arrays: ExpertArrays, num_threads: int) -> None:
        for size in ("hidden_size", "intermediate_size"):
            if getattr(shape, size) % 32:
                raise ValueError(f"expected a multiple of 32 as {size}, got {getattr(shape, size)}")
        onnx, ort = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
        types = onnx.TensorProto
        scale_type = getattr(types, _FORMATS[shape.format][2])
        given = {
            "w13": (arrays.w13, types.UINT8),
            "w13_scales": (_bytes(arrays.w13_scales), scale_type),
            "w13_bias": (arrays.w13_bias, types.FLOAT),
            "w2": (arrays.w2, types.UINT8),
            "w2_scales": (_bytes(arrays.w2_scales), scale_type),
            "w2_bias": (arrays.w2_bias, types.FLOAT),
            "w13_global_scale": (_global_scale(arrays, "w13"), types.FLOAT),
            "w2_global_scale": (_global_scale(arrays, "w2"), types.FLOAT),
        }
        constants = {name: value for name, value in given.items() if value[0] is not None}
        self._ort, self._num_experts = ort, shape.num_experts
        self._values = {
            name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, element)
            for name, (array, element) in constants.items()
        }
        options = ort.SessionOptions()
        options.intra_op_num_threads = num_threads
        # Its threads spin while it computes, and no longer: they would slow down the next contender.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # Models are limited to 2 GB; weights that are handed over beside the model are not.
        options.add_external_initializers(list(self._values), list(self._values.values()))
        model = _model(onnx, shape, constants)
        try:
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises several classes, all of its own
            raise ValueError(
                f"onnxruntime {ort.__version__}: expected a CPU kernel of QMoE with quant_type "
                f"{_FORMATS[shape.format][0]!r}, got: {error}"
            ) from None

    @staticmethod
    def missing() -> str:
        """Which package is not installed."""
        for name in ("onnxruntime", "onnx"):
            if importlib.util.find_spec(name) is None:
                return f"the package {name} is not installed (pip install 'mxfp4moe[bench]')"
        return ""

    def prepare(self, batch: Batch) -> Callable[[], np.ndarray]:
        """Routing as two matrices over all experts: one to choose by, one that holds the weights."""
        hidden, weights, ids = batch
        chosen = np.zeros((len(hidden), self._num_experts), np.float32)
        mixing = np.zeros_like(chosen)
        np.put_along_axis(chosen, ids, 1, axis=1)
        np.put_along_axis(mixing, ids, weights, axis=1)
        inputs = {
            "hidden_states": hidden.astype(np.float32),
            "router_probs": chosen,
            "router_weights": mixing,
        }
        run = partial(self._session.run, ["result"], inputs)

        def call() -> np.ndarray:
            result: np.ndarray = run()[0]
            return result

        return call


def _bytes(scales: Any) -> np.ndarray:
    return np.asarray(scales).view(np.uint8)


def _global_scale(arrays: ExpertArrays, matrix: str) -> np.ndarray:
    """One float32 for each expert; gate and up share theirs."""
    scale = getattr(arrays, f"{matrix}_tensor_scale")
    if scale is None:
        return np.ones(len(arrays.w2), np.float32)
    by_expert = scale.reshape(len(scale), -1)
    if (by_expert != by_expert[:, :1]).any():
        raise ValueError(f"onnxruntime: expected the same {matrix}_tensor_scale for gate and up")
    return np.ascontiguousarray(by_expert[:, 0])


def _model(onnx: Any, shape: Shape, constants: dict[str, tuple[Any, int]]) -> bytes:
    """A model of one node, whose weights are elsewhere."""
    helper, types = onnx.helper, onnx.TensorProto
    if shape.activation not in _ALPHA_BETA:
        raise ValueError(f"onnxruntime: expected the activation silu or swigluoai, got {shape.activation}")
    quant_type, block_size, _ = _FORMATS[shape.format]
    alpha, beta = _ALPHA_BETA[shape.activation]
    attributes = {
        "k": shape.top_k,
        "activation_type": "swiglu",
        "activation_alpha": alpha,
        "activation_beta": beta,
        "swiglu_fusion": 1,
        "quant_type": quant_type,
        "weights_prepacked": 1,
        "expert_weight_bits": 4,
        "block_size": block_size,
        "normalize_routing_weights": 0,
    }
    if shape.limit is not None:
        attributes["swiglu_limit"] = shape.limit
    inputs = [name if name in constants or not name.startswith("w") else "" for name in _INPUTS]
    node = helper.make_node("QMoE", inputs, ["result"], domain="com.microsoft", **attributes)

    def rows(name: str, columns: int) -> Any:
        return helper.make_tensor_value_info(name, types.FLOAT, ["num_tokens", columns])

    graph = helper.make_graph(
        [node],
        "moe",
        [
            rows("hidden_states", shape.hidden_size),
            rows("router_probs", shape.num_experts),
            rows("router_weights", shape.num_experts),
        ],
        [rows("result", shape.hidden_size)],
        [_external(onnx, name, *value) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=11).SerializeToString()
    return model


def _external(onnx: Any, name: str, array: np.ndarray, element: int) -> Any:
    tensor = onnx.TensorProto(
        name=name, data_type=element, dims=array.shape, data_location=onnx.TensorProto.EXTERNAL
    )
    tensor.external_data.add(key="location", value=name)
    return tensor
