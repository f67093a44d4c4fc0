"""The reference against the golden files and against arithmetic written out by hand."""

import math

import golden
import numpy as np
import pytest
from problems import (
    ACTIVATIONS,
    BIASES,
    EXACT_PARAMETERS,
    LAYOUTS,
    Problem,
    Shape,
    assert_same_bits,
    bfloat16,
    exact_problem,
    random_problem,
    rel_l2,
)

from mxfp4moe import reference
from mxfp4moe.reference import ExpertArrays


@pytest.mark.parametrize("name", golden.NAMES)
def test_float64_evaluation_agrees_with_golden(name):
    case = golden.load(name)
    assert rel_l2(case.problem.float64(**case.options), case.expected) <= 5e-7


@pytest.mark.parametrize("name", golden.NAMES)
@pytest.mark.parametrize(("dtype", "bound"), [(bfloat16, 2.8e-3), (np.float32, 2.2e-3)])
def test_contract_agrees_with_golden(name, dtype, bound):
    case = golden.load(name)
    problem = case.problem._replace(hidden_states=case.problem.hidden_states.astype(dtype))
    assert rel_l2(problem.expected(**case.options), case.expected) <= bound


@pytest.mark.parametrize("name", [n for n in golden.NAMES if n != "deepseek_v4"])
def test_topk_softmax_agrees_with_golden(name):
    case = golden.load(name)
    top_k = case.problem.topk_ids.shape[-1]
    weights, ids = reference.topk_softmax(case.router_logits, top_k, renormalize=case.renormalize)
    order = np.argsort(ids, axis=-1)
    np.testing.assert_array_equal(np.take_along_axis(ids, order, -1), case.problem.topk_ids)
    np.testing.assert_allclose(np.take_along_axis(weights, order, -1), case.problem.topk_weights, rtol=1e-6)


def test_dequantize_mxfp4_low_nibble_is_even_k():
    blocks = np.zeros((1, 16), dtype=np.uint8)
    blocks[0, 0] = 0xF1  # k = 0: code 1 = 0.5; k = 1: code 15 = -6
    blocks[0, 15] = 0x20  # k = 31: code 2 = 1
    values = reference.dequantize_mxfp4(blocks, np.array([[128]], dtype=np.uint8))
    assert values.shape == (1, 32)
    assert values[0, 0] == 1
    assert values[0, 1] == -12
    assert values[0, 31] == 2
    assert np.count_nonzero(values) == 3


def test_dequantize_mxfp4_every_code_and_scale():
    magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    codes = np.arange(16, dtype=np.uint8).repeat(2)
    blocks = np.broadcast_to(codes[0::2] | codes[1::2] << 4, (256, 16))
    values = reference.dequantize_mxfp4(blocks, np.arange(256, dtype=np.uint8)[:, None])
    for scale in range(256):
        for code in range(16):
            value = values[scale, 2 * code]
            if scale == 255:
                assert math.isnan(value)
                continue
            exact = math.ldexp(magnitudes[code & 7], scale - 127) * (-1 if code & 8 else 1)
            assert value == (exact if abs(exact) < 2.0**128 else math.copysign(math.inf, exact))
            assert np.signbit(value) == (code >= 8)


@pytest.mark.parametrize("gate", [-3.0, -0.5, 0.0, 0.75, 2.5, 9.0])
def test_activate_formulas(gate):
    up = -1.25
    gates, ups = np.array([gate]), np.array([up])
    cdf = 0.5 * (1 + math.erf(gate / math.sqrt(2)))
    tanh = 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    clamped = min(gate, 7.0)
    expected = {
        "silu": gate / (1 + math.exp(-gate)) * up,
        "gelu": gate * cdf * up,
        "gelu_tanh": gate * tanh * up,
        "swigluoai": clamped / (1 + math.exp(-1.702 * clamped)) * (up + 1),
        "silu_clamp": gate / (1 + math.exp(-gate)) * up,
        "situ": 4 * math.tanh(gate / 4) / (1 + math.exp(-gate)) * 25 * math.tanh(up / 25),
    }
    for activation in ACTIVATIONS:
        result = reference.activate(gates, ups, activation, None, None)
        np.testing.assert_allclose(result, [expected[activation]], rtol=1e-13)


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name not in ("silu_clamp", "situ")])
def test_limit_clamps_gate_from_above_and_up_on_both_sides(activation):
    gate = np.array([9.0, -9.0, 1.0, 1.0], dtype=np.float32)
    up = np.array([1.0, 1.0, 9.0, -9.0], dtype=np.float32)
    limited = reference.activate(gate, up, activation, None, 4.0)
    clamped = reference.activate(np.minimum(gate, 4), np.clip(up, -4, 4), activation, None, math.inf)
    assert_same_bits(limited, clamped)
    assert not np.array_equal(limited, reference.activate(gate, up, activation, None, math.inf))


