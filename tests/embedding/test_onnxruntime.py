"""ONNX Runtime gives the bits of the Python package: every operator, format, dtype and instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from c_library import ISAS
from layer_fields import random_call
from onnx_models import BF16, Model, library, node, run
from packed_examples import FORMATS, ROUTINGS, activation_of, make_experts, make_layer
from problems import ACTIVATIONS, assert_same_bits
from programs import EXAMPLES, needs_sources

import mxfp4moe as mx

E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
DTYPES = (np.dtype(np.float32), np.dtype(np.float16), BF16)
EXPERT_INPUTS = (
    "w13", "w13_scales", "w2", "w2_scales", "w13_bias", "w2_bias", "w13_zero_points", "w2_zero_points",
    "w13_tensor_scale", "w2_tensor_scale",
)  # fmt: skip
LINEAR_INPUTS = ("weight", "scales", "bias", "zero_points", "tensor_scale")
AXES = (2, 3)  # of tokens


@pytest.fixture(autouse=True)
def _library() -> None:
    library()


@pytest.fixture
def attribute(isa: str) -> str:
    if isa not in ISAS:
        pytest.skip(f"{isa} is for tests of the package alone")
    return isa


def constants(arguments: dict[str, Any], names: tuple[str, ...]) -> tuple[dict[str, Any], list[str]]:
    """The arrays among them, and the inputs of a node."""
    arrays = {name: arguments[name] for name in names if isinstance(arguments.get(name), np.ndarray)}
    for name, array in arrays.items():
        if array.dtype == E8M0:  # which runtimes of the oldest version that is supported do not have
            arrays[name] = array.view(np.uint8)
    return arrays, [name if name in arrays else "" for name in names]


def weights_of(experts: mx.PackedExperts) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    arguments = experts.arguments()
    arrays, inputs = constants(arguments, EXPERT_INPUTS)
    blocks = arguments.get("block_shape")
    attributes = {
        "format": experts.format,
        "gate_up_layout": experts.gate_up_layout,
        "gated": int(experts.gated),
        "block_shape": blocks and [-1 if size is None else size for size in blocks],
    }
    return arrays, inputs, attributes


def tokens(rng: np.random.Generator, size: int, dtype: Any = np.float32) -> np.ndarray:
    return rng.standard_normal((*AXES, size)).astype(dtype)


def expert_inputs(rng: np.random.Generator, experts: mx.PackedExperts, dtype: Any) -> dict[str, np.ndarray]:
    return {
        "hidden_states": tokens(rng, experts.hidden_size, dtype),
        "topk_weights": rng.random((*AXES, 2), np.float32),
        "topk_ids": rng.integers(-1, experts.num_experts, (*AXES, 2)).astype(np.int64),
    }


def expert_model(
    inputs: dict[str, np.ndarray], weights: list[str], arrays: dict[str, Any], **attributes: Any
) -> Model:
    each = node("FusedExperts", [*inputs, *weights], ["out"], **attributes)
    return Model([each], inputs, {"out": inputs["hidden_states"].dtype}, arrays)


def same(got: np.ndarray, expected: np.ndarray) -> None:
    assert_same_bits(got, expected.astype(np.float32) if expected.dtype == BF16 else expected)


def python_bits(experts: mx.PackedExperts, inputs: dict[str, np.ndarray], **options: Any) -> np.ndarray:
    x, w, ids = (value.reshape(-1, value.shape[-1]) for value in inputs.values())
    return mx.fused_experts(x, experts, w, ids, **options).reshape(inputs["hidden_states"].shape)


@pytest.mark.parametrize("name", FORMATS)
def test_experts(rng: np.random.Generator, tmp_path: Path, attribute: str, name: str) -> None:
    experts = make_experts(rng, name)
    experts.save(tmp_path / "experts")
    arrays, weights, attributes = weights_of(experts)
    for dtype in DTYPES:
        inputs = expert_inputs(rng, experts, dtype)
        activation = activation_of(experts)
        expected = python_bits(experts, inputs, activation=activation)
        for each in (
            expert_model(inputs, weights, arrays, isa=attribute, **attributes),
            expert_model(inputs, [], {}, isa=attribute, path=str(tmp_path / "experts"), verify=1),
        ):
            session = each.session()
            assert session.get_outputs()[0].shape == ["axis 0", "axis 1", experts.hidden_size]
            same(run(session, inputs)[0], expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(rng: np.random.Generator, activation: str) -> None:
    experts = make_experts(rng, "mxfp4 of gpt-oss")
    arrays, weights, attributes = weights_of(experts)
    inputs = expert_inputs(rng, experts, np.float32) | {"topk_ids": np.ones((*AXES, 2), np.int32)}
    numbers = {"swigluoai": {"alpha": 1.25, "limit": 3.5}, "silu_clamp": {"limit": 2.0}}.get(activation, {})
    options = {"activation": activation, **numbers}
    model = expert_model(inputs, weights, arrays, **attributes, **options)
    same(model.run(inputs)[0], python_bits(experts, inputs, **options))
    one = {name: value[..., :1] if name.startswith("topk") else value for name, value in inputs.items()}
    on_input = expert_model(one, weights, arrays, **attributes, **options, apply_router_weight_on_input=1)
    expected = python_bits(experts, one, **options, apply_router_weight_on_input=True)
    same(on_input.run(one)[0], expected)


def test_tokens_in_rows_and_none(rng: np.random.Generator) -> None:
    """Ids may be of rows where hidden states have more axes; and a call without tokens has no result."""
    experts = make_experts(rng, "int4")
    arrays, weights, attributes = weights_of(experts)
    inputs = expert_inputs(rng, experts, np.float32)
    rows = inputs | {name: inputs[name].reshape(-1, 2) for name in ("topk_weights", "topk_ids")}
    same(expert_model(rows, weights, arrays, **attributes).run(rows)[0], python_bits(experts, inputs))
    none = {name: value[:0] for name, value in inputs.items()}
    assert expert_model(none, weights, arrays, **attributes).run(none)[0].shape == (0, *AXES[1:], 64)


@pytest.mark.parametrize(
    "format", ["mxfp4", "mxfp8", "nvfp4", "fp8_block", "int4", "int8", "bf16", "float32"]
)
def test_linears(rng: np.random.Generator, tmp_path: Path, attribute: str, format: Any) -> None:
    weight, bias = rng.standard_normal((40, 64), np.float32), rng.standard_normal(40, np.float32)
    target = None if format in ("bf16", "float32") else format
    linear = mx.pack_linear(weight, format=format, bias=bias, quantize=target)
    linear.save(tmp_path / "linear")
    arrays, names = constants(linear.arguments(), LINEAR_INPUTS)
    for dtype in DTYPES:
        inputs = {"hidden_states": tokens(rng, 64, dtype)}
        expected = linear(inputs["hidden_states"], dtype=dtype)
        packed = node("Linear", ["hidden_states", *names], ["out"], format=format, isa=attribute)
        opened = node("Linear", ["hidden_states"], ["out"], path=str(tmp_path / "linear"), isa=attribute)
        for each, given in ((packed, arrays), (opened, {})):
            session = Model([each], inputs, {"out": dtype}, given).session()
            assert session.get_outputs()[0].shape == ["axis 0", "axis 1", 40]
            same(run(session, inputs)[0], expected)


@pytest.mark.parametrize("routing", ROUTINGS)
def test_layers(rng: np.random.Generator, tmp_path: Path, attribute: str, routing: str) -> None:
    layer = make_layer(rng, routing)
    layer.save(tmp_path / "layer")
    dtype = DTYPES[len(routing) % 3]
    inputs = {"hidden_states": tokens(rng, layer.hidden_size, dtype)}
    if layer.routing == "hash_topk":
        inputs["input_ids"] = rng.integers(0, 4, AXES)
    each = node("MoELayer", list(inputs), ["out"], path=str(tmp_path / "layer"), isa=attribute)
    got = Model([each], inputs, {"out": dtype}, {}).run(inputs)[0]
    same(got, layer(inputs["hidden_states"], inputs.get("input_ids")))


def test_layer_whose_router_has_an_input(rng: np.random.Generator, tmp_path: Path) -> None:
    chosen = random_call(rng, ["router input"], 5)
    chosen.layer.save(tmp_path / "layer")
    inputs = {"x": chosen.hidden_states, "router": chosen.router}
    each = node("MoELayer", ["x", "", "router"], ["out"], path=str(tmp_path / "layer"))
    got = Model([each], inputs, {"out": chosen.hidden_states.dtype}, {}).run(inputs)[0]
    same(got, chosen.run())
    without = node("MoELayer", ["x"], ["out"], path=str(tmp_path / "layer"))
    fails(
        Model([without], {"x": chosen.hidden_states}, {"out": np.float32}, {}),
        "router_hidden_states",
        {"x": inputs["x"]},
    )


@pytest.mark.parametrize("scale_rule", ["floor", "ceil", "rceil", "even"])
def test_quantize(rng: np.random.Generator, attribute: str, scale_rule: Any) -> None:
    for dtype in DTYPES:
        inputs = {"values": tokens(rng, 96, dtype)}
        each = node("QuantizeMXFP4", ["values"], ["blocks", "scales"], scale_rule=scale_rule, isa=attribute)
        session = Model([each], inputs, {"blocks": np.uint8, "scales": np.uint8}, {}).session()
        shapes = [each.shape for each in session.get_outputs()]
        assert shapes == [["axis 0", "axis 1", 48], ["axis 0", "axis 1", 3]]
        blocks, scales = mx.quantize_mxfp4(inputs["values"], scale_rule=scale_rule)
        got = run(session, inputs)
        assert_same_bits(got[0], blocks)
        assert_same_bits(got[1], scales.view(np.uint8))


def fails(model: Model, match: str, inputs: dict[str, np.ndarray] | None = None, **options: Any) -> None:
    """Making a session of it, or running it with these inputs, is an error that says so."""
    with pytest.raises(Exception, match=match) as found:
        session = model.session(**options)
        if inputs is not None:
            run(session, inputs, model.shown)
    assert type(found.value).__module__.startswith("onnxruntime")


ATTRIBUTES: dict[str, tuple[dict[str, Any], str]] = {
    "format": ({"format": "mxfp5"}, "format: expected one of mxfp4, .*, got mxfp5"),
    "activation": ({"activation": "relu"}, "activation: expected one of silu, .*, got relu"),
    "type of an attribute": (
        {"num_threads": 1.5},
        "num_threads: expected an integer, got an attribute of another",
    ),
    "number of threads": (
        {"num_threads": 2000},
        r"num_threads: expected an integer in \[0, 1024\], got 2000",
    ),
    "flag": ({"gated": 2}, r"gated: expected an integer in \[0, 1\], got 2"),
    "block_shape": ({"block_shape": [128]}, "block_shape: expected 2 integers, got 1"),
    "instruction set": ({"isa": "sse2"}, "isa: expected one of best, portable"),
    "weights twice": ({"path": "weights"}, "w13: expected no input beside the attribute path, got both"),
    "layout": ({"gate_up_layout": "up_gate"}, "gate_up_layout: expected one of concatenated, interleaved"),
    "half the rows": ({"gated": 0}, r"w2: expected shape \[3, 64, 32\], got \[3, 64, 16\]"),
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_wrong_attributes(rng: np.random.Generator, name: str) -> None:
    experts = make_experts(rng, "mxfp4")
    wrong, match = ATTRIBUTES[name]
    arrays, weights, attributes = weights_of(experts)
    inputs = expert_inputs(rng, experts, np.float32)
    fails(expert_model(inputs, weights, arrays, **attributes | wrong), f"mxfp4moe.FusedExperts: {match}")


def test_wrong_weights(rng: np.random.Generator, tmp_path: Path) -> None:
    experts = make_experts(rng, "mxfp4")
    arrays, weights, attributes = weights_of(experts)
    inputs = expert_inputs(rng, experts, np.float32)

    def wrong(match: str, **changed: np.ndarray) -> None:
        fails(expert_model(inputs, weights, arrays | changed, **attributes), match)

    wrong("w13: expected 3 axes", w13=arrays["w13"].reshape(3, -1))
    wrong(r"w2: expected shape \[3, 64, 16\]", w2=arrays["w2"][:2])
    wrong(r"w13_scales: expected shape \[3, 64, any\]", w13_scales=arrays["w13_scales"].reshape(3, 2, 64))
    wrong("w13.dtype: expected one that the format has", w13=arrays["w13"].astype(np.float32))
    wrong("w13: expected a tensor of floats or of 8-bit integers", w13=arrays["w13"].astype(np.int64))
    fails(expert_model(inputs, [], {}, **attributes), "w13: expected an initializer, or the attribute path")
    given = inputs | {"w13": arrays["w13"]}
    others = {name: value for name, value in arrays.items() if name != "w13"}
    computed = node("FusedExperts", [*inputs, *weights], ["out"], **attributes)
    fails(Model([computed], given, {"out": np.float32}, others), "w13: expected an initializer, got an input")
    fails(expert_model(inputs, [], {}, path=str(tmp_path / "none")), "none: expected a file, got nothing")
    (tmp_path / "short").write_bytes(b"short")
    fails(expert_model(inputs, [], {}, path=str(tmp_path / "short")), "short: expected")
    mx.pack_linear(np.ones((32, 64), np.float32)).save(tmp_path / "linear")
    fails(expert_model(inputs, [], {}, path=str(tmp_path / "linear")), "linear")
    layer = node("MoELayer", ["x"], ["out"])
    fails(Model([layer], {"x": inputs["hidden_states"]}, {"out": np.float32}, {}), "path: expected the path")
    for path, match in (
        ("", "weight: expected an initializer"),
        (str(tmp_path / "none"), "got nothing at that"),
    ):
        linear = node("Linear", ["x"], ["out"], path=path)
        fails(Model([linear], {"x": inputs["hidden_states"]}, {"out": np.float32}, {}), match)


def test_wrong_inputs(rng: np.random.Generator) -> None:
    experts = make_experts(rng, "mxfp4")
    arrays, weights, attributes = weights_of(experts)
    inputs = expert_inputs(rng, experts, np.float32)

    def wrong(match: str, **changed: np.ndarray) -> None:
        given = inputs | changed
        fails(expert_model(given, weights, arrays, **attributes), match, given)

    ids = inputs["topk_ids"]
    wrong(r"topk_ids: expected values in \[-1, 2\], got 7", topk_ids=np.where(ids < 0, ids, 7))
    wrong(r"topk_ids: expected values in \[-1, 2\]", topk_ids=np.full_like(ids, 2**32))
    wrong("topk_ids: expected a tensor of int32 or int64", topk_ids=ids.astype(np.float32))
    wrong(r"topk_ids: expected shape \[2, 3, any\]", topk_ids=ids[:1])
    wrong(r"topk_weights: expected shape \[2, 3, 2\]", topk_weights=inputs["topk_weights"][..., :1])
    wrong("hidden_states: expected a last axis of 64", hidden_states=inputs["hidden_states"][..., :32])
    nan = {"hidden_states": np.full_like(inputs["hidden_states"], np.nan)}
    values = {"x": nan["hidden_states"]}
    quantize = node("QuantizeMXFP4", ["x"], ["blocks", "scales"])
    model = Model([quantize], values, {"blocks": np.uint8, "scales": np.uint8}, {})
    fails(model, "QuantizeMXFP4: .*finite", values)
    short = {"x": values["x"][..., :48]}
    model = Model([quantize], short, {"blocks": np.uint8, "scales": np.uint8}, {})
    fails(model, "values: expected a last axis that is a multiple of 32", short)


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_threads_of_the_session(rng: np.random.Generator, num_threads: int) -> None:
    """Whatever the session has, and however many a node asks for: the same bits from several runs at once."""
    experts = make_experts(rng, "int8 with zero points", num_experts=8)
    arrays, weights, attributes = weights_of(experts)
    inputs = expert_inputs(rng, experts, np.float32)
    expected = python_bits(experts, inputs)
    for wanted in (0, 3):
        model = expert_model(inputs, weights, arrays, num_threads=wanted, **attributes)
        session = model.session(num_threads)
        results: list[np.ndarray] = []

        def work(of: Any = session, into: list[np.ndarray] = results) -> None:
            into.extend(run(of, inputs)[0] for _ in range(5))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 15
        for result in results:
            same(result, expected)


SCRIPT = """
import ctypes, sys
import numpy as np
from onnx_models import session, run
model, inputs = sys.argv[1:]
run(session(model), dict(np.load(inputs)))
library = ctypes.CDLL(sys.modules["mxfp4moe"].__path__[0] + "/lib/libmxfp4moe.so")
print(library.mxfp4moe_num_pool_threads())
"""


def test_no_thread_is_made(rng: np.random.Generator, tmp_path: Path) -> None:
    """In a process that does nothing else the library has no thread of its own afterwards."""
    import onnx

    experts = make_experts(rng, "bf16", num_experts=8)
    arrays, weights, attributes = weights_of(experts)
    inputs = expert_inputs(rng, experts, np.float32)
    onnx.save(expert_model(inputs, weights, arrays, **attributes).proto, tmp_path / "model.onnx")
    np.savez(tmp_path / "inputs.npz", **inputs)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "model.onnx"), str(tmp_path / "inputs.npz")]
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert (result.returncode, result.stdout) == (0, "0\n"), result.stderr


@needs_sources
def test_example() -> None:
    printed = subprocess.run(
        [sys.executable, EXAMPLES / "onnx" / "layer.py"], capture_output=True, text=True, timeout=120
    )
    assert (printed.returncode, printed.stdout) == (0, "(2, 3, 64) True\n"), printed.stderr


def test_one_symbol_is_exported() -> None:
    try:
        result = subprocess.run(
            ["nm", "-D", "--defined-only", library()], capture_output=True, text=True, check=True
        )
    except FileNotFoundError:
        pytest.skip("needs nm")
    assert [line.split()[-1] for line in result.stdout.splitlines()] == ["RegisterCustomOps"]
