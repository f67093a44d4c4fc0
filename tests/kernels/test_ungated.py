"""Experts without a gate: every format through the kernels, packing, packed files, layers, wrong calls."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from format_problems import (
    FORMATS,
    FREE_SIZES,
    SCALABLE,
    exact_arrays,
    exact_format_problem,
    format_problem,
    with_tensor_scales,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_examples import make_experts
from problems import (
    BIASES,
    Problem,
    Shape,
    assert_same_bits,
    bfloat16,
    exact_problem,
    random_problem,
    rel_l2,
    ungated,
)

import mxfp4moe as mx
from mxfp4moe import _core, config, reference
from mxfp4moe.checkpoint import ExpertWeights
from mxfp4moe.experts.quantizing import pack_weights
from mxfp4moe.reference import ExpertArrays

RELU2 = {"activation": "relu2"}


def exact_ungated(problem: Problem) -> Problem:
    """An exact problem without its gates: ups are multiples of 1/2, squares of 1/4, w2 times these of 1/8."""
    problem = ungated(problem)
    for expert in range(len(problem.arrays.w13)):
        w13, w2, w13_bias, w2_bias = reference.moe._expert_weights(problem.arrays, expert)
        up = problem.hidden_states.astype(np.float64) @ w13.T.astype(np.float64)
        up = up if w13_bias is None else up + w13_bias
        intermediate = reference.round_bfloat16(np.square(np.maximum(up, 0)))
        magnitude = intermediate @ abs(w2).T.astype(np.float64)
        magnitude = magnitude if w2_bias is None else magnitude + abs(w2_bias)
        assert magnitude.max() * problem.topk_ids.shape[1] < 2**24 / 16  # router weights are 1/2 or 1
    return problem


# --- kernels ------------------------------------------------------------------------------------------------


@pytest.mark.emulation
@pytest.mark.parametrize(
    "name", [pytest.param("mxfp4", marks=pytest.mark.smoke), *(name for name in FORMATS if name != "mxfp4")]
)
@pytest.mark.parametrize("bias", BIASES)
def test_exact_cases_bit_for_bit(isa, rng, name, bias):
    shape = Shape(48, 224, 96, 3, 2)
    mxfp4, gated = exact_format_problem(rng, shape, name, bias=bias, dtype=np.float32)
    problem = exact_ungated(gated)
    expected, experts = problem.expected(**RELU2), problem.pack()
    assert not experts.gated
    assert_same_bits(expected, ungated(mxfp4).expected(**RELU2))
    for part in (slice(0, 1), slice(1, 3), slice(3, 8), slice(8, 48)):
        assert_same_bits(problem.tokens(part).run(experts, **RELU2), expected[part])


@pytest.mark.parametrize("name", SCALABLE)
@pytest.mark.parametrize("axes", [1, 2])
def test_exact_cases_with_tensor_scales(isa, rng, name, axes):
    mxfp4 = exact_problem(rng, Shape(20, 224, 96, 3, 2), bias="both")
    scaled = exact_ungated(
        mxfp4._replace(arrays=with_tensor_scales(rng, exact_arrays(rng, mxfp4.arrays, name)))
    )
    scales = scaled.arrays.w13_tensor_scale
    assert scales.shape == (3, 1)
    scaled = scaled._replace(
        arrays=scaled.arrays._replace(w13_tensor_scale=scales if axes == 2 else scales[:, 0])
    )
    expected = ungated(mxfp4).expected(**RELU2)
    assert_same_bits(scaled.expected(**RELU2), expected)
    assert_same_bits(scaled.run(**RELU2), expected)


@pytest.mark.emulation
@pytest.mark.parametrize("limit", [0.5, 20.0])
@pytest.mark.parametrize("on_input", [False, True])
def test_exact_limit_and_weight_on_input(isa, rng, limit, on_input):
    problem = exact_ungated(exact_problem(rng, Shape(9, 96, 64, 4, 3), bias="both", dtype=np.float32))
    options = {**RELU2, "limit": limit, "apply_router_weight_on_input": on_input}
    assert_same_bits(problem.run(**options), problem.expected(**options))
    assert not np.array_equal(problem.run(**options), problem.run(**{**options, "limit": None}))


@pytest.mark.parametrize("name", FORMATS)
def test_close_to_float64(isa, rng, name):
    problem = ungated(format_problem(rng, Shape(20, 288, 160, 2, 2), name, dtype=np.float32, bias="both"))
    for options in (RELU2, RELU2 | {"apply_router_weight_on_input": True}):
        # Two roundings to bfloat16, of a relative error of at most 2^-8 / sqrt(3) on average each.
        assert rel_l2(problem.run(**options), problem.float64(**options)) < 2 * 2**-8 / 3**0.5


@pytest.mark.parametrize("name", FREE_SIZES)
@pytest.mark.parametrize("sizes", [(1, 1), (7, 33), (47, 5), (100, 130), (33, 17)])
def test_sizes_are_free(isa, rng, name, sizes):
    problem = ungated(format_problem(rng, Shape(6, *sizes, 3, 2), name, dtype=np.float32, bias="both"))
    assert rel_l2(problem.run(**RELU2), problem.float64(**RELU2)) < 2 * 2**-8 / 3**0.5


@pytest.mark.parametrize("sizes", [(16, 48), (48, 16), (80, 112)])
def test_nvfp4_multiples_of_16(isa, rng, sizes):
    problem = ungated(format_problem(rng, Shape(6, *sizes, 3, 2), "nvfp4", dtype=np.float32))
    assert rel_l2(problem.run(**RELU2), problem.float64(**RELU2)) < 2 * 2**-8 / 3**0.5


def test_padding_of_infinite_weights_on_the_input_is_zero(isa, rng):
    problem = ungated(format_problem(rng, Shape(2, 32, 7, 1, 1), "bf16", dtype=np.float32))
    problem.topk_weights[1] = np.inf
    result = problem.run(**RELU2, apply_router_weight_on_input=True)
    expected = problem.expected(**RELU2, apply_router_weight_on_input=True)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(result), np.isinf(expected))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_special_values(isa, rng, value):
    problem = ungated(random_problem(rng, Shape(19, 64, 32, 2, 2), dtype=np.float32, bias="both"))
    problem.hidden_states[4, 7] = value
    problem.arrays.w13_bias[1, 3] = value
    result, expected = problem.run(**RELU2), problem.expected(**RELU2)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(result), np.isinf(expected))


@pytest.mark.parametrize("name", ["mxfp4", "fp8_block-24x64", "bf16"])
def test_any_batch_gives_the_same_bits(isa, rng, name):
    problem = ungated(format_problem(rng, Shape(48, 96, 96, 6, 3), name, bias="both"))
    problem.topk_ids[rng.random(problem.topk_ids.shape) < 0.1] = -1
    experts = problem.pack()
    whole = problem.run(experts, **RELU2, num_threads=1)

    @settings(max_examples=15)
    @given(indexes=st.lists(st.integers(0, 47), min_size=1, max_size=90), num_threads=st.integers(1, 5))
    def check(indexes, num_threads):
        batch = problem.tokens(np.array(indexes))
        assert_same_bits(batch.run(experts, **RELU2, num_threads=num_threads), whole[indexes])

    check()


def test_every_group_size_gives_the_same_bits(isa, rng):
    problem = ungated(random_problem(rng, Shape(300, 64, 96, 2, 1), dtype=np.float32, bias="both"))
    problem.topk_ids[:] = 1
    experts = problem.pack()
    whole = problem.run(experts, **RELU2)
    for count in (*range(1, 36), 63, 64, 65, 255, 257):
        assert_same_bits(problem.tokens(slice(count)).run(experts, **RELU2), whole[:count])


@pytest.mark.parametrize("name", FORMATS)
def test_gemm_1_has_half_of_the_weights_and_of_the_work(rng, name):
    problem = format_problem(rng, Shape(4, 128, 96, 3, 2), name, bias="both")
    gated, plain = problem.pack(), ungated(problem).pack()
    sizes = [{part: size for part, _, size in experts._storage.parts()} for experts in (gated, plain)]
    for part, size in sizes[1].items():
        assert size == sizes[0][part] // (2 if part.startswith("w13") else 1)
    pairs = []
    for experts in (gated, plain):
        _, _, items, _ = _core.plan_call(experts._storage, config.active_kernels(), problem.topk_ids, 1, 1)
        pairs.append(sum(end - first for _, _, first, end in items))
    assert pairs[0] == 2 * pairs[1]


def test_reference_formula():
    up = np.array([-3.0, -0.5, 0.0, 0.75, 2.5, 9.0])
    assert reference.activate(None, up, "relu2", None, None).tolist() == [0, 0, 0, 0.5625, 6.25, 81]
    assert reference.activate(None, up, "relu2", None, 2.0).tolist() == [0, 0, 0, 0.5625, 4, 4]
    with pytest.raises(ValueError, match="relu2 is for experts without a gate"):
        reference.activate(up, up, "relu2", None, None)
    with pytest.raises(ValueError, match="silu is for experts with a gate"):
        reference.activate(None, up, "silu", None, None)


# --- packing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("scaled", [False, True])
def test_packed_experts_come_back(tmp_path, rng, name, scaled):
    arrays = ungated(format_problem(rng, Shape(1, 128, 96, 3, 1), name, bias="both")).arrays
    if scaled and name in SCALABLE:
        factors = rng.random((2, 3), np.float32)
        arrays = arrays._replace(w13_tensor_scale=factors[0, :, None], w2_tensor_scale=factors[1])
    experts = Problem(*[np.empty(0)] * 4)._replace(arrays=arrays).pack()
    unpacked = experts.unpack()
    for field, array in unpacked._asdict().items():
        given_array = getattr(arrays, field)
        assert (array is None) == (given_array is None)
        if array is not None:
            want = np.ascontiguousarray(given_array).reshape(array.shape)
            assert np.array_equal(array.view(np.uint8), want.view(np.uint8))
    assert unpacked.w13.shape[1] == experts.intermediate_size == 96
    assert mx.pack_experts(**experts.arguments()) == experts
    experts.save(tmp_path / "a")
    for again in (mx.PackedExperts.open(tmp_path / "a", verify=True), pickle.loads(pickle.dumps(experts))):
        assert again == experts
        assert not again.gated
    assert "gated=False" in repr(experts)


def test_only_files_without_a_gate_have_the_field(rng):
    assert "gated" not in make_experts(rng, "mxfp4").spec.to_json()
    fields = make_experts(rng, "bf16 ungated").spec.to_json()
    assert fields["gated"] is False
    for wrong, match in (
        ({"gated": 0}, "gated: expected true or false, got 0"),
        ({"gate_up_layout": "interleaved"}, "gate_up_layout: expected 'concatenated' with gated=False"),
        ({"gate": False}, "fields: expected"),
    ):
        with pytest.raises(ValueError, match=match):
            mx.experts.spec.ExpertsSpec.from_json(fields | wrong)


def test_experts_differ_by_the_gate(rng):
    w = rng.standard_normal((2, 64, 32)).astype(np.float32)
    gated = mx.pack_experts(w, None, w[:, :32], None, format="bf16")
    plain = mx.pack_experts(
        w, None, rng.standard_normal((2, 32, 64), np.float32), None, format="bf16", gated=False
    )
    assert (gated.intermediate_size, plain.intermediate_size) == (32, 64)
    assert gated != plain


WRONG_PACKING: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "number": ({"gated": 1}, TypeError, "gated: expected .*bool.*got 1"),
    "interleaved": (
        {"gate_up_layout": "interleaved"},
        ValueError,
        "gate_up_layout: expected 'concatenated' with gated=False, got 'interleaved'",
    ),
    "rows of gate and up": (
        {"w13": np.ones((2, 64, 32), np.float32)}, ValueError, r"w13: .*\(32, 32\).*got \(64, 32\)"
    ),
    "pair": ({"w13": (np.ones((2, 32, 32), np.float32),) * 2}, ValueError, "w13: .*gated=False.*pair"),
    "bias": ({"w13_bias": np.ones((2, 64), np.float32)}, ValueError, r"w13_bias: .*\(32,\).*got \(64,\)"),
    "scale of gate and up": (
        {"w13_tensor_scale": np.ones((2, 2), np.float32), "w2_tensor_scale": np.ones(2, np.float32)},
        ValueError,
        r"w13_tensor_scale: expected shape \(2,\) or \(2, 1\), got shape \(2, 2\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_PACKING)
def test_pack_experts_refuses(name):
    change, error, match = WRONG_PACKING[name]
    w = np.ones((2, 32, 32), np.float32)
    arguments = {"w13": w, "w13_scales": None, "w2": w, "w2_scales": None, "format": "bf16", "gated": False}
    mx.pack_experts(**arguments)
    with pytest.raises(error, match=match):
        mx.pack_experts(**arguments | change)


def test_activation_and_experts_must_fit(rng):
    x, routed = np.ones((1, 64), np.float32), (np.ones((1, 1), np.float32), np.zeros((1, 1), np.int32))
    gated, plain = make_experts(rng, "bf16"), make_experts(rng, "bf16 ungated")
    with pytest.raises(ValueError, match=r"activation: expected .*'silu'.* with a gate, got 'relu2'"):
        mx.fused_experts(x, gated, *routed, activation="relu2")
    with pytest.raises(ValueError, match=r"activation: expected .*'relu2'.* without a gate .*, got 'silu'"):
        mx.fused_experts(x, plain, *routed)
    with pytest.raises(ValueError, match="alpha: expected None with activation 'relu2'"):
        mx.fused_experts(x, plain, *routed, activation="relu2", alpha=1.0)
    router = np.ones((3, 64), np.float32)
    with pytest.raises(ValueError, match="activation: expected .*'relu2'.* got 'gelu'"):
        mx.MoELayer(plain, router, top_k=1, activation="gelu")
    shared = make_experts(rng, "bf16", num_experts=1)
    with pytest.raises(
        ValueError, match="shared_experts: expected gated=False, as experts have, got gated=True"
    ):
        mx.MoELayer(plain, router, top_k=1, activation="relu2", shared_experts=shared)


# --- layers -------------------------------------------------------------------------------------------------


def float_weights(rng: np.random.Generator, num_experts: int, scaled: bool = False) -> ExpertWeights:
    """Experts of a checkpoint in bfloat16."""
    arrays: dict[str, Any] = {
        "w13": rng.standard_normal((num_experts, 48, 64)).astype(bfloat16),
        "w2": rng.standard_normal((num_experts, 64, 48)).astype(bfloat16),
        "w13_scales": None,
        "w2_scales": None,
        "w13_bias": rng.standard_normal((num_experts, 48), np.float32),
        "gated": False,
    }
    if scaled:
        factors = rng.random((2, num_experts), np.float32)
        arrays |= {"w13_tensor_scale": factors[0], "w2_tensor_scale": factors[1]}
    return ExpertWeights("bf16", "bfloat16", (64, 48), arrays)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", [None, "fp8_block", "nvfp4"])
def test_weights_are_quantized(rng, name, scaled):
    weights = float_weights(rng, 3, scaled)
    assert not weights.gated
    experts = pack_weights(weights, name)
    assert (experts.format, experts.gated, experts.intermediate_size) == (name or "bf16", False, 48)
    # The reference of the weights as they are: what quantizing changes is bounded by how far a weight moves.
    problem = random_problem(rng, Shape(5, 64, 32, 3, 2), dtype=np.float32)
    routed = problem.topk_weights, problem.topk_ids
    exact = reference.fused_experts_float64(problem.hidden_states, weights, *routed, **RELU2)
    quantized = reference.fused_experts_float64(problem.hidden_states, experts, *routed, **RELU2)
    if name is None:
        assert_same_bits(quantized, exact)
    arrays, dequantized = reference.arrays_of(weights), reference.arrays_of(experts)
    for expert in range(3):
        before, after = (reference.moe._expert_weights(a, expert) for a in (arrays, dequantized))
        step = {None: 2.0**-8, "fp8_block": 2.0**-4, "nvfp4": 2.0**-2}[
            name
        ]  # half a step of the largest weight
        for matrix in ("w13", "w2"):
            a, b = (np.asarray(getattr(w, matrix), np.float64) for w in (before, after))
            assert a.shape == b.shape
            assert abs(a - b).max() <= step * abs(a).max()
    result = mx.fused_experts(problem.hidden_states, experts, *routed, **RELU2)
    assert rel_l2(result, quantized) < 2 * 2**-8 / 3**0.5


def test_mxfp4_and_mxfp8_of_floats(isa, rng):
    w13, w2 = rng.standard_normal((3, 64, 96), np.float32), rng.standard_normal((3, 96, 64), np.float32)
    arrays = {"w13": w13, "w2": w2, "gated": False}
    for name, quantizer in (("mxfp4", mx.quantize_mxfp4), ("mxfp8", mx.quantize_mxfp8)):
        experts = pack_weights(ExpertWeights("bf16", "float32", (96, 64), arrays), name)
        assert experts == mx.pack_experts(*quantizer(w13), *quantizer(w2), format=name, gated=False)


@pytest.mark.parametrize("has_shared", [False, True])
def test_layer(isa, tmp_path, rng, has_shared):
    experts = make_experts(rng, "mxfp4 scaled ungated")
    shared = make_experts(rng, "bf16 ungated", num_experts=1) if has_shared else None
    router = rng.standard_normal((3, 64), np.float32)
    layer = mx.MoELayer(
        experts, router, top_k=2, activation="relu2", shared_experts=shared, routed_scaling_factor=2.5
    )
    x = rng.standard_normal((9, 64), np.float32)
    result = layer(x)
    exact = reference.moe_layer_float64(x, layer)
    assert rel_l2(result, exact) < 2 * 2**-8 / 3**0.5
    layer.save(tmp_path / "a")
    for again in (mx.MoELayer.open(tmp_path / "a", verify=True), pickle.loads(pickle.dumps(layer))):
        assert_same_bits(again(x), result)
        assert again == layer


def test_reference_arrays_without_a_gate_are_those_of_up(rng):
    problem = random_problem(rng, Shape(3, 64, 32, 2, 1), bias="w13")
    up = reference.dequantize_mxfp4(problem.arrays.w13, problem.arrays.w13_scales)[:, 32:]
    arrays: ExpertArrays = ungated(problem).arrays
    for expert in range(2):
        assert np.array_equal(reference.moe._expert_weights(arrays, expert).w13, up[expert])