def test_silu_clamp_clamps_after_the_activation():
    gate = np.array([9.0, -9.0, 2.0, 1.0, 1.0], dtype=np.float32)
    up = np.array([1.0, 1.0, 1.0, 9.0, -9.0], dtype=np.float32)
    silu = gate / (1 + np.exp(-gate))
    expected = np.minimum(silu, np.float32(1.5)) * np.clip(up, -1.5, 1.5)
    np.testing.assert_allclose(reference.activate(gate, up, "silu_clamp", None, 1.5), expected, rtol=1e-6)
    assert_same_bits(
        reference.activate(gate, up, "silu_clamp", None, None),
        reference.activate(gate, up, "silu", None, None),
    )


@pytest.mark.parametrize(("alpha", "limit"), [(4.0, 25.0), (0.5, 2.0), (30.0, math.inf)])
def test_situ_parameters(alpha, limit):
    gate, up = np.meshgrid(np.linspace(-20, 20, 41), np.linspace(-80, 80, 33))
    soft_up = up if limit == math.inf else limit * np.tanh(up / limit)
    expected = alpha * np.tanh(gate / alpha) / (1 + np.exp(-gate)) * soft_up
    np.testing.assert_allclose(reference.activate(gate, up, "situ", alpha, limit), expected, rtol=1e-13)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_limit_keeps_nan(activation):
    nan, one = np.array([np.nan], dtype=np.float32), np.array([1.0], dtype=np.float32)
    assert np.isnan(reference.activate(nan, one, activation, None, 2.0))
    assert np.isnan(reference.activate(one, nan, activation, None, 2.0))


def one_value_experts(down: list[float]) -> ExpertArrays:
    """Experts with I = K = 1 whose gate is 32 times, and up once, the hidden state."""
    count = len(down)
    w13 = np.tile(np.array([[32.0], [1.0]], dtype=np.float32), (count, 1, 1))
    return ExpertArrays(w13, None, np.array(down, dtype=np.float32).reshape(count, 1, 1), None)


def test_sum_runs_in_ascending_expert_id_then_slot():
    # Three terms whose float32 sum depends on the order: big - big + small is not big + small - big.
    experts = one_value_experts([2.0**30, -(2.0**30), 1.0])
    hidden = np.ones((1, 1), dtype=np.float32)
    weights = np.ones((1, 3), dtype=np.float32)
    for ids in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        result = reference.fused_experts(hidden, experts, weights, np.array([ids]))
        assert result == 32
    swapped = one_value_experts([2.0**30, 1.0, -(2.0**30)])
    assert reference.fused_experts(hidden, swapped, weights, np.array([[0, 1, 2]])) == 0
    # The same expert stands in several slots: their order is that of the sum.
    one = one_value_experts([1.0])
    same = np.zeros((1, 3), dtype=np.int64)
    for order, expected in (([2.0**30, -(2.0**30), 1], 32), ([2.0**30, 1, -(2.0**30)], 0)):
        assert reference.fused_experts(hidden, one, np.array([order], dtype=np.float32), same) == expected


def test_intermediate_and_hidden_states_are_rounded_to_bfloat16():
    experts = one_value_experts([1.0])
    weights, ids = np.ones((1, 1), dtype=np.float32), np.zeros((1, 1), dtype=np.int64)
    hidden = np.array([[1 + 2.0**-7 + 2.0**-9]], dtype=np.float32)  # to 1 + 2^-7
    rounded = 1 + 2.0**-7
    intermediate = 32 * (rounded**2 - 2.0**-14)  # 1 + 2^-6 + 2^-14 rounds down
    assert reference.fused_experts(hidden, experts, weights, ids) == intermediate
    assert abs(reference.fused_experts_float64(hidden, experts, weights, ids) - 32 * rounded**2) < 1e-11


