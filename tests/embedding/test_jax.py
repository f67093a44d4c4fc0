"""Calls inside of JAX programs: the bits of NumPy, whether XLA calls the kernels itself or Python."""

from __future__ import annotations

import gc
import importlib
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from layer_fields import FIELDS, PYTHON_ONLY, random_call
from packed_examples import FORMATS, ROUTINGS, SPECIAL_FORMATS, activation_of, make_experts, make_layer
from problems import assert_same_bits

import mxfp4moe as mx

jax = pytest.importorskip("jax", reason="jax is not installed")
import jax.numpy as jnp  # noqa: E402

import mxfp4moe.jax  # noqa: E402
from mxfp4moe.jax import _ffi  # noqa: E402

BF16 = ml_dtypes.bfloat16
DTYPES = (BF16, np.float16, np.float32)
NUM_TOKENS = 5
# Which of them JAX raises depends on whether a call is computed at once or later.
RUNTIME_ERRORS = (jax.errors.JaxRuntimeError, ValueError)
HAS_FFI = mxfp4moe.jax.backend() == "ffi"


@pytest.fixture(params=["ffi", "pure_callback"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each way to the kernels that this installation has."""
    if request.param == "ffi" and not HAS_FFI:
        pytest.skip("this JAX takes the version of the foreign functions no more")
    if request.param == "pure_callback":
        monkeypatch.setattr(_ffi, "foreign_functions", lambda: None)
    yield request.param
    jax.clear_caches()


class Call:
    """Experts, and what they are called with."""

    def __init__(self, rng: np.random.Generator, name: str = "mxfp4", dtype: Any = np.float32) -> None:
        self.experts = make_experts(rng, name)
        self.activation: Any = activation_of(self.experts)
        self.x = rng.standard_normal((NUM_TOKENS, self.experts.hidden_size)).astype(dtype)
        self.weights = rng.random((NUM_TOKENS, 2), np.float32)
        self.ids = rng.integers(-1, self.experts.num_experts, (NUM_TOKENS, 2)).astype(np.int32)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.x, self.weights, self.ids

    def numpy(self, **options: Any) -> np.ndarray:
        x, weights, ids = self.arrays
        return mx.fused_experts(x, self.experts, weights, ids, activation=self.activation, **options)

    def jax(self, x: Any, weights: Any, ids: Any, **options: Any) -> Any:
        options = {"activation": self.activation, **options}
        return mxfp4moe.jax.fused_experts(x, self.experts, weights, ids, **options)

    def jitted(self, **options: Any) -> np.ndarray:
        return np.asarray(jax.jit(lambda *arrays: self.jax(*arrays, **options))(*self.arrays))


@pytest.mark.parametrize("name", [*FORMATS, *SPECIAL_FORMATS])
def test_formats(rng: np.random.Generator, isa: str, name: str) -> None:
    call = Call(rng, name, DTYPES[len(name) % 3])
    assert_same_bits(call.jitted(), call.numpy())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("result", DTYPES)
def test_dtypes(rng: np.random.Generator, backend: str, dtype: Any, result: Any) -> None:
    call = Call(rng, dtype=dtype)
    got = call.jitted(dtype=result, num_threads=2)
    assert got.dtype == result
    assert_same_bits(got, call.numpy(out=np.empty(call.x.shape, result)))
    assert_same_bits(call.jitted(), call.numpy())


OPTIONS: tuple[dict[str, Any], ...] = (
    {"activation": "swigluoai", "alpha": 1.5, "limit": 3.0},
    {"activation": "silu", "limit": np.inf},
    {"activation": "situ"},
    {"apply_router_weight_on_input": True},
    {"combine": False},
    {"activation_format": "int8"},
    {"expert_map": np.array([2, -1, 0, 1])},
    {"expert_map": jnp.array([2, -1, 0, 1]), "combine": False, "limit": 0.5},
)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
def test_options(rng: np.random.Generator, backend: str, options: dict[str, Any]) -> None:
    call = Call(rng, "mxfp4 of gpt-oss", BF16)
    call.activation = options.pop("activation", "silu")
    try:
        assert_same_bits(call.jitted(**options), call.numpy(**options))
    finally:
        options["activation"] = call.activation


@pytest.mark.parametrize("tokens, slots", [((), 2), ((0,), 2), ((3,), 0), ((2, 1, 3), 1)])
def test_shapes(rng: np.random.Generator, backend: str, tokens: tuple[int, ...], slots: int) -> None:
    call = Call(rng)
    call.x = rng.standard_normal((*tokens, call.x.shape[-1]), np.float32)
    call.weights = rng.random((*tokens, slots), np.float32)
    call.ids = rng.integers(-1, 3, (*tokens, slots)).astype(np.int8)
    assert_same_bits(call.jitted(), call.numpy())
    assert_same_bits(call.jitted(combine=False), call.numpy(combine=False))


def test_weights_of_float64(rng: np.random.Generator, backend: str) -> None:
    """They are rounded to float32, wherever JAX has such numbers."""
    call = Call(rng)
    call.weights = call.weights.astype(np.float64) + 2.0**-30
    for enabled in (True, False):
        jax.config.update("jax_enable_x64", enabled)
        try:
            assert_same_bits(call.jitted(), call.numpy())
        finally:
            jax.config.update("jax_enable_x64", False)


def test_abstract_values(rng: np.random.Generator) -> None:
    call = Call(rng, dtype=np.float16)
    result = jax.eval_shape(call.jax, *call.arrays)
    assert (result.shape, result.dtype) == (call.x.shape, np.float16)
    terms = jax.eval_shape(lambda *arrays: call.jax(*arrays, combine=False), *call.arrays)
    assert (terms.shape, terms.dtype) == ((NUM_TOKENS, 2, call.x.shape[-1]), np.float32)


def test_what_is_not_traced(rng: np.random.Generator, backend: str) -> None:
    call = Call(rng)
    assert_same_bits(np.asarray(call.jax(*call.arrays)), call.numpy())
    call.ids = call.ids.astype(np.uint64)
    call.ids[call.ids > 2] = 0
    assert_same_bits(np.asarray(call.jax(*call.arrays)), call.numpy())


@pytest.mark.parametrize("axes", [(0, 0, 0), (1, None, 0), (0, 0, None), (None, 0, 0)])
def test_vmap(rng: np.random.Generator, backend: str, axes: Any) -> None:
    call = Call(rng)
    batch = [
        array if axis is None else np.stack([array, array[::-1], array], axis)
        for array, axis in zip(call.arrays, axes, strict=True)
    ]
    got = np.asarray(jax.jit(jax.vmap(call.jax, axes))(*batch))
    for i in range(3):
        parts = [
            array if axis is None else np.take(array, i, axis)
            for array, axis in zip(batch, axes, strict=True)
        ]
        call.x, call.weights, call.ids = parts
        assert_same_bits(got[i], call.numpy())


def test_vmap_in_vmap_with_a_map(rng: np.random.Generator, backend: str) -> None:
    call = Call(rng)
    batch = [np.stack([array, array]) for array in call.arrays]
    options = {"expert_map": np.array([1, 0, -1])}
    got = jax.vmap(jax.vmap(lambda *arrays: call.jax(*arrays, **options)))(*batch)
    assert_same_bits(np.asarray(got)[1], call.numpy(**options))


def test_loops(rng: np.random.Generator, backend: str) -> None:
    """A carried hidden state, as in decoding."""
    call = Call(rng, dtype=BF16)

    @jax.jit
    def run(x: Any) -> Any:
        return jax.lax.fori_loop(0, 3, lambda _, h: call.jax(h, call.weights, call.ids), x)

    expected = call.x
    for _ in range(3):
        expected = mx.fused_experts(expected, call.experts, call.weights, call.ids)
    assert_same_bits(np.asarray(run(call.x)), expected)


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "experts": (lambda c: {"experts": 3}, TypeError, "experts: expected PackedExperts, got 3"),
    "size": (
        lambda c: {"hidden_states": c.x[:, 1:]},
        ValueError,
        r"hidden_states: expected shape \(..., 64\), got shape \(5, 63\)",
    ),
    "float64": (
        lambda c: {"hidden_states": c.x.astype(np.float64)},
        TypeError,
        "hidden_states: expected an array of bfloat16, float16 or float32",
    ),
    "integers": (
        lambda c: {"hidden_states": jnp.ones(c.x.shape, np.int32)},
        TypeError,
        r"hidden_states: expected an array of bfloat16, .*, got an array of int32 and shape \(5, 64\)",
    ),
    "ids": (
        lambda c: {"topk_ids": jnp.ones(c.ids.shape)},
        TypeError,
        r"topk_ids: expected an array of integers, got an array of float32 and shape \(5, 2\)",
    ),
    "slots": (
        lambda c: {"topk_ids": c.ids[:, :1]},
        ValueError,
        r"topk_weights: expected the shape \(5, 1\) of topk_ids, got shape \(5, 2\)",
    ),
    "tokens": (
        lambda c: {"topk_ids": c.ids[:3]},
        ValueError,
        r"topk_ids: expected shape \(5, top_k\), got shape \(3, 2\)",
    ),
    "activation": (lambda c: {"activation": "relu2"}, ValueError, "activation: expected one of"),
    "dtype": (
        lambda c: {"dtype": np.int8},
        TypeError,
        "dtype: expected bfloat16, float16 or float32, got int8",
    ),
    "terms": (
        lambda c: {"dtype": BF16, "combine": False},
        TypeError,
        "dtype: expected float32, got bfloat16",
    ),
    "threads": (
        lambda c: {"num_threads": 0},
        ValueError,
        r"num_threads: expected an integer in \[1, 1024\], got 0",
    ),
    "map": (
        lambda c: {"expert_map": np.array([3])},
        ValueError,
        r"expert_map: expected values in \[-1, 2\], got 3 at position \(0,\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused_when_it_is_traced(rng: np.random.Generator, name: str) -> None:
    call = Call(rng)
    change, error, message = WRONG[name]
    arguments = {
        "hidden_states": call.x,
        "experts": call.experts,
        "topk_weights": call.weights,
        "topk_ids": call.ids,
    } | change(call)
    traced = ["hidden_states", "topk_weights", "topk_ids"]
    fixed = {key: value for key, value in arguments.items() if key not in traced}
    float64 = [key for key in traced if arguments[key].dtype == np.float64]
    if float64:  # which jit would make float32
        fixed |= {key: arguments[key] for key in float64}
        traced = [key for key in traced if key not in float64]
    with pytest.raises(error, match=message):
        jax.jit(lambda **arrays: mxfp4moe.jax.fused_experts(**fixed, **arrays))(
            **{key: arguments[key] for key in traced}
        )


def test_a_traced_map_is_refused(rng: np.random.Generator) -> None:
    call = Call(rng)
    with pytest.raises(TypeError, match="expert_map: expected values that are known when the function is"):
        jax.jit(lambda m: call.jax(*call.arrays, expert_map=m))(np.array([0, 1, 2]))


def test_ids_out_of_range_are_errors_of_the_call(rng: np.random.Generator, backend: str) -> None:
    call = Call(rng)
    run = jax.jit(call.jax)
    for wrong in (3, -2, 2**31 - 1):
        ids = call.ids.copy()
        ids[3, 1] = wrong
        with pytest.raises(RUNTIME_ERRORS, match="topk_ids: expected values in .-1, 2.") as error:
            jax.block_until_ready(run(call.x, call.weights, ids))
        assert f"got {wrong} at position (3, 1)" in str(error.value)
    assert_same_bits(np.asarray(run(*call.arrays)), call.numpy())


def test_numbers_that_are_not_finite(rng: np.random.Generator, backend: str) -> None:
    call = Call(rng)
    call.weights[1] = np.nan
    call.x[2, 0] = np.inf
    call.ids[1] = 0
    got = call.jitted()
    assert np.isnan(got[1]).all()
    assert_same_bits(got[3:], call.numpy()[3:])


def test_subnormal_numbers(rng: np.random.Generator, backend: str) -> None:
    """XLA's threads take them for zero; the kernels, and what is around them, do not."""
    call = Call(rng, "bf16")
    call.weights *= np.float32(2.0**-130)
    expected = call.numpy()
    assert np.any((expected != 0) & (np.abs(expected) < 2.0**-126))
    assert_same_bits(call.jitted(), expected)


@pytest.mark.parametrize("transform", [jax.grad, jax.jacfwd])
def test_there_is_no_gradient(rng: np.random.Generator, backend: str, transform: Any) -> None:
    call = Call(rng)
    layer = make_layer(rng, next(iter(ROUTINGS)))
    x = np.ones(layer.hidden_size, np.float32)
    with pytest.raises(TypeError, match="mxfp4moe.jax.fused_experts: expected a call that is not differen"):
        transform(lambda x: call.jax(x, call.weights, call.ids).sum())(call.x)
    with pytest.raises(TypeError, match="mxfp4moe.jax.layer: expected a call that is not differentiated"):
        jax.jit(transform(lambda x: mxfp4moe.jax.layer(x, layer).sum()))(x)

    def stopped(x: Any) -> Any:
        return (x**2).sum() + call.jax(jax.lax.stop_gradient(x), call.weights, call.ids).sum()

    assert np.allclose(jax.grad(stopped)(call.x), 2 * call.x)


def test_experts_that_are_gone(rng: np.random.Generator, backend: str) -> None:
    call = Call(rng)
    expected = call.numpy()
    compiled = jax.jit(call.jax).lower(*call.arrays).compile()
    assert_same_bits(np.asarray(compiled(*call.arrays)), expected)
    arrays = call.arrays
    del call
    jax.clear_caches()
    gc.collect()
    with pytest.raises(RUNTIME_ERRORS, match="experts: expected what the function was traced"):
        jax.block_until_ready(compiled(*arrays))


def test_a_compiled_function_keeps_what_it_closes_over(rng: np.random.Generator, backend: str) -> None:
    call = Call(rng)
    expected, arrays = call.numpy(), call.arrays
    run = jax.jit(
        lambda *arrays, experts=call.experts: mxfp4moe.jax.fused_experts(arrays[0], experts, *arrays[1:])
    )
    del call
    gc.collect()
    assert_same_bits(np.asarray(run(*arrays)), expected)
    gc.collect()
    assert_same_bits(np.asarray(run(*arrays)), expected)


def test_experts_that_go_while_others_compute(rng: np.random.Generator, backend: str) -> None:
    """Calls end with the right result, or with the error; memory that is gone is not read."""
    outcomes: list[bool] = []

    def run(compiled: Any, arrays: Any, expected: np.ndarray, begun: threading.Event) -> None:
        for _ in range(200):
            try:
                got = np.asarray(compiled(*arrays))
            except RUNTIME_ERRORS as error:
                outcomes.append("it is gone" in str(error))
                return
            finally:
                begun.set()
            outcomes.append(got.tobytes() == expected.tobytes())

    for _ in range(4):
        call = Call(rng)
        expected, arrays, begun = call.numpy(), call.arrays, threading.Event()
        compiled = jax.jit(call.jax).lower(*arrays).compile()
        thread = threading.Thread(target=run, args=(compiled, arrays, expected, begun))
        thread.start()
        begun.wait()
        jax.clear_caches()
        del call
        gc.collect()
        thread.join()
    assert all(outcomes)


SAVED = """
import pickle, sys
import jax, numpy as np, mxfp4moe as mx, mxfp4moe.jax
from jax.experimental import serialize_executable
w13, w2 = (mx.quantize_mxfp4(np.ones(shape, np.float32)) for shape in ((2, 128, 64), (2, 64, 64)))
experts = mx.pack_experts(*w13, *w2)
x, weights, ids = np.ones((1, 64), np.float32), np.ones((1, 1), np.float32), np.zeros((1, 1), np.int32)
compiled = jax.jit(lambda x: mxfp4moe.jax.fused_experts(x, experts, weights, ids)).lower(x).compile()
pickle.dump(serialize_executable.serialize(compiled), open(sys.argv[1], "wb"))
"""


@pytest.mark.nightly
def test_executables_of_another_process_find_no_weights(tmp_path: Path) -> None:
    if not HAS_FFI:
        pytest.skip("JAX saves no functions that call Python back")
    subprocess.run([sys.executable, "-c", SAVED, tmp_path / "saved"], check=True, timeout=120)
    experimental = importlib.import_module("jax.experimental.serialize_executable")
    compiled = experimental.deserialize_and_load(*pickle.loads((tmp_path / "saved").read_bytes()))
    with pytest.raises(RUNTIME_ERRORS, match="experts: expected what the function was traced with"):
        jax.block_until_ready(compiled(np.ones((1, 64), np.float32)))


def test_settings_are_those_where_a_function_is_traced(rng: np.random.Generator, backend: str) -> None:
    call = Call(rng)
    traced = []
    run = jax.jit(lambda *arrays: (traced.append(mx.active_isa()), call.jax(*arrays))[1])
    with mx.use_isa("portable"), mx.num_threads(1):
        expected = call.numpy()
        assert_same_bits(np.asarray(run(*call.arrays)), expected)
    assert_same_bits(np.asarray(run(*call.arrays)), expected)
    assert traced == ["portable"]


@pytest.mark.parametrize("routing", ROUTINGS)
def test_layers(rng: np.random.Generator, isa: str, routing: str) -> None:
    layer = make_layer(rng, routing)
    x = rng.standard_normal((NUM_TOKENS, layer.hidden_size)).astype(BF16)
    ids = np.arange(NUM_TOKENS) % 4 if layer.routing == "hash_topk" else None
    got = jax.jit(lambda x, ids: mxfp4moe.jax.layer(x, layer, ids))(x, ids)
    assert_same_bits(np.asarray(got), layer(x, ids))


KNOWN = [name for name in FIELDS if name not in PYTHON_ONLY]
ALL = [[name for name in KNOWN if not name.startswith(without)] for without in ("zero", "latent")]


@pytest.mark.parametrize("fields", [*([name] for name in KNOWN), *ALL], ids=" + ".join)
def test_layer_fields(rng: np.random.Generator, backend: str, fields: Any) -> None:
    call = random_call(rng, fields, NUM_TOKENS)
    x, layer = call.hidden_states, call.layer

    def run(x: Any, router: Any) -> Any:
        return mxfp4moe.jax.layer(x, layer, router_hidden_states=router, dtype=np.float32)

    assert mxfp4moe.jax.backend(layer) == backend
    expected = layer(x, out=np.empty(x.shape, np.float32), **call.inputs)
    assert_same_bits(np.asarray(jax.jit(run)(x, call.router)), expected)
    several = np.asarray(jax.vmap(run)(x[:, None], None if call.router is None else call.router[:, None]))
    assert_same_bits(several[:, 0], expected)


@pytest.mark.parametrize("name", [*FORMATS[::4], *SPECIAL_FORMATS])
def test_experts_of_layers(rng: np.random.Generator, backend: str, name: str) -> None:
    """A token that is not finite has NaN as result."""
    experts = make_experts(rng, name)
    router = rng.standard_normal((experts.num_experts, experts.hidden_size), np.float32)
    options: dict[str, Any] = {"top_k": 2, "activation": activation_of(experts), "nonfinite": "propagate"}
    layer = mx.MoELayer(experts, router, shared_experts=make_experts(rng, name, 1), **options)
    x = rng.standard_normal((NUM_TOKENS, experts.hidden_size)).astype(BF16)
    x[3, 1] = np.nan
    assert mxfp4moe.jax.backend(layer) == backend
    got = np.asarray(jax.jit(lambda x: mxfp4moe.jax.layer(x, layer))(x))
    assert np.isnan(got[3]).all()
    assert_same_bits(got, layer(x))


def test_experts_within_a_limit_of_memory(rng: np.random.Generator, tmp_path: Path, backend: str) -> None:
    """Python decides which of them are in memory, so it is called back."""
    make_layer(rng, next(iter(ROUTINGS))).save(tmp_path / "layer")
    layer = mx.MoELayer.open(tmp_path / "layer", memory_limit=1 << 20)
    x = rng.standard_normal((NUM_TOKENS, layer.hidden_size), np.float32)
    assert_same_bits(np.asarray(jax.jit(lambda x: mxfp4moe.jax.layer(x, layer))(x)), layer(x))
    assert mxfp4moe.jax.backend(layer) == mxfp4moe.jax.backend(layer.experts) == "pure_callback"


def test_layers_that_are_gone(rng: np.random.Generator, backend: str) -> None:
    layers = [make_layer(rng, next(iter(ROUTINGS)))]
    x = rng.standard_normal((NUM_TOKENS, layers[0].hidden_size), np.float32)
    compiled = jax.jit(lambda x: mxfp4moe.jax.layer(x, layers[0])).lower(x).compile()
    assert_same_bits(np.asarray(compiled(x)), layers[0](x))
    layers.clear()
    jax.clear_caches()
    gc.collect()
    with pytest.raises(RUNTIME_ERRORS, match="layer: expected what the function was traced with"):
        jax.block_until_ready(compiled(x))


@pytest.mark.parametrize("shared", [None, "bf16", "nvfp4"])
def test_slices_and_activations_of_eight_bits(
    rng: np.random.Generator, backend: str, shared: str | None
) -> None:
    layer = mx.MoELayer(
        make_experts(rng, "mxfp4", num_experts=5),
        rng.standard_normal((5, 64), np.float32),
        top_k=2,
        shared_experts=None if shared is None else make_experts(rng, shared, num_experts=1),
        activation_format="int8",
    )
    x = rng.standard_normal((NUM_TOKENS, layer.hidden_size), np.float32)
    for each in (layer, layer.slice([3, 1]), layer.slice([0, 3, 4]).slice([4])):
        assert_same_bits(np.asarray(jax.jit(lambda x, each=each: mxfp4moe.jax.layer(x, each))(x)), each(x))
        assert mxfp4moe.jax.backend(each) == backend


def test_layers_of_own_routing_and_wrong_calls(rng: np.random.Generator, backend: str) -> None:
    layer = make_layer(rng, next(iter(ROUTINGS)))
    x = rng.standard_normal((NUM_TOKENS, layer.hidden_size), np.float32)
    own = mx.MoELayer(
        layer.experts, layer.router_weight, top_k=2, routing=lambda logits, k: mx.topk_sigmoid(logits, k)
    )
    assert_same_bits(np.asarray(jax.jit(lambda x: mxfp4moe.jax.layer(x, own))(x)), own(x))
    assert mxfp4moe.jax.backend(own) == "pure_callback"
    rounded = mx.MoELayer(make_experts(rng, "mxfp4"), layer.router_weight, top_k=2, activation_format="int8")
    assert_same_bits(np.asarray(jax.jit(lambda x: mxfp4moe.jax.layer(x, rounded))(x)), rounded(x))
    with pytest.raises(TypeError, match="router_hidden_states: expected None, for the router of this layer"):
        jax.jit(lambda x: mxfp4moe.jax.layer(x, layer, router_hidden_states=x))(x)
    with pytest.raises(TypeError, match="layer: expected MoELayer, got None"):
        mxfp4moe.jax.layer(x, None)
    x[1, 2] = np.nan
    with pytest.raises(jax.errors.JaxRuntimeError, match="hidden_states: expected values .*finite"):
        jax.block_until_ready(jax.jit(lambda x: mxfp4moe.jax.layer(x, layer))(x))


def test_backend(rng: np.random.Generator, backend: str) -> None:
    assert mxfp4moe.jax.backend() == backend
    assert mxfp4moe.jax.backend(Call(rng).experts) == backend
    assert mxfp4moe.jax.backend(make_layer(rng, next(iter(ROUTINGS)))) == backend
    with pytest.raises(TypeError, match="weights: expected PackedExperts, MoELayer or None, got 3"):
        mxfp4moe.jax.backend(3)  # type: ignore[arg-type]


SHARDED = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax, jax.numpy as jnp, numpy as np, mxfp4moe as mx, mxfp4moe.jax
from functools import partial
from jax.sharding import Mesh, PartitionSpec as P
rng = np.random.default_rng(1)
w13, w2 = (mx.quantize_mxfp4(rng.standard_normal(s, np.float32)) for s in ((4, 128, 64), (4, 64, 64)))
experts = mx.pack_experts(*w13, *w2)
layer = mx.MoELayer(experts, rng.standard_normal((4, 64), np.float32), top_k=2)
x = rng.standard_normal((8, 64), np.float32)
weights, ids = layer.route(x)
mesh = Mesh(np.array(jax.devices()), "d")
assert mesh.size == 4
if hasattr(jax, "shard_map"):
    shard_map = jax.shard_map
else:
    from jax.experimental.shard_map import shard_map
run = partial(shard_map, mesh=mesh)
spread = {"in_specs": P("d"), "out_specs": P("d")}
by_token = run(lambda x, w, i: mxfp4moe.jax.fused_experts(x, experts, w, i), **spread)
assert (np.asarray(jax.jit(by_token)(x, weights, ids)) == mx.fused_experts(x, experts, weights, ids)).all()
whole = run(lambda x: mxfp4moe.jax.layer(x, layer), **spread)
assert (np.asarray(jax.jit(whole)(x)) == layer(x)).all()

def of_device(x, weights, ids):
    mine = jnp.where(ids == jax.lax.axis_index("d"), ids, -1)
    terms = mxfp4moe.jax.fused_experts(x, experts, weights, mine, combine=False)
    return jax.lax.psum(terms, "d")

terms = jax.jit(run(of_device, in_specs=(P(), P(), P()), out_specs=P()))(x, weights, ids)
assert (np.asarray(terms) == mx.fused_experts(x, experts, weights, ids, combine=False)).all()
parts = [layer.slice([expert]) for expert in range(4)]

def slice_of_device(x):
    branches = [partial(mxfp4moe.jax.layer, layer=part, dtype=np.float32) for part in parts]
    return jax.lax.psum(jax.lax.switch(jax.lax.axis_index("d"), branches, x), "d")

total = np.asarray(jax.jit(run(slice_of_device, in_specs=P(), out_specs=P()))(x))
apart = np.stack([part(x) for part in parts])
bound = 3 * 2.0**-24 * np.abs(apart).sum(0) * (1 + 2.0**-20)  # three additions, each of them rounded
assert (np.abs(total - apart.astype(np.float64).sum(0)) <= bound).all()
print("done", mxfp4moe.jax.backend())
"""


def test_shard_map() -> None:
    """On four devices of one processor: tokens, experts by their ids, and slices of a layer, spread."""
    result = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[0] == "done"


def test_the_package_does_not_import_jax() -> None:
    code = "import sys, mxfp4moe; print('jax' in sys.modules); mxfp4moe.jax; print('jax' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "True"]
