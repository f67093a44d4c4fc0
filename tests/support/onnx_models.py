"""Models for ONNX Runtime of one node, and sessions that run them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mxfp4moe as mx

BF16 = np.dtype(ml_dtypes.bfloat16)
_TYPES = {
    "float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16", "float64": "DOUBLE",
    "uint8": "UINT8", "int8": "INT8", "int32": "INT32", "int64": "INT64",
    "float8_e4m3fn": "FLOAT8E4M3FN", "float8_e5m2": "FLOAT8E5M2", "float8_e8m0fnu": "FLOAT8E8M0",
}  # fmt: skip


def library() -> str:
    """The library of operators; skips the test where there is none, or no ONNX Runtime."""
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    pytest.importorskip("onnx", reason="needs onnx")
    try:
        return mx.onnxruntime.library_path()
    except FileNotFoundError:
        pytest.skip("needs the operators for ONNX Runtime, with which this installation was not built")


def onnx_type(dtype: Any) -> int:
    import onnx

    return getattr(onnx.TensorProto, _TYPES[np.dtype(dtype).name])


def initializer(name: str, values: np.ndarray) -> Any:
    import onnx

    values = np.ascontiguousarray(values)
    return onnx.helper.make_tensor(
        name, onnx_type(values.dtype), values.shape, values.view(np.uint8).tobytes(), raw=True
    )


class Model:
    """A model of nodes that is fed arrays; results of bfloat16 come back in float32, which NumPy has."""

    def __init__(
        self,
        nodes: list[Any],
        inputs: dict[str, np.ndarray],
        outputs: dict[str, Any],
        constants: dict[str, np.ndarray],
    ) -> None:
        import onnx

        helper = onnx.helper
        self.outputs = list(outputs)
        wide = [name for name, dtype in outputs.items() if np.dtype(dtype) == BF16]
        casts = [
            helper.make_node("Cast", [name], [f"{name} wide"], to=onnx.TensorProto.FLOAT) for name in wide
        ]
        self.shown = [f"{name} wide" if name in wide else name for name in outputs]

        def value(name: str, dtype: Any, shape: Any) -> Any:
            return helper.make_tensor_value_info(name, onnx_type(dtype), shape)

        graph = helper.make_graph(
            [*nodes, *casts],
            "graph",
            [value(name, array.dtype, _axes(name, array)) for name, array in inputs.items()],
            [value(shown, outputs.get(shown, np.float32), None) for shown in self.shown],
            [initializer(name, array) for name, array in constants.items()],
        )
        opsets = [helper.make_opsetid(*each) for each in (("", 23), ("mxfp4moe", 1), ("com.microsoft", 1))]
        self.proto = helper.make_model(graph, opset_imports=opsets, ir_version=11)

    def session(self, num_threads: int = 2, **config: str) -> Any:
        return session(self.proto, num_threads, **config)

    def run(self, inputs: dict[str, np.ndarray], **options: Any) -> list[np.ndarray]:
        return run(self.session(**options), inputs, self.shown)


def _axes(name: str, array: np.ndarray) -> list[str | int]:
    """The last axis is known, as in real graphs, the others have names."""
    return [f"axis {i}" for i in range(array.ndim - 1)] + [array.shape[-1]]


def session(proto: Any, num_threads: int = 2, **config: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = num_threads
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    options.register_custom_ops_library(library())
    model = proto if isinstance(proto, str) else proto.SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(of: Any, inputs: dict[str, np.ndarray], outputs: list[str] | None = None) -> list[np.ndarray]:
    import onnxruntime

    values = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
            np.ascontiguousarray(array).view(np.uint16)
            if array.dtype == BF16
            else np.ascontiguousarray(array),
            onnx_type(array.dtype),
        )
        for name, array in inputs.items()
    }
    names = outputs or [each.name for each in of.get_outputs()]
    return [value.numpy() for value in of.run_with_ort_values(names, values)]


def node(
    kind: str, inputs: list[str], outputs: list[str], domain: str = "mxfp4moe", **attributes: Any
) -> Any:
    import onnx

    given = {name: value for name, value in attributes.items() if value is not None}
    return onnx.helper.make_node(kind, inputs, outputs, domain=domain, **given)