def test_dropped_slots_are_not_read(rng):
    problem = random_problem(rng, Shape(4, 32, 32, 3, 2), dtype=np.float32, bias="both")
    problem.topk_ids[:, 1] = -1
    problem.topk_weights[:, 1] = np.nan
    one_slot = problem._replace(topk_ids=problem.topk_ids[:, :1], topk_weights=problem.topk_weights[:, :1])
    assert_same_bits(problem.expected(), one_slot.expected())
    problem.topk_ids[:] = -1
    assert_same_bits(problem.expected(), np.zeros((4, 32), dtype=np.float32))


def test_no_tokens_and_no_slots(rng):
    problem = random_problem(rng, Shape(3, 32, 32, 2, 2))
    without = problem._replace(topk_weights=problem.topk_weights[:, :0], topk_ids=problem.topk_ids[:, :0])
    assert not without.expected().any() and without.expected().shape == (3, 32)
    assert problem.tokens(slice(0, 0)).expected().shape == (0, 32)


def test_expert_map_translates_ids(rng):
    problem = random_problem(rng, Shape(6, 32, 32, 4, 2))
    expert_map = np.array([-1, 3, 2, -1, 1, 0])
    global_ids = rng.integers(-1, 6, (6, 2))
    local = np.where(global_ids < 0, -1, expert_map[global_ids])
    mapped = problem._replace(topk_ids=global_ids).expected(expert_map=expert_map)
    assert_same_bits(mapped, problem._replace(topk_ids=local).expected())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias", BIASES)
def test_agrees_with_a_loop_over_tokens(rng, layout, bias):
    problem = random_problem(rng, Shape(5, 64, 32, 4, 2), layout=layout, bias=bias)
    np.testing.assert_allclose(problem.float64(), loop_over_tokens(problem), rtol=1e-12, atol=1e-14)


def loop_over_tokens(problem: Problem) -> np.ndarray:
    hidden_states, arrays, weights, ids = problem
    w13 = reference.dequantize_mxfp4(arrays.w13, arrays.w13_scales, np.float64)
    w2 = reference.dequantize_mxfp4(arrays.w2, arrays.w2_scales, np.float64)
    size = w2.shape[2]
    rows = [slice(0, size), slice(size, None)]
    if arrays.gate_up_layout == "interleaved":
        rows = [slice(0, None, 2), slice(1, None, 2)]
    result = np.zeros(hidden_states.shape)
    for token, slot in np.ndindex(*ids.shape):
        expert = ids[token, slot]
        gate, up = (w13[expert, r] @ hidden_states[token].astype(np.float64) for r in rows)
        if arrays.w13_bias is not None:
            gate, up = (x + arrays.w13_bias[expert, r] for x, r in zip((gate, up), rows, strict=True))
        down = w2[expert] @ (gate / (1 + np.exp(-gate)) * up)
        if arrays.w2_bias is not None:
            down = down + arrays.w2_bias[expert]
        result[token] += weights[token, slot] * down
    return result


def test_weight_on_input_equals_scaling_the_input(rng):
    # A power of two, so that the input is scaled without a rounding.
    problem = random_problem(rng, Shape(5, 64, 32, 4, 1), bias="both")
    on_input = problem._replace(topk_weights=np.full((5, 1), 0.25, dtype=np.float32))
    scaled = problem._replace(
        hidden_states=(problem.hidden_states.astype(np.float32) * 0.25).astype(bfloat16),
        topk_weights=np.ones((5, 1), dtype=np.float32),
    )
    assert_same_bits(on_input.expected(apply_router_weight_on_input=True), scaled.expected())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_exact_problems_have_no_rounding_but_the_intermediate(rng, activation):
    problem = exact_problem(rng, Shape(7, 96, 64, 4, 3), bias="both")
    options = {"activation": activation, **EXACT_PARAMETERS.get(activation, {})}
    result = problem.expected(out_dtype=np.float32, **options)
    # A float32 sum in another order: the same bits.
    reversed_k = problem._replace(
        hidden_states=problem.hidden_states[:, ::-1],
        arrays=problem.arrays._replace(
            w13=(problem.arrays.w13[..., ::-1] >> 4) | (problem.arrays.w13[..., ::-1] << 4),
            w13_scales=problem.arrays.w13_scales[..., ::-1],
        ),
    )
    assert_same_bits(reversed_k.expected(out_dtype=np.float32, **options), result)
    # The others are the identity on these gates.
    if activation not in ("swigluoai", "situ"):
        assert_same_bits(problem.expected(out_dtype=np.float32, activation="silu"), result)
