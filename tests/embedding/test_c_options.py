"""Options of calls of the C library, slices of layers, and programs of the first header."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from c_calls import NUM_TOKENS, expert_bits, expert_call, packed_by_c, python_bits, run_layer
from c_library import CONSTANTS, FORMATS, CError, Handle, call, make, rows
from layer_fields import random_call
from packed_examples import FORMATS as EXAMPLES
from packed_examples import SPECIAL_FORMATS, make_experts
from problems import assert_same_bits

import mxfp4moe as mx
from mxfp4moe._core import ACTIVATION_FORMATS

HIDDEN = 64
BF16 = ml_dtypes.bfloat16


INTEGRAL = [
    name for name in (*EXAMPLES, *SPECIAL_FORMATS) if name.startswith(("mxfp4", "nvfp4", "int4", "int8"))
]


@pytest.mark.parametrize("name", INTEGRAL)
def test_activations_of_eight_bits(rng: np.random.Generator, options: Any, name: str) -> None:
    experts = make_experts(rng, name)
    arguments = expert_call(rng, experts, BF16) | {"activation_format": "int8"}
    handle = packed_by_c(experts, options)
    assert_same_bits(expert_bits(handle, arguments, options), python_bits(experts, arguments))


OPTIONS: dict[str, dict[str, Any]] = {
    "terms": {"combine": False},
    "map": {"expert_map": np.array([2, -1, 0, 1, 1, -1, -1, -1])},
    "map of one": {"expert_map": np.array([-1])},
    "terms of a map": {"combine": False, "expert_map": np.array([-1, 1, 0])},
    "weight on input": {"combine": False, "apply_router_weight_on_input": True},
    "all": {"combine": False, "expert_map": np.array([1, 0, -1]), "activation_format": "int8"},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("num_tokens, top_k", [(0, 2), (1, 0), (1, 3), (40, 2)])
def test_options_of_calls(
    rng: np.random.Generator, options: Any, name: str, num_tokens: int, top_k: int
) -> None:
    experts = make_experts(rng, "mxfp4 of gpt-oss")
    arguments = OPTIONS[name]
    most = len(arguments.get("expert_map", range(experts.num_experts)))
    arguments = arguments | {
        "hidden_states": rng.standard_normal((num_tokens, experts.hidden_size), np.float32),
        "topk_weights": rng.random((num_tokens, top_k), np.float32),
        "topk_ids": rng.integers(-1, most, (num_tokens, top_k)).astype(np.int32),
        "activation": "swigluoai",
    }
    handle = packed_by_c(experts, options)
    assert_same_bits(expert_bits(handle, arguments, options), python_bits(experts, arguments))


WRONG_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "format": ({"activation_format": 1}, "activation_format: expected bfloat16.*, got int8"),
    "number of a format": ({"activation_format": 2}, r"activation_format: expected .*\[0, 1\], got 2"),
    "flag": ({"uncombined": 2}, "uncombined: expected 0 or 1, got 2"),
    "dtype of terms": ({"uncombined": 1, "out_dtype": 2}, "out_dtype: expected float32.*, got bfloat16"),
    "place": ({"expert_map": np.array([0, 3])}, r"expert_map: expected .*\[-1, 2\], got 3 at position 1"),
    "id": ({"expert_map": np.array([0])}, r"topk_ids: expected values in \[-1, 0\], got 1 at position 1"),
    "no map": ({"num_global_experts": 2}, r"num_global_experts: expected .*\[0, 0\], got 2"),
    "empty map": ({"expert_map": np.zeros(1, np.int64), "num_global_experts": 0}, "num_global_experts"),
    "size of a map": ({"expert_map": np.zeros(1, np.int64), "num_global_experts": -1}, "num_global_experts"),
    "map in out": (
        {"expert_map": "out", "num_global_experts": 2},
        "out: expected memory apart from expert_map",
    ),
    "terms in place": ({"uncombined": 1, "hidden_states": "out"}, "out: expected memory apart from hidden"),
}


@pytest.mark.parametrize("name", WRONG_OPTIONS)
def test_wrong_options_of_calls(rng: np.random.Generator, name: str) -> None:
    experts = make_experts(rng, "bf16")
    handle = packed_by_c(experts, None)
    wrong, message = WRONG_OPTIONS[name]
    x, out = (np.zeros((2, 1, experts.hidden_size), np.float32) for _ in range(2))
    fields = {
        **rows("hidden_states", x),
        **rows("out", out),
        "topk_weights": np.ones((2, 1), np.float32),
        "topk_ids": np.array([[0], [1]], np.int32),
        "num_tokens": 2,
        "top_k": 1,
    }
    sizes = {name: len(values) for name, values in wrong.items() if isinstance(values, np.ndarray)}
    fields |= {"num_global_experts": sizes.get("expert_map", 0)}
    fields |= {field: out if isinstance(value, str) else value for field, value in wrong.items()}
    with pytest.raises(CError, match=message) as error:
        call("fused_experts", handle.pointer, make("fused_experts_args", **fields), None)
    assert error.value.status == CONSTANTS["INVALID_ARGUMENT"]


# The last field that the first version of a structure had.
FIRST_VERSIONS = {
    "experts_arrays": "w2_bias",
    "linear_arrays": "bias",
    "experts_info": "num_bytes",
    "layer_info": "num_bytes",
    "fused_experts_args": "limit",
    "linear_args": "out_dtype",
}


def older(structure: Any) -> Any:
    """The structure as a program of the first header has it; what follows is not its own."""
    name = type(structure).__name__.removeprefix("mxfp4moe_")
    last = getattr(type(structure), FIRST_VERSIONS[name])
    structure.struct_size = last.offset + last.size
    rest = (ctypes.c_char * (ctypes.sizeof(structure) - structure.struct_size)).from_buffer(
        structure, structure.struct_size
    )
    rest[:] = b"\xee" * len(rest)
    return structure


def test_programs_of_the_first_header(rng: np.random.Generator, tmp_path: Path) -> None:
    experts = make_experts(rng, "mxfp4")
    layer = mx.MoELayer(experts, rng.standard_normal((3, experts.hidden_size), np.float32), top_k=2)
    layer.save(tmp_path / "layer")
    weight = rng.standard_normal((40, HIDDEN), np.float32)
    linear = mx.pack_linear(weight, format="float32")
    arrays = {name: np.ascontiguousarray(a) for name, a in experts.arguments().items() if hasattr(a, "dtype")}
    sizes = {"num_experts": 3, "hidden_size": experts.hidden_size, "format": FORMATS["mxfp4"]}
    given = make("experts_arrays", **arrays, **sizes, intermediate_size=experts.intermediate_size)
    packed = Handle("experts", "pack_experts", older(given), None)
    x = rng.standard_normal((2, HIDDEN), np.float32)
    out, wide = np.empty_like(x), np.empty((2, 40), np.float32)
    weights, ids = layer.route(x)
    slots = {"topk_weights": weights, "topk_ids": ids, "num_tokens": 2, "top_k": 2}
    call(
        "fused_experts",
        packed.pointer,
        older(make("fused_experts_args", **rows("hidden_states", x), **rows("out", out), **slots)),
        None,
    )
    assert_same_bits(out, layer(x))
    matrix = make("linear_arrays", weight=weight, num_rows=40, num_columns=HIDDEN, format=FORMATS["float32"])
    handle = Handle("linear", "pack_linear", older(matrix), None)
    args = older(make("linear_args", **rows("hidden_states", x), **rows("out", wide), num_tokens=2))
    call("apply_linear", handle.pointer, args, None)
    assert_same_bits(wide, linear(x))
    for name, pointer in (
        ("experts", packed.pointer),
        ("layer", (opened := Handle.open("layer", tmp_path / "layer")).pointer),
    ):
        info = older(make(f"{name}_info"))
        call(f"get_{name}_info", pointer, info)
        assert (info.num_experts, info.num_bytes) == (3, experts.nbytes)
        assert bytes(info)[info.struct_size :] == b"\xee" * (ctypes.sizeof(info) - info.struct_size)
    del opened


@pytest.mark.parametrize("shared", [None, "bf16", "int4"])
def test_layers_with_activations_of_eight_bits(
    rng: np.random.Generator, tmp_path: Path, options: Any, shared: str | None
) -> None:
    """The shared expert too, if its format allows it."""
    router = rng.standard_normal((3, HIDDEN), np.float32)
    shared_experts = None if shared is None else make_experts(rng, shared, num_experts=1)
    layer = mx.MoELayer(
        make_experts(rng, "mxfp4"),
        router,
        top_k=2,
        shared_experts=shared_experts,
        activation_format="int8",
    )
    layer.save(tmp_path / "layer")
    handle = Handle.open("layer", tmp_path / "layer")
    x = rng.standard_normal((NUM_TOKENS, HIDDEN), np.float32)
    assert_same_bits(run_layer(handle, x, options), layer(x))
    info = make("layer_info")
    call("get_layer_info", handle.pointer, info)
    assert info.activation_format == ACTIVATION_FORMATS["int8"]


def open_slice(path: Path, ids: list[int], verify: bool = True) -> Handle:
    numbers = np.array(ids, np.int64)
    pointer = ctypes.c_void_p(numbers.ctypes.data if ids else None)
    count = ctypes.c_int64(len(ids))
    return Handle("layer", "open_layer_slice", str(path).encode(), int(verify), pointer, count, None)


# First experts that are all there is.
SLICED = [
    [],
    ["zero experts"],
    ["shared", "factor", "output bias", "weight on input"],
    ["latent", "factor"],
]


@pytest.mark.parametrize("fields", SLICED, ids=" + ".join)
def test_slices(rng: np.random.Generator, tmp_path: Path, options: Any, fields: list[str]) -> None:
    chosen = random_call(rng, fields, NUM_TOKENS)
    layer, x = chosen.layer, chosen.hidden_states
    layer.save(tmp_path / "layer")
    part, smaller = layer.slice([4, 1, 2]), layer.slice([2, 4])
    part.save(tmp_path / "part")
    for handle, expected in (
        (open_slice(tmp_path / "layer", [4, 1, 2]), part),
        (Handle.open("layer", tmp_path / "part"), part),
        (open_slice(tmp_path / "part", [2, 4], verify=False), smaller),
    ):
        assert_same_bits(run_layer(handle, x, options), expected(x))
        info = make("layer_info")
        call("get_layer_info", handle.pointer, info)
        assert (info.num_experts, info.num_held_experts) == (5, expected.experts.num_experts)
        assert info.num_bytes >= expected.experts.nbytes


def test_wrong_slices(rng: np.random.Generator, tmp_path: Path) -> None:
    chosen = random_call(rng, ["latent norm"], NUM_TOKENS)
    chosen.layer.save(tmp_path / "layer")
    chosen.layer.slice([1, 2]).save(tmp_path / "part")
    for path, ids, message in (
        ("layer", [], r"num_ids: expected an integer in \[1, .*, got 0"),
        ("layer", [0, 5], r"expert_ids: expected .*\[0, 4\], got 5"),
        ("layer", [-1], r"expert_ids: expected .*\[0, 4\], got -1"),
        ("layer", [3, 1, 3], "expert_ids: expected each expert once, got 3 twice"),
        ("part", [1, 3], "expert_ids: expected experts of this slice, got 3"),
    ):
        with pytest.raises(CError, match=message):
            open_slice(tmp_path / path, ids)
    handle = Handle.open("layer", tmp_path / "part")
    with pytest.raises(CError, match="layer: expected the whole one.*, got a slice"):
        run_layer(handle, chosen.hidden_states)
