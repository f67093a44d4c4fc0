"""Arrays of other libraries, as arguments and as out, give the bits of the same call on NumPy's arrays."""

from __future__ import annotations

import array
import importlib
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from dlpack import READ_ONLY, Exporter
from problems import Problem, Shape, assert_same_bits, bfloat16, random_problem

import mxfp4moe as mx

SHAPE = Shape(6, 64, 32, 4, 2)


def torch_tensor(value: np.ndarray) -> Any:
    torch = importlib.import_module("torch")
    bits = value.view(f"i{value.itemsize}") if value.dtype.isbuiltin == 2 else value
    tensor = torch.from_numpy(np.asarray(bits, order="C"))
    return tensor.view(getattr(torch, value.dtype.name)) if bits is not value else tensor


def jax_array(value: np.ndarray) -> Any:
    return importlib.import_module("jax.numpy").asarray(value)


def pyarrow_tensor(value: np.ndarray) -> Any:
    return importlib.import_module("pyarrow").Tensor.from_numpy(np.asarray(value, order="C"))


LIBRARIES: dict[str, Callable[[np.ndarray], Any]] = {
    "dlpack 0.8": lambda value: Exporter(value, version=(0, 8)),
    "dlpack 1.0": lambda value: Exporter(value),
    "dlpack 1.0 read-only": lambda value: Exporter(value, flags=READ_ONLY),
    "memoryview": memoryview,
    "torch": torch_tensor,
    "jax": jax_array,
    "pyarrow": pyarrow_tensor,
}
WITHOUT_BFLOAT16 = ("memoryview", "pyarrow")


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name in ("torch", "jax", "pyarrow"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    return name


@pytest.fixture
def foreign(library: str) -> Callable[[Any], Any]:
    """What makes of an array one of the library; None, and bfloat16 that it does not know, stay."""

    def convert(value: Any) -> Any:
        unknown = value is None or (library in WITHOUT_BFLOAT16 and value.dtype.isbuiltin == 2)
        return value if unknown else LIBRARIES[library](value)

    return convert


def problem_of(rng: np.random.Generator, dtype: Any = bfloat16) -> Problem:
    return random_problem(rng, SHAPE, dtype=dtype, bias="both")


@pytest.mark.parametrize("dtype", [bfloat16, np.float16, np.float32], ids=["bfloat16", "float16", "float32"])
def test_every_argument_of_a_call(isa, rng, foreign, dtype):
    problem = problem_of(rng, dtype)
    experts = problem.pack()
    given = [
        foreign(problem.hidden_states),
        experts,
        foreign(problem.topk_weights),
        foreign(problem.topk_ids),
    ]
    assert_same_bits(mx.fused_experts(*given), problem.run(experts))
    local = np.arange(4, dtype=np.int32)[::-1].copy()
    expected = problem.run(experts, expert_map=local)
    assert_same_bits(mx.fused_experts(*given, expert_map=foreign(local)), expected)
    logits = rng.standard_normal((6, 4), np.float32)
    expected = mx.fused_moe(problem.hidden_states, experts, logits, 2)
    assert_same_bits(mx.fused_moe(given[0], experts, foreign(logits), 2), expected)


def test_routing_functions(rng, foreign):
    logits = rng.standard_normal((6, 4), np.float32)
    bias = rng.standard_normal(4, np.float32)
    ids, table = rng.integers(0, 9, 6), rng.integers(0, 4, (9, 2))
    pairs = (
        (mx.topk_softmax(logits, 2), mx.topk_softmax(foreign(logits), 2)),
        (
            mx.topk_sigmoid(logits, 2, correction_bias=bias),
            mx.topk_sigmoid(foreign(logits), 2, correction_bias=foreign(bias)),
        ),
        (mx.hash_topk(logits, ids, table), mx.hash_topk(foreign(logits), foreign(ids), foreign(table))),
    )
    for expected, got in pairs:
        for of_numpy, of_library in zip(expected, got, strict=True):
            assert_same_bits(
                of_library.view(f"u{of_library.itemsize}"), of_numpy.view(f"u{of_numpy.itemsize}")
            )


def test_packing(rng, foreign):
    arrays = problem_of(rng).arrays
    names = ("w13", "w13_scales", "w2", "w2_scales")
    given = [getattr(arrays, name) for name in names]
    biases = {"w13_bias": arrays.w13_bias, "w2_bias": arrays.w2_bias.astype(bfloat16)}
    expected = mx.pack_experts(*given, **biases)
    foreign_biases = {name: foreign(value) for name, value in biases.items()}
    assert mx.pack_experts(*map(foreign, given), **foreign_biases) == expected
    lists = [[foreign(expert) for expert in value] for value in given]
    assert mx.pack_experts(*lists, **foreign_biases) == expected
    halves = [tuple(foreign(half) for half in np.split(value, 2, axis=1)) for value in given[:2]]
    assert mx.pack_experts(*halves, *map(foreign, given[2:]), **foreign_biases) == expected


def test_packing_of_two_experts_is_not_taken_for_gate_and_up(rng, foreign):
    w13, w2 = rng.standard_normal((2, 64, 32), np.float32), rng.standard_normal((2, 32, 32), np.float32)
    expected = mx.pack_experts(w13, None, w2, None, format="bf16")
    given = [[foreign(expert) for expert in value] for value in (w13, w2)]
    assert mx.pack_experts(given[0], None, given[1], None, format="bf16") == expected


@pytest.mark.parametrize("dtype", [bfloat16, np.float32, np.float64], ids=["bfloat16", "float32", "float64"])
def test_quantizers(isa, rng, foreign, library, dtype):
    if library == "jax" and dtype == np.float64:
        pytest.skip("JAX makes float32 of float64 by default")
    w = rng.standard_normal((4, 64)).astype(dtype)
    for quantize, dequantize in (
        (mx.quantize_mxfp4, mx.dequantize_mxfp4),
        (mx.quantize_mxfp8, mx.dequantize_mxfp8),
        (mx.quantize_nvfp4, mx.dequantize_nvfp4),
        (lambda a: mx.quantize_int4(a, symmetric=False), mx.dequantize_int4),
        (lambda a: mx.quantize_int8(a, symmetric=False), mx.dequantize_int8),
    ):
        expected, got = quantize(w), quantize(foreign(w))
        for of_numpy, of_library in zip(expected, got, strict=True):
            assert np.array_equal(of_library, of_numpy)
        given = [foreign(value) if np.ndim(value) else value for value in got]
        assert_same_bits(dequantize(*given), dequantize(*expected))


def test_a_layer(isa, rng, foreign):
    problem = problem_of(rng)
    router, bias = rng.standard_normal((4, 64), np.float32), rng.standard_normal(4, np.float32)
    correction = rng.standard_normal(4, np.float32)

    def layer(convert: Callable[[Any], Any]) -> mx.MoELayer:
        return mx.MoELayer(
            problem.pack(),
            convert(router),
            convert(bias),
            top_k=2,
            routing="topk_sigmoid",
            routing_arguments={"correction_bias": convert(correction)},
        )

    ours, theirs = layer(lambda value: value), layer(foreign)
    assert ours == theirs
    assert_same_bits(theirs(foreign(problem.hidden_states)), ours(problem.hidden_states))


@pytest.fixture(params=["dlpack 1.0", "torch"])
def writeable(request: pytest.FixtureRequest) -> Callable[[np.ndarray], Any]:
    """What makes an object on the memory of an array that can be written."""
    if request.param == "torch":
        pytest.importorskip("torch", reason="torch is not installed")
    return LIBRARIES[request.param]


@pytest.mark.parametrize("dtype", [bfloat16, np.float16, np.float32], ids=["bfloat16", "float16", "float32"])
def test_out_is_written_in_place_and_returned(isa, rng, writeable, dtype):
    problem = problem_of(rng)
    memory = np.zeros((6, 64), dtype)
    out = writeable(memory)
    expected = problem.run(out=np.zeros((6, 64), dtype))
    assert problem.run(out=out) is out
    assert_same_bits(memory, expected)
    layer = mx.MoELayer(
        problem.pack(), rng.standard_normal((4, 64), np.float32), top_k=2, nonfinite="propagate"
    )
    hidden = problem.hidden_states.copy()
    hidden[2, 3] = np.nan
    assert layer(hidden, out=out) is out
    assert_same_bits(memory, layer(hidden, out=np.zeros((6, 64), dtype)))


def test_out_may_be_the_hidden_states_themselves(isa, rng, writeable):
    problem = problem_of(rng)
    expected = problem.run()
    memory = problem.hidden_states.copy()
    both = writeable(memory)
    assert problem._replace(hidden_states=both).run(out=both) is both
    assert_same_bits(memory, expected)


@pytest.mark.parametrize("given", ["hidden_states", "topk_weights", "topk_ids"])
def test_out_must_not_overlap_an_input(rng, writeable, given):
    problem = problem_of(rng, np.float32)
    memory = np.zeros(7 * 64, np.float32)
    value = getattr(problem, given)
    inside = memory[: value.size].view(value.dtype).reshape(value.shape)
    inside[...] = value
    with pytest.raises(ValueError, match=f"out: expected memory apart from {given}.*, got an overlap"):
        problem._replace(**{given: writeable(inside)}).run(out=writeable(memory[4:][: 6 * 64].reshape(6, 64)))


def test_out_that_cannot_be_written_is_refused(rng):
    problem = problem_of(rng, np.float32)
    memory = np.zeros((6, 64), np.float32)
    for name in ("dlpack 0.8", "dlpack 1.0 read-only"):
        with pytest.raises(ValueError, match="out: expected a writeable array, got a read-only one"):
            problem.run(out=LIBRARIES[name](memory))
    for value in (memory.tolist(), memoryview(memory), b"", 3):
        with pytest.raises(TypeError, match="out: expected an ndarray or an object with __dlpack__, got"):
            problem.run(out=value)
    with pytest.raises(
        TypeError, match="out: expected an array of float32, float16 or bfloat16, got .*int32"
    ):
        problem.run(out=Exporter(memory.view(np.int32)))
    with pytest.raises(ValueError, match=r"out: expected shape \(6, 64\), got shape \(64, 6\)"):
        problem.run(out=Exporter(memory.reshape(64, 6)))
    assert not memory.any()


def test_arrays_of_the_standard_library(rng):
    problem = problem_of(rng, np.float32)
    values = {"topk_weights": problem.topk_weights, "topk_ids": problem.topk_ids}
    shaped = {
        name: memoryview(array.array(value.dtype.char, value.reshape(-1).tolist())).cast("B")
        for name, value in values.items()
    }
    shaped = {name: view.cast(values[name].dtype.char, values[name].shape) for name, view in shaped.items()}
    assert_same_bits(problem._replace(**shaped).run(), problem.run())
    token = problem.tokens(0)
    flat = token._replace(hidden_states=array.array("f", token.hidden_states.tolist()))
    assert_same_bits(flat.run(), token.run())


def test_a_torch_tensor_with_gradients_is_refused_with_the_way_out(rng):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    problem = problem_of(rng, np.float32)
    for dtype in (torch.float32, torch.bfloat16):
        tensor = torch.nn.Parameter(torch_tensor(problem.hidden_states).to(dtype))
        with pytest.raises(
            TypeError, match=r"hidden_states: expected an array, got .*Parameter \(.*tensor.detach\(\)"
        ):
            problem._replace(hidden_states=tensor).run()
        problem._replace(hidden_states=tensor.detach()).run()
    with pytest.raises(TypeError, match="hidden_states: expected an array, got .*Tensor .*meta"):
        problem._replace(hidden_states=torch.zeros(6, 64, device="meta")).run()


def test_jax_arrays_are_not_written(rng):
    pytest.importorskip("jax", reason="jax is not installed")
    with pytest.raises(ValueError, match="out: expected a writeable array, got a read-only one"):
        problem_of(rng, np.float32).run(out=jax_array(np.zeros((6, 64), np.float32)))


def test_raw_bits_and_other_floats_of_a_call_say_what_to_pass(rng):
    problem = problem_of(rng)
    experts = problem.pack()

    def refused(hidden: Any, message: str) -> None:
        with pytest.raises(TypeError, match=message):
            mx.fused_experts(hidden, experts, problem.topk_weights, problem.topk_ids)

    raw = problem.hidden_states.view(np.uint16)
    view = r"hidden_states: expected .*uint16.*pass hidden_states.view\(ml_dtypes.bfloat16\)"
    refused(raw, view)
    refused(raw.view("V2"), view.replace("uint16", "V2"))
    refused(raw.astype(np.float64), r"hidden_states: expected .*pass hidden_states.astype\(np.float32\)")
    refused(raw.tolist(), r"hidden_states: expected .*pass np.asarray\(hidden_states\).astype\(np.float32\)")
    w = np.ones((2, 32), ml_dtypes.bfloat16)
    with pytest.raises(TypeError, match=r"w: expected .*pass w.view\(ml_dtypes.bfloat16\)"):
        mx.quantize_mxfp4(w.view(np.uint16))
    with pytest.raises(TypeError, match=r"w13_bias: expected .*pass w13_bias.astype\(np.float32\)"):
        mx.pack_experts(*problem.arrays[:4], w13_bias=problem.arrays.w13_bias.astype(np.float64))
