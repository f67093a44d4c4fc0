"""MoELayer beyond router and experts: routing rules, shared experts, factors, and all layers of a model."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from checkpoints import BFLOAT16, MODELS
from problems import bfloat16

import mxfp4moe as mx
from mxfp4moe import checkpoint
from mxfp4moe.routing import ROUTING_FUNCTIONS

H, E = 64, 6


def pack(rng: np.random.Generator, num_experts: int, intermediate: int, hidden: int = H) -> mx.PackedExperts:
    def matrix(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
        return mx.quantize_mxfp4(rng.standard_normal((num_experts, rows, columns), np.float32) / 8)

    return mx.pack_experts(*matrix(2 * intermediate, hidden), *matrix(hidden, intermediate))


@pytest.fixture
def arrays(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "experts": pack(rng, E, 32),
        "router_weight": rng.standard_normal((E, H), np.float32),
        "top_k": 2,
    }


RULES: dict[str, tuple[dict[str, Any], Any]] = {
    "topk_softmax": ({"renormalize": False}, mx.topk_softmax),
    "topk_sigmoid": ({"correction_bias": np.arange(E), "routed_scaling_factor": 2.5}, mx.topk_sigmoid),
    "topk_sqrt_softplus": ({"correction_bias": np.arange(E), "renormalize": False}, mx.topk_sqrt_softplus),
    "grouped_topk": ({"num_groups": 3, "topk_group": 2}, mx.grouped_topk),
    "select_experts": (
        {"scoring": "sigmoid", "logit_softcap": 4.0, "select_by": "logit", "expert_scale": np.arange(E)},
        mx.select_experts,
    ),
    "sparsemixer": ({"jitter_eps": 0.2}, mx.sparsemixer),
}


def floats(arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: v.astype(np.float32) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("given", ["name", "function"])
def test_routing_by_name(arrays: dict[str, Any], rng: np.random.Generator, rule: str, given: str) -> None:
    arguments, function = floats(RULES[rule][0]), RULES[rule][1]
    routing = rule if given == "name" else function
    layer = mx.MoELayer(**arrays, routing=routing, routing_arguments=arguments)
    assert layer.routing == rule
    hidden_states = rng.standard_normal((9, H), np.float32)
    weights, ids = layer.route(hidden_states, input_ids=np.arange(9))  # which it does not look at
    expected = function(layer.router_logits(hidden_states), 2, **arguments)
    assert np.array_equal(weights, expected[0]) and np.array_equal(ids, expected[1])
    assert rule in repr(layer)


def test_shared_experts_that_the_router_weights(arrays: dict[str, Any], rng: np.random.Generator) -> None:
    arguments = {"scoring": "sigmoid", "num_shared_experts": 2}
    layer = mx.MoELayer(**arrays, routing="select_experts", routing_arguments=arguments)
    x = rng.standard_normal((7, H), np.float32)
    weights, ids = mx.select_experts(layer.router_logits(x), layer.top_k, **arguments)
    assert ids.shape == (7, 4)
    assert (ids[:, 2:] == [E - 2, E - 1]).all()
    assert (ids[:, :2] < E - 2).all()
    np.testing.assert_allclose(
        weights.sum(axis=-1), 1, rtol=8 * 2.0**-24
    )  # a rounding of each weight and one
    assert np.array_equal(layer(x), mx.fused_experts(x, layer.experts, weights, ids))
    chosen = layer.route(x)
    assert np.array_equal(chosen[0], weights[:, :2]) and np.array_equal(chosen[1], ids[:, :2])


@pytest.mark.parametrize("num_threads", [1, 2])
def test_routing_has_the_threads_of_the_call(
    arrays: dict[str, Any], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, num_threads: int
) -> None:
    given = []

    def route(*args: Any, num_threads: int | None = None, **options: Any) -> Any:
        given.append(num_threads)
        return mx.topk_softmax(*args, **options)

    layer = mx.MoELayer(**arrays)
    monkeypatch.setitem(ROUTING_FUNCTIONS, "topk_softmax", route)
    layer(rng.standard_normal((3, H), np.float32), num_threads=num_threads)
    assert given == [num_threads]


def test_routing_arguments_are_copied(arrays: dict[str, Any]) -> None:
    bias = np.zeros(E, np.float32)
    layer = mx.MoELayer(**arrays, routing="topk_sigmoid", routing_arguments={"correction_bias": bias})
    before = layer.route(np.ones((1, H), np.float32))[1]
    bias[5] = 100
    assert np.array_equal(layer.route(np.ones((1, H), np.float32))[1], before)
    assert not layer.routing_arguments["correction_bias"].flags.writeable
    with pytest.raises(TypeError):
        layer.routing_arguments["correction_bias"] = bias  # type: ignore[index]


def test_own_routing_function(arrays: dict[str, Any]) -> None:
    def first(logits: np.ndarray, top_k: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
        ids = np.broadcast_to(np.arange(top_k, dtype=np.int32), (*logits.shape[:-1], top_k))
        return np.full(ids.shape, scale, np.float32), ids

    layer = mx.MoELayer(**arrays, routing=first, routing_arguments={"scale": 0.5})
    weights, ids = layer.route(np.ones((3, H), np.float32))
    assert weights.tolist() == [[0.5, 0.5]] * 3 and ids.tolist() == [[0, 1]] * 3
    assert "first(scale=0.5)" in repr(layer)


def test_own_routing_function_that_has_no_hash(arrays: dict[str, Any]) -> None:
    class First:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, logits: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
            ids = np.broadcast_to(np.arange(top_k, dtype=np.int32), (*logits.shape[:-1], top_k))
            return np.ones(ids.shape, np.float32), ids

    layer = mx.MoELayer(**arrays, routing=First())
    assert layer.route(np.ones((2, H), np.float32))[1].tolist() == [[0, 1]] * 2
    assert layer(np.ones((2, H), np.float32)).shape == (2, H)
    assert mx.MoELayer(**arrays, routing=mx.topk_softmax).routing == "topk_softmax"


@pytest.fixture
def hash_layer(arrays: dict[str, Any], rng: np.random.Generator) -> mx.MoELayer:
    table = np.stack([rng.permutation(E)[:2] for _ in range(10)])
    return mx.MoELayer(**arrays, routing="hash_topk", routing_arguments={"tid2eid": table})


def test_hash_layer_routes_by_token_ids(hash_layer: mx.MoELayer, rng: np.random.Generator) -> None:
    hidden_states, input_ids = rng.standard_normal((2, 4, H), np.float32), rng.integers(0, 10, (2, 4))
    weights, ids = hash_layer.route(hidden_states, input_ids)
    table = hash_layer.routing_arguments["tid2eid"]
    assert np.array_equal(np.sort(ids), np.sort(table[input_ids]))
    expected = mx.fused_experts(hidden_states, hash_layer.experts, weights, ids)
    assert hash_layer(hidden_states, input_ids).tobytes() == expected.tobytes()
    assert hash_layer(hidden_states, input_ids.tolist()).tobytes() == expected.tobytes()


WRONG_IDS: dict[str, tuple[Any, type[Exception], str]] = {
    "none": (None, TypeError, "input_ids: expected token ids, by which this layer routes, got None"),
    "floats": (np.zeros(3), TypeError, "input_ids: expected an array of integers"),
    "too few": ([1, 2], ValueError, r"input_ids: expected shape \(3,\), got shape \(2,\)"),
    "scalar": (1, ValueError, r"input_ids: expected shape \(3,\), got shape \(\)"),
    "negative": ([0, -1, 2], ValueError, "input_ids: expected .*, got -1"),
    "too large": ([0, 1, 10], ValueError, "input_ids: expected .*, got 10"),
}


@pytest.mark.parametrize("case", WRONG_IDS)
def test_wrong_token_ids(hash_layer: mx.MoELayer, case: str) -> None:
    input_ids, error, message = WRONG_IDS[case]
    for call in (hash_layer, hash_layer.route):
        with pytest.raises(error, match=message):
            call(np.ones((3, H), np.float32), input_ids)


@pytest.mark.parametrize("dtype", [bfloat16, np.float16, np.float32])
@pytest.mark.parametrize("factor", [1.0, 2.5])
@pytest.mark.parametrize("shared", [False, True])
def test_result_is_rounded_once(
    isa: str, arrays: dict[str, Any], rng: np.random.Generator, dtype: Any, factor: float, shared: bool
) -> None:
    options: dict[str, Any] = {"limit": 0.5, "routed_scaling_factor": factor}
    if shared:
        options |= {"shared_experts": pack(rng, 1, 96), "shared_limit": 0.25}
    layer = mx.MoELayer(**arrays, **options)
    hidden_states = rng.standard_normal((2, 5, H), np.float32).astype(dtype)
    single = np.empty(hidden_states.shape, np.float32)
    expected = mx.fused_experts(
        hidden_states, layer.experts, *layer.route(hidden_states), limit=0.5, out=single
    )
    expected = expected * np.float32(factor)
    if shared:
        one = np.ones((2, 5, 1), np.float32)
        part = mx.fused_experts(
            hidden_states,
            options["shared_experts"],
            one,
            0 * one.astype(int),
            limit=0.25,
            out=np.empty_like(single),
        )
        assert np.abs(part).max() > 0
        expected = expected + part
    result = layer(hidden_states)
    assert (result.dtype, result.shape) == (dtype, hidden_states.shape)
    assert result.tobytes() == expected.astype(dtype).tobytes()
    # A token's bits do not depend on its batch, and the result may go anywhere that fused_experts allows.
    assert layer(hidden_states[1, 3]).tobytes() == result[1, 3].tobytes()
    out = np.full(hidden_states.shape, np.nan, np.float32)
    assert layer(hidden_states, out=out, num_threads=1) is out
    assert out.tobytes() == expected.tobytes()
    assert layer(hidden_states, out=hidden_states) is hidden_states
    assert hidden_states.tobytes() == result.tobytes()
    assert layer(hidden_states[:0]).shape == (0, 5, H)


def test_any_part_of_the_tokens_at_a_time(
    isa: str, arrays: dict[str, Any], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = mx.MoELayer(**arrays, shared_experts=pack(rng, 1, 96), routed_scaling_factor=2.5)
    hidden_states = rng.standard_normal((3, 7, H), np.float32)
    whole = layer(hidden_states)
    for tokens in (1, 4, 20):
        monkeypatch.setattr("mxfp4moe.layer_sum._SUM_BYTES", tokens * H * 4 + 3)
        assert layer(hidden_states).tobytes() == whole.tobytes()
        out = np.zeros((3, 14, H), np.float32)[:, ::2]  # no rows of one stride
        assert layer(hidden_states, out=out).tobytes() == whole.tobytes()
        in_place = hidden_states.copy()
        assert layer(in_place, out=in_place).tobytes() == whole.tobytes()


def test_wrong_out_is_refused_before_anything_is_computed(
    arrays: dict[str, Any], rng: np.random.Generator
) -> None:
    layer = mx.MoELayer(**arrays, shared_experts=pack(rng, 1, 32))
    hidden_states = np.ones((4, H), np.float32)
    overlapping = hidden_states[1:]
    for x, out, error, message in (
        (hidden_states, np.zeros((3, H), np.float32), ValueError, r"out: expected shape \(4, 64\)"),
        (
            hidden_states,
            np.zeros((4, H)),
            TypeError,
            "out: expected an array of float32, .* got an array of float64",
        ),
        (hidden_states[:3], overlapping, ValueError, "out: expected memory apart from hidden_states"),
    ):
        with pytest.raises(error, match=message):
            layer(x, out=out)
    assert (hidden_states == 1).all()


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "rule unknown": ({"routing": "topk"}, ValueError, "routing: expected 'topk_softmax', .* got 'topk'"),
    "arguments a list": ({"routing_arguments": [1]}, TypeError, "routing_arguments: expected a mapping, got"),
    "argument unknown": (
        {"routing_arguments": {"groups": 3}},
        TypeError,
        "unexpected keyword argument 'groups'",
    ),
    "bias of another size": (
        {"routing": "topk_sigmoid", "routing_arguments": {"correction_bias": np.zeros(5, np.float32)}},
        ValueError,
        r"correction_bias: expected shape \(6,\), got shape \(5,\)",
    ),
    "table of another width": (
        {"routing": "hash_topk", "routing_arguments": {"tid2eid": np.zeros((4, 3), int)}},
        ValueError,
        "top_k: expected 3, as in tid2eid, got 2",
    ),
    "factor 0": (
        {"routed_scaling_factor": 0},
        ValueError,
        "routed_scaling_factor: expected .* above 0, got 0",
    ),
    "factor text": (
        {"routed_scaling_factor": "2"},
        TypeError,
        "routed_scaling_factor: expected a real number",
    ),
    "shared an array": (
        {"shared_experts": np.zeros(3)},
        TypeError,
        "shared_experts: expected PackedExperts, got",
    ),
    "limit of nothing": (
        {"shared_limit": 7.0},
        ValueError,
        "shared_limit: expected None without shared_experts",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_construction(arrays: dict[str, Any], case: str) -> None:
    options, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        mx.MoELayer(**arrays, **options)


def test_wrong_shared_experts(arrays: dict[str, Any], rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="shared_experts: expected one expert, got 2"):
        mx.MoELayer(**arrays, shared_experts=pack(rng, 2, 32))
    with pytest.raises(ValueError, match="shared_experts: expected hidden_size 64, as experts have, got 96"):
        mx.MoELayer(**arrays, shared_experts=pack(rng, 1, 32, hidden=96))
    with pytest.raises(ValueError, match="limit: expected a number above 0"):
        mx.MoELayer(**arrays, shared_experts=pack(rng, 1, 32), shared_limit=0)


# --- what a checkpoint makes of it --------------------------------------------------------------------------


def test_deepseek_v4_layer_that_routes_by_score(tmp_path: Path) -> None:
    written = checkpoints.deepseek_v4()
    bias = np.linspace(0, 1, 8, dtype=np.float32)
    written.tensors["layers.2.ffn.gate.bias"] = bias
    written.config["num_hash_layers"] = 2
    parts = checkpoint.read_layer(written.write(tmp_path), 2)
    assert parts.routing == "topk_sqrt_softplus"
    assert parts.routing_arguments.keys() == {"routed_scaling_factor", "correction_bias"}
    assert np.array_equal(parts.routing_arguments["correction_bias"], bias)
    written.config["mlp_layer_types"] = ["moe"] * 2 + ["hash_moe"] + ["moe"] * 40
    parts = checkpoint.read_layer(written.write(tmp_path), 2)
    assert parts.routing == "hash_topk"
    assert parts.shared_limit == parts.limit == 2.0


def test_deepseek_v3_with_groups_and_without_shared_experts(tmp_path: Path) -> None:
    written = checkpoints.deepseek_v3()
    written.config.update(n_group=4, topk_group=2, n_shared_experts=None, norm_topk_prob=True)
    for name in [name for name in written.tensors if "shared_experts" in name]:
        del written.tensors[name]
    parts = checkpoint.read_layer(written.write(tmp_path), 3)
    assert parts.shared_experts is None
    assert parts.routing == "grouped_topk"
    arguments = {k: v for k, v in parts.routing_arguments.items() if k != "correction_bias"}
    assert arguments == {"num_groups": 4, "topk_group": 2, "renormalize": True, "routed_scaling_factor": 2.5}


def test_minimax_m2(tmp_path: Path) -> None:
    written = checkpoints.minimax_m2()
    parts = checkpoint.read_layer(written.write(tmp_path))
    assert (parts.routing, parts.activation, parts.limit) == ("topk_sigmoid", "silu", None)
    bias = written.tensors["model.layers.0.block_sparse_moe.e_score_correction_bias"]
    assert np.array_equal(parts.routing_arguments["correction_bias"], bias)
    written.config["use_routing_bias"] = False
    assert checkpoint.read_layer(written.write(tmp_path)).routing_arguments == {}


def test_floats_left_out_of_the_quantization(tmp_path: Path) -> None:
    written = checkpoints.deepseek_v3()
    for name in list(written.tensors):
        if "shared_experts" in name and name.endswith("scale_inv"):
            weight = name.removesuffix("_scale_inv")
            written.tensors[weight] = written.tensors[weight].astype(BFLOAT16)
            del written.tensors[name]
    parts = checkpoint.read_layer(written.write(tmp_path), 3)
    assert parts.shared_experts is not None
    assert (parts.experts.format, parts.shared_experts.format) == ("fp8_block", "bf16")


DESCRIPTIONS: dict[str, tuple[tuple[int, ...], str, str, str]] = {
    "gpt-oss": (tuple(range(24)), "mxfp4", "gpt-oss MXFP4", "topk_softmax()"),
    "deepseek-v3": (
        tuple(range(3, 61)),
        "fp8_block",
        "FP8 in blocks of 128 x 128",
        "topk_sigmoid(renormalize=False",
    ),
    "deepseek-v4": (
        tuple(range(43)),
        "mxfp4",
        "DeepSeek FP4",
        "hash_topk(routed_scaling_factor=1.5, tid2eid=int64",
    ),
    "minimax-m3": (tuple(range(1, 3)), "mxfp8", "MXFP8", "topk_sigmoid(correction_bias=float32[8])"),
    "qwen3 quark": ((0, 1, 3), "mxfp4", "Quark MXFP4", "topk_softmax(renormalize=False)"),
    "mixtral fused": ((0, 1), "bf16", "plain floats, fused", "topk_softmax()"),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_what_an_opened_checkpoint_says(tmp_path: Path, name: str) -> None:
    written = MODELS[name]()
    layers, kind, source, routing = DESCRIPTIONS[name]
    opened = checkpoint.open(written.write(tmp_path))
    assert opened.moe_layers == layers
    assert opened.model_type == written.config["model_type"]
    info = opened.describe_layer(written.layer)
    assert (info.layer, info.format, info.source) == (written.layer, kind, source)
    assert info.routing.startswith(routing)
    experts = [a.nbytes for n, a in written.tensors.items() if ".experts." in n or "shared_experts." in n]
    expanded = 0  # scales that are read as float32
    if name == "deepseek-v4":
        expanded = 3 * sum(
            a.size for n, a in written.tensors.items() if "shared_experts" in n and "scale" in n
        )
    assert info.nbytes == sum(experts) + expanded
    assert (info.shared_source is None) == (opened.shared_intermediate_size == 0)


# --- load_layers --------------------------------------------------------------------------------------------


def write_two_layers(folder: Path) -> Path:
    """Qwen3 with the golden layer as layers 1 and 3; 2 is dense, 0 too."""
    written = checkpoints.qwen3("compressed-tensors mxfp4")
    again = {name.replace("layers.1.", "layers.3."): array for name, array in written.tensors.items()}
    written.config["mlp_only_layers"] = [0, 2]
    return written._replace(tensors=written.tensors | again).write(folder, num_files=2)


def test_load_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = mx.load_layers(write_two_layers(tmp_path))
    assert [layer.layer_number for layer in layers] == [1, 3]
    assert layers[0].experts == layers[1].experts
    assert capsys.readouterr() == ("", "")  # no bar where there is no terminal
    assert [layer.layer_number for layer in mx.load_layers(tmp_path, [3])] == [3]
    assert mx.load_layers(tmp_path, []) == []


def test_load_layers_shows_progress(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_two_layers(tmp_path)
    mx.load_layers(tmp_path, progress=True)
    assert capsys.readouterr().err == "loading  50 % of 2 layers\nloading 100 % of 2 layers\n"
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    mx.load_layers(tmp_path, progress=False)
    assert terminal.getvalue() == ""
    mx.load_layers(tmp_path)
    assert terminal.getvalue().endswith(f"\rloading 100 % of 2 layers [{40 * '#'}]\n")


def test_load_layers_wrong_arguments(tmp_path: Path) -> None:
    write_two_layers(tmp_path)
    for options, error, message in (
        ({"layers": [1.0]}, TypeError, "layer: expected an integer, got 1.0"),
        ({"layers": [4]}, ValueError, r"layer: expected an integer in \[0, 3\], got 4"),
        ({"progress": 1}, TypeError, "progress: expected a bool, got 1"),
        ({"quantize": "int3"}, ValueError, "quantize: expected 'mxfp4', .* got 'int3'"),
        ({"quantize": "mxfp4"}, ValueError, "quantize: expected None for a checkpoint in compressed-tensors"),
    ):
        with pytest.raises(error, match=message):
            mx.load_layers(tmp_path, **options)
    with pytest.raises(TypeError, match="path: expected a str or os.PathLike, got 3"):
        mx.load_layers(3)  # type: ignore[arg-type]
