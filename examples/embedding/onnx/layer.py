"""A mixture-of-experts layer inside an ONNX model: python layer.py

It needs the operators (docs/onnx-runtime.md), and pip install 'mxfp4moe[onnxruntime]'.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

import mxfp4moe as mx

# A layer, saved as a packed file: of a checkpoint it would be MoELayer.from_checkpoint(...).
rng = np.random.default_rng(0)
w13 = rng.standard_normal((8, 2 * 128, 64), np.float32)
w2 = rng.standard_normal((8, 64, 128), np.float32)
experts = mx.pack_experts(*mx.quantize_mxfp4(w13), *mx.quantize_mxfp4(w2))
layer = mx.MoELayer(experts, rng.standard_normal((8, 64), np.float32), top_k=2)
path = Path(tempfile.mkdtemp()) / "layer.mxfp4moe"
layer.save(path)

# A model that adds the layer's result to its input; nodes of ONNX and of mxfp4moe side by side.
helper = onnx.helper
nodes = [
    helper.make_node("MoELayer", ["x"], ["moe"], domain="mxfp4moe", path=str(path)),
    helper.make_node("Add", ["x", "moe"], ["y"]),
]
x, y = (
    helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", "sequence", 64]) for name in "xy"
)
model = helper.make_model(
    helper.make_graph(nodes, "model", [x], [y]),
    opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("mxfp4moe", 1)],
    ir_version=10,
)

options = onnxruntime.SessionOptions()
options.register_custom_ops_library(mx.onnxruntime.library_path())
session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
tokens = rng.standard_normal((2, 3, 64), np.float32)
(result,) = session.run(None, {"x": tokens})
print(result.shape, np.array_equal(result, tokens + layer(tokens.reshape(-1, 64)).reshape(tokens.shape)))
