"""The C library gives the bits of the Python package, whatever the format and the instruction set."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from c_calls import NUM_TOKENS, expert_bits, expert_call, linear_bits, packed_by_c, python_bits, run_layer
from c_library import CONSTANTS, FORMATS, FUNCTIONS, ISAS, LIBRARY, CError, Handle, call, make, rows
from layer_fields import FIELDS, PYTHON_ONLY, random_call
from packed_examples import FORMATS as EXAMPLES
from packed_examples import ROUTINGS, SPECIAL_FORMATS, make_experts, make_layer
from problems import assert_same_bits

import mxfp4moe as mx
from mxfp4moe._core import (
    ACTIVATION_FORMATS,
    ACTIVATIONS,
    DTYPES,
    SCALE_RULES,
    SCORINGS,
    layout_version,
)
from mxfp4moe._embedding import library_dir
from mxfp4moe.formats import each_format

HIDDEN = 64
BF16 = ml_dtypes.bfloat16


@pytest.mark.parametrize("name", [*EXAMPLES, *SPECIAL_FORMATS])
def test_experts(rng: np.random.Generator, tmp_path: Path, options: Any, name: str) -> None:
    experts = make_experts(rng, name)
    experts.save(tmp_path / "experts")
    arguments = expert_call(rng, experts, [np.float32, BF16, np.float16][len(name) % 3])
    expected = python_bits(experts, arguments)
    opened = Handle.open("experts", tmp_path / "experts")
    assert_same_bits(expert_bits(opened, arguments, options), expected)
    assert_same_bits(expert_bits(packed_by_c(experts, options), arguments, options), expected)
    info = make("experts_info")
    call("get_experts_info", opened.pointer, info)
    formats = tuple(FORMATS[format] for format in each_format(experts.format))
    assert (info.format, info.w2_format, info.num_bytes) == (*formats, experts.nbytes)
    assert (info.num_experts, info.hidden_size) == (experts.num_experts, experts.hidden_size)
    assert info.has_columns == experts.spec.has_columns


@pytest.mark.parametrize("format", FORMATS)
def test_linears(rng: np.random.Generator, tmp_path: Path, options: Any, format: str) -> None:
    weight, bias = rng.standard_normal((40, HIDDEN), np.float32), rng.standard_normal(40, np.float32)
    target = None if format in ("bf16", "float32") else format
    linear = mx.pack_linear(weight, format=format, bias=bias, quantize=target)
    linear.save(tmp_path / "linear")
    x = rng.standard_normal((NUM_TOKENS, HIDDEN)).astype(BF16)
    opened = Handle.open("linear", tmp_path / "linear")
    assert_same_bits(linear_bits(opened, x, 40, options), linear(x))
    arrays = {name: value for name, value in linear.arguments().items() if isinstance(value, np.ndarray)}
    groups = linear.spec.group_size or 0
    sizes = {"num_rows": 40, "num_columns": HIDDEN, "group_size": groups, "format": FORMATS[format]}
    packed = Handle("linear", "pack_linear", make("linear_arrays", **arrays, **sizes), options)
    assert_same_bits(linear_bits(packed, x, 40, options), linear(x))
    if format in ("mxfp4", "nvfp4", "int4", "int8"):
        expected = linear(x, activation_format="int8")
        assert_same_bits(linear_bits(packed, x, 40, options, "int8"), expected)
    else:
        with pytest.raises(CError, match=r"activation_format: expected bfloat16.*, got int8"):
            linear_bits(packed, x, 40, options, "int8")


@pytest.mark.parametrize("format", ["int4", "int8"])
@pytest.mark.parametrize("group_size", [16, 32, None])
def test_linears_with_offsets(
    rng: np.random.Generator, tmp_path: Path, options: Any, format: Any, group_size: int | None
) -> None:
    groups = HIDDEN // (group_size or HIDDEN)
    scales = rng.uniform(0.02, 0.1, (40, groups)).astype(BF16)
    per_byte = 2 if format == "int4" else 1
    codes = rng.integers(0, 256, (40, HIDDEN // per_byte)).astype(np.uint8)
    arrays = {"weight": codes if format == "int4" else codes.view(np.int8), "scales": scales}
    arrays["offsets"] = (-7 * scales.astype(np.float32)).astype(BF16)
    linear = mx.pack_linear(**arrays, format=format)
    linear.save(tmp_path / "linear")
    sizes = {"num_rows": 40, "num_columns": HIDDEN, "group_size": group_size or 0, "format": FORMATS[format]}
    x = rng.standard_normal((NUM_TOKENS, HIDDEN)).astype(BF16)
    packed = Handle("linear", "pack_linear", make("linear_arrays", **arrays, **sizes), options)
    for handle in (packed, Handle.open("linear", tmp_path / "linear")):
        assert_same_bits(linear_bits(handle, x, 40, options), linear(x))


@pytest.mark.parametrize("routing", ROUTINGS)
def test_layers(rng: np.random.Generator, tmp_path: Path, options: Any, routing: str) -> None:
    layer = make_layer(rng, routing)
    layer.save(tmp_path / "layer")
    handle = Handle.open("layer", tmp_path / "layer")
    x = rng.standard_normal((NUM_TOKENS, layer.hidden_size)).astype(BF16)
    ids = np.arange(NUM_TOKENS) % 4 if layer.routing == "hash_topk" else None
    assert_same_bits(run_layer(handle, x, options, input_ids=ids), layer(x, ids))
    weights, chosen = (
        np.empty((NUM_TOKENS, layer.top_k), np.float32),
        np.empty((NUM_TOKENS, layer.top_k), np.int32),
    )
    args = make("layer_args", **rows("hidden_states", x), num_tokens=NUM_TOKENS, input_ids=ids)
    results = [ctypes.c_void_p(each.ctypes.data) for each in (weights, chosen)]
    call("route_layer", handle.pointer, args, *results, options)
    expected = layer.route(x, ids)
    assert_same_bits(weights, expected[0])
    assert_same_bits(chosen, expected[1])


KNOWN = [name for name in FIELDS if name not in PYTHON_ONLY]
ALL = [[name for name in KNOWN if not name.startswith(without)] for without in ("zero", "latent")]


@pytest.mark.parametrize("fields", [*([name] for name in KNOWN), *ALL], ids=" + ".join)
def test_layer_fields(rng: np.random.Generator, tmp_path: Path, options: Any, fields: Any) -> None:
    """Each later field of a layer alone, and all at once."""
    chosen = random_call(rng, fields, NUM_TOKENS)
    chosen.layer.save(tmp_path / "layer")
    handle = Handle.open("layer", tmp_path / "layer")
    router = {} if chosen.router is None else rows("router_hidden_states", chosen.router)
    assert_same_bits(run_layer(handle, chosen.hidden_states, options, **router), chosen.run())


@pytest.mark.skipif(not PYTHON_ONLY, reason="the C library computes all fields")
def test_unknown_fields_are_refused_by_name(rng: np.random.Generator, tmp_path: Path) -> None:
    for field in PYTHON_ONLY:
        random_call(rng, [field], 1).layer.save(tmp_path / "layer")
        with pytest.raises(CError, match="expected fields of a layer that this version knows"):
            Handle.open("layer", tmp_path / "layer")


def test_tokens_that_are_not_finite(rng: np.random.Generator, tmp_path: Path) -> None:
    layer = make_layer(rng, next(iter(ROUTINGS)))
    layer.save(tmp_path / "layer")
    handle = Handle.open("layer", tmp_path / "layer")
    x = rng.standard_normal((NUM_TOKENS, layer.hidden_size), np.float32)
    x[2, 5] = np.nan
    with pytest.raises(CError, match=r"hidden_states: expected values that are finite in bfloat16.* row 2"):
        run_layer(handle, x)
    out = run_layer(handle, x, propagate_nonfinite=1)
    assert np.isnan(out[2]).all()
    keep = [0, 1, 3, 4]
    assert_same_bits(out[keep], layer(x[keep]))


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "sqrt_softplus"])
def test_routing(rng: np.random.Generator, scoring: Any) -> None:
    logits, bias = rng.standard_normal((7, 16), np.float32), rng.standard_normal(16, np.float32)
    routing = make("routing")
    call("init_routing", routing)
    routing.scoring = SCORINGS[scoring]
    routing.correction_bias, routing.num_groups, routing.topk_group = bias.ctypes.data, 4, 2
    weights, ids = np.empty((7, 3), np.float32), np.empty((7, 3), np.int32)
    sizes = {"num_tokens": 7, "num_logits": 16, "top_k": 3}
    args = make("route_args", router_logits=logits, topk_weights=weights, topk_ids=ids, **sizes)
    call("route", routing, args, None)
    expected = mx.select_experts(logits, 3, scoring=scoring, correction_bias=bias, num_groups=4, topk_group=2)
    assert_same_bits(weights, expected[0])
    assert_same_bits(ids, expected[1])


QUANTIZERS = {
    "mxfp4": ({}, {}),
    "mxfp8": ({"element": "e5m2", "scale_rule": "even"}, {"e5m2": 1, "scale_rule": SCALE_RULES["even"]}),
    "nvfp4": ({}, {}),
    "fp8_block": ({"block_shape": (16, None)}, {"block_rows": 16, "block_columns": -1}),
    "int4": ({"symmetric": False}, {"group_size": 32}),
    "int8": ({"symmetric": False, "group_size": None}, {}),
}


@pytest.mark.parametrize("format", QUANTIZERS)
def test_quantizers(rng: np.random.Generator, options: Any, format: str) -> None:
    values = rng.standard_normal((2, 40, HIDDEN)).astype(BF16)
    arguments, fields = QUANTIZERS[format]
    codes, scales, *rest = getattr(mx, f"quantize_{format}")(values, **arguments)
    extra = {{"nvfp4": "tensor_scales"}.get(format, "zero_points"): rest[0]} if rest else {}
    arrays = {"codes": codes, "scales": scales, **extra}
    got = {name: np.zeros_like(value) for name, value in arrays.items()}
    shape = make(
        "quantize_shape", format=FORMATS[format], values_dtype=DTYPES["bfloat16"], num_matrices=2,
        num_rows=40, num_columns=HIDDEN, **fields,
    )  # fmt: skip
    holder = make("linear_arrays", weight=values)
    call("quantize", shape, holder.weight, make("quantized", **got), options)
    for name, value in arrays.items():
        assert_same_bits(got[name].view(np.uint8), value.view(np.uint8))
    back = np.zeros(values.shape, np.float32)
    shape.values_dtype = DTYPES["float32"]
    buffer = type(make("quantized").codes)(back.ctypes.data, back.nbytes)
    call("dequantize", shape, make("quantized_arrays", **arrays), buffer, options)
    inverse = getattr(mx, f"dequantize_{format}")
    block = {"block_shape": (16, None)} if format == "fp8_block" else {}
    assert_same_bits(back, inverse(codes, scales, *rest, **block))


PARALLEL_FOR = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)
TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32)


def in_turn(context: Any, count: int, task: Any, task_context: Any) -> None:
    for index in range(count):
        TASK(task)(task_context, index)


def at_once(context: Any, count: int, task: Any, task_context: Any) -> None:
    threads = [threading.Thread(target=TASK(task), args=(task_context, index)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def nothing(context: Any, count: int, task: Any, task_context: Any) -> None:
    """A host that forgets its tasks."""


@pytest.mark.parametrize("host", [in_turn, at_once, nothing])
def test_threads_of_the_host(rng: np.random.Generator, host: Any) -> None:
    experts = make_experts(rng, "bf16")
    arguments = expert_call(rng, experts)
    calls: list[int] = []

    def counted(context: Any, count: int, task: Any, task_context: Any) -> None:
        calls.append(count)
        host(context, count, task, task_context)

    callback = PARALLEL_FOR(counted)
    options = make("options", num_threads=3, parallel_for=ctypes.cast(callback, ctypes.c_void_p).value)
    handle = packed_by_c(experts, options)
    LIBRARY.mxfp4moe_release_pool_threads()  # of the package, which has unpacked the experts
    logits = rng.standard_normal((20_000, 8), np.float32)
    weights, ids = np.empty((20_000, 2), np.float32), np.empty((20_000, 2), np.int32)
    routing = make("routing")
    call("init_routing", routing)
    args = make(
        "route_args",
        router_logits=logits,
        topk_weights=weights,
        topk_ids=ids,
        num_tokens=20_000,
        num_logits=8,
        top_k=2,
    )
    call("route", routing, args, options)
    result = expert_bits(handle, arguments, options)
    assert LIBRARY.mxfp4moe_num_pool_threads() == 0
    assert calls
    assert_same_bits(weights, mx.select_experts(logits, 2)[0])
    assert_same_bits(result, python_bits(experts, arguments))


def test_one_handle_on_several_threads(rng: np.random.Generator) -> None:
    experts = make_experts(rng, "mxfp4")
    handle = packed_by_c(experts, None)
    arguments = expert_call(rng, experts)
    expected = python_bits(experts, arguments)
    wrong = []

    def run() -> None:
        for _ in range(20):
            wrong.append(expert_bits(handle, arguments).tobytes() != expected.tobytes())
            with pytest.raises(CError, match="topk_ids"):
                expert_bits(handle, arguments | {"topk_ids": arguments["topk_ids"] + 9})

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 80 and not any(wrong)


def test_numbers_of_the_header() -> None:
    assert LIBRARY.mxfp4moe_version().decode() == mx.__version__
    assert LIBRARY.mxfp4moe_abi_version() == CONSTANTS["ABI_VERSION"]
    assert LIBRARY.mxfp4moe_layout_version() == layout_version()
    for prefix, names in {
        "ACTIVATION": ACTIVATIONS,
        "ACTIVATION_FORMAT": ACTIVATION_FORMATS,
        "SCORING": SCORINGS,
        "SCALE": SCALE_RULES,
        "DTYPE": DTYPES,
    }.items():
        assert {CONSTANTS[f"{prefix}_{name.upper()}"] for name in names} == set(names.values())
        assert all(CONSTANTS[f"{prefix}_{name.upper()}"] == number for name, number in names.items())
    names = {LIBRARY.mxfp4moe_activation_name(number).decode(): number for number in ACTIVATIONS.values()}
    assert names == ACTIVATIONS
    assert {LIBRARY.mxfp4moe_activation_name(number) for number in (-1, len(names), 2**31 - 1)} == {None}
    supported = {name for name, number in ISAS.items() if LIBRARY.mxfp4moe_isa_supported(number)}
    assert supported == set(mx.supported_isas()) & set(ISAS)
    exported = Path(f"{library_dir()}/libmxfp4moe.so")
    library = ctypes.CDLL(str(exported))
    assert all(hasattr(library, name) for name in FUNCTIONS)
