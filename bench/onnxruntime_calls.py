"""What a layer costs inside ONNX Runtime: FusedExperts beside ONNX Runtime's own QMoE, and beside NumPy.

A model with a node QMoE is converted; both and NumPy then take turns in one process, on the same weights and
tokens, a tenth of a second each. The best call counts, on an idle machine. It needs the operators,
and pip install 'mxfp4moe[onnxruntime]':

    python bench/onnxruntime_calls.py [--format int4] [--hidden-size 2880] [--num-experts 16] [--tokens 1]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

import mxfp4moe as mx

_SWIGLU = {
    "activation_type": "swiglu",
    "activation_alpha": 1.702,
    "activation_beta": 1.0,
    "swiglu_limit": 7.0,
}
# Attributes of QMoE, and the type of its scales.
_FORMATS: dict[str, tuple[dict[str, Any], str]] = {
    "int4": ({"block_size": 32}, "FLOAT"),
    "mxfp4": ({"quant_type": "fp4", "weights_prepacked": 1}, "FLOAT8E8M0"),
}


def qmoe_model(arguments: argparse.Namespace, rng: np.random.Generator) -> Any:
    """Random codes and scales that make results of order 1; gate and up rows interleaved."""
    helper, types = onnx.helper, onnx.TensorProto
    attributes, scale_type = _FORMATS[arguments.format]
    experts, hidden, inner = arguments.num_experts, arguments.hidden_size, arguments.intermediate_size
    constants = []
    for name, rows, columns in (("fc1", 2 * inner, hidden), ("fc2", hidden, inner)):
        codes = rng.integers(0, 256, (experts, rows, columns // 2), np.uint8)
        scales = rng.integers(119, 122, (experts, rows, columns // 32)).astype(np.uint8)
        values = scales if scale_type != "FLOAT" else np.ldexp(np.float32(1), scales.astype(np.int32) - 128)
        constants += [
            helper.make_tensor(name, types.UINT8, codes.shape, codes.tobytes(), raw=True),
            helper.make_tensor(
                f"{name}_scales", getattr(types, scale_type), scales.shape, values.tobytes(), raw=True
            ),
        ]
        if arguments.format == "mxfp4":
            one = np.ones(experts, np.float32)
            constants.append(
                helper.make_tensor(f"{name}_global", types.FLOAT, one.shape, one.tobytes(), raw=True)
            )
    inputs = ["x", "router", "fc1", "fc1_scales", "", "fc2", "fc2_scales", *[""] * 8]
    inputs += ["fc1_global", "fc2_global"] if arguments.format == "mxfp4" else []
    while not inputs[-1]:
        inputs.pop()
    node = helper.make_node(
        "QMoE", inputs, ["y"], domain="com.microsoft", k=arguments.top_k, swiglu_fusion=1,
        normalize_routing_weights=1, accuracy_level=arguments.accuracy_level, **_SWIGLU, **attributes,
    )  # fmt: skip
    shapes = {"x": hidden, "router": experts, "y": hidden}
    infos = {
        name: helper.make_tensor_value_info(name, types.FLOAT, ["tokens", size])
        for name, size in shapes.items()
    }
    graph = helper.make_graph([node], "graph", [infos["x"], infos["router"]], [infos["y"]], constants)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11)


def session_of(path: Path, num_threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.register_custom_ops_library(mx.onnxruntime.library_path())
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a layer inside ONNX Runtime.")
    parser.add_argument("--format", choices=_FORMATS, default="int4")
    parser.add_argument("--hidden-size", type=int, default=2880)
    parser.add_argument("--intermediate-size", type=int, default=2880)
    parser.add_argument("--num-experts", type=int, default=16)
    parser.add_argument("--top-k", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--accuracy-level", type=int, choices=[0, 4], default=0, help="of QMoE; 4: in int8")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=mx.get_num_threads())
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(qmoe_model(arguments, rng), folder / "qmoe.onnx")
        mx.onnxruntime.convert(folder / "qmoe.onnx", folder / "ours.onnx", packed_folder=folder)
        qmoe, ours = (session_of(folder / f"{each}.onnx", arguments.threads) for each in ("qmoe", "ours"))
        experts = mx.PackedExperts.open(folder / "experts-0")
        best = dict.fromkeys(("NumPy", "FusedExperts", "QMoE"), float("inf"))
        for _ in range(arguments.rounds):
            x = rng.standard_normal((arguments.tokens, arguments.hidden_size), np.float32)
            router = rng.standard_normal((arguments.tokens, arguments.num_experts), np.float32)
            inputs = {"x": x, "router": router}
            calls: dict[str, Callable[[], Any]] = {
                "NumPy": lambda x=x, router=router: mx.fused_moe(
                    x, experts, router, top_k=arguments.top_k, activation="swigluoai", alpha=1.702, limit=7.0,
                    num_threads=arguments.threads,
                ),
                "FusedExperts": lambda inputs=inputs: ours.run(None, inputs),
                "QMoE": lambda inputs=inputs: qmoe.run(None, inputs),
            }  # fmt: skip
            for name, call in calls.items():
                time.sleep(0.05)  # until the threads of the one before have stopped to look for work
                call()  # The weights of these experts, and the threads, are awake.
                end = time.perf_counter() + 0.1
                while (begin := time.perf_counter()) < end:
                    call()
                    best[name] = min(best[name], time.perf_counter() - begin)
    print(f"{arguments.format}, {arguments.tokens} tokens, {arguments.threads} threads")
    for name, seconds in best.items():
        print(f"{name:14} {1e3 * seconds:9.3f} ms {seconds / best['NumPy']:7.3f}")


if __name__ == "__main__":
    main()
