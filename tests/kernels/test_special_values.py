"""Extreme scale bytes, NaN and infinity: what float32 would give, and only where it would."""

import numpy as np
import pytest
from problems import (
    ACTIVATIONS,
    Problem,
    Shape,
    assert_same_bits,
    bfloat16,
    pack_nibbles,
    random_problem,
)

from mxfp4moe import reference
from mxfp4moe.reference import ExpertArrays

SCALES = (0, 1, 2, 3, 126, 251, 252, 253, 254)
TINY = 2.0**-126  # smaller magnitudes may count as zero
SIZE = 32


def one_weight_problem(matrix: str, code: int, scale: int, exponent: int) -> Problem:
    """One expert, one token, and one path: hidden 0 -> up 0 -> output 0, on which one weight is code * scale.

    The gate of the path is 32. `exponent` scales what the special weight is multiplied by.
    """
    w13, w2 = np.zeros((1, 2 * SIZE, SIZE), dtype=np.uint8), np.zeros((1, SIZE, SIZE), dtype=np.uint8)
    w13_scales, w2_scales = (np.full((1, n, 1), 127, dtype=np.uint8) for n in (2 * SIZE, SIZE))
    w13_bias = np.zeros((1, 2 * SIZE), dtype=np.float32)
    w13_bias[0, 0] = 32
    w13[0, SIZE, 0] = w2[0, 0, 0] = 2  # 1.0
    hidden = np.zeros((1, SIZE), dtype=np.float32)
    if matrix == "w13":
        hidden[0, 0] = 2.0**exponent
        w13[0, SIZE, 0], w13_scales[0, SIZE] = code, scale
    else:
        hidden[0, 0] = 1
        w13_scales[0, SIZE] = 127 + exponent
        w2[0, 0, 0], w2_scales[0, 0] = code, scale
    arrays = ExpertArrays(pack_nibbles(w13), w13_scales, pack_nibbles(w2), w2_scales, w13_bias)
    return Problem(hidden, arrays, np.ones((1, 1), dtype=np.float32), np.zeros((1, 1), dtype=np.int32))


@pytest.mark.emulation
@pytest.mark.parametrize("matrix", ["w13", "w2"])
@pytest.mark.parametrize("scale", SCALES)
def test_scale_bytes_give_the_float32_weight(isa, matrix, scale):
    for code in range(16):
        problem = one_weight_problem(matrix, code, scale, 64 if scale < 127 else -64)
        result, expected = problem.run(), problem.expected()
        weight = float(reference.E2M1_VALUES[code]) * 2.0 ** (scale - 127)
        assert np.isfinite(expected).all() or abs(weight) >= 2.0**128
        if abs(weight) < TINY and not result.any():
            continue
        assert_same_bits(result, expected)


@pytest.mark.emulation
@pytest.mark.parametrize("matrix", ["w13", "w2"])
@pytest.mark.parametrize("code", [0, 1, 8, 15])
def test_scale_byte_255_is_nan(isa, matrix, code):
    problem = one_weight_problem(matrix, code, 255, 0)
    result = problem.run()
    assert np.isnan(result[0, 0])
    # From w13 the NaN is in the intermediate, and 0 times NaN is NaN in each output.
    assert np.isnan(result[0, 1:]).all() == (matrix == "w13")
    assert_same_bits(result, problem.expected())


def test_scale_byte_0_of_zero_blocks_is_zero(isa, rng):
    problem = random_problem(rng, Shape(3, 64, 32, 2, 1), dtype=np.float32)
    arrays = problem.arrays
    arrays.w13[:, :, :16] = 0
    arrays.w13_scales[:, :, 0] = 0
    other = problem._replace(arrays=arrays._replace(w13_scales=arrays.w13_scales.copy()))
    other.arrays.w13_scales[:, :, 0] = 254
    assert np.isfinite(problem.run()).all()
    assert_same_bits(problem.run(), other.run())


@pytest.mark.parametrize("scale", [0, 1, 253, 254])
def test_every_scale_byte_is_computed_in_the_middle_of_others(isa, rng, scale):
    # The special block meets zeros: finite weights must leave no trace, infinite ones make NaN.
    problem = random_problem(rng, Shape(3, 96, 32, 2, 2), dtype=np.float32)
    problem.hidden_states[:, 32:64] = 0
    plain = problem.run()
    problem.arrays.w13[:, :, 16:32] &= 0x55 if scale < 127 else 0x22  # codes 0..5 or 0 and 2: all finite
    problem.arrays.w13_scales[:, :, 1] = scale
    assert_same_bits(problem.run(), plain)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [bfloat16, np.float16, np.float32])
def test_special_hidden_states_stay_in_their_token(isa, rng, activation, value, dtype):
    problem = random_problem(rng, Shape(19, 64, 32, 2, 2), dtype=dtype, bias="both")
    clean = problem.run(activation=activation)
    special = problem._replace(hidden_states=problem.hidden_states.copy())
    special.hidden_states[[4, 18], [7, 63]] = value
    result = special.run(activation=activation)
    others = np.setdiff1d(np.arange(19), [4, 18])
    assert_same_bits(result[others], clean[others])
    expected = special.expected(activation=activation)[[4, 18]]
    np.testing.assert_array_equal(np.isnan(result[[4, 18]]), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(result[[4, 18]]), np.isinf(expected))


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001])
def test_every_nan_survives_the_rounding_of_hidden_states(isa, rng, bits):
    problem = random_problem(rng, Shape(2, 32, 32, 1, 1), dtype=np.float32)
    problem.hidden_states.view(np.uint32)[1, 3] = bits
    result = problem.run()
    assert np.isfinite(result[0]).all()
    assert np.isnan(result[1]).all()


@pytest.mark.emulation
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("limit", [None, 1.0])
def test_limit_keeps_nan_and_clamps_infinity(isa, activation, limit):
    # Row 0 of up and of gate in turn: NaN is kept, infinity clamped if there is a limit.
    for row in (0, SIZE):
        for value in (np.nan, np.inf):
            problem = one_weight_problem("w13", 2, 127, 0)
            problem.arrays.w13_bias[0, row] = value
            options = {"activation": activation, "limit": limit}
            result, expected = problem.run(**options), problem.expected(**options)
            np.testing.assert_array_equal(np.isnan(result), np.isnan(expected))
            np.testing.assert_array_equal(np.isinf(result), np.isinf(expected))
            clamped = limit is not None or activation in ("swigluoai", "situ")
            assert np.isfinite(result).all() == (clamped and not np.isnan(value))


@pytest.mark.parametrize("name", ["w13_bias", "w2_bias"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_special_biases(isa, rng, name, value):
    problem = random_problem(rng, Shape(6, 32, 32, 3, 1), dtype=np.float32, bias="both")
    getattr(problem.arrays, name)[1, 5] = value
    result, expected = problem.run(), problem.expected()
    np.testing.assert_array_equal(np.isnan(result), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(result), np.isinf(expected))
    assert np.isfinite(result[problem.topk_ids[:, 0] != 1]).all()


@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, -1.0])
def test_special_router_weights(isa, rng, value, on_input):
    problem = random_problem(rng, Shape(6, 32, 32, 3, 2), dtype=np.float32, bias="both")
    clean = problem.run(apply_router_weight_on_input=on_input)
    problem.topk_weights[2, 1] = value
    result = problem.run(apply_router_weight_on_input=on_input)
    expected = problem.expected(apply_router_weight_on_input=on_input)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(result), np.isinf(expected))
    others = np.arange(6) != 2
    assert_same_bits(result[others], clean[others])


@pytest.mark.parametrize(
    ("dtype", "largest"),
    [(bfloat16, 3.3895313892515355e38), (np.float16, 65504.0), (np.float32, 3.4028235e38)],
)
def test_output_overflows_to_infinity(isa, dtype, largest):
    # The one output is 32 times the router weight, rounded once to the output dtype.
    problem = one_weight_problem("w13", 2, 127, 0)._replace(topk_weights=np.zeros((1, 1), dtype=np.float32))
    for factor, infinite in ((1.0, False), (1 + 2.0**-5, True)):
        problem.topk_weights[0, 0] = largest / 32 * factor
        out = np.empty((1, SIZE), dtype=dtype)
        problem.run(out=out)
        assert np.isinf(out[0, 0]) == infinite
        assert_same_bits(out, problem.expected(out_dtype=dtype))


def test_tiny_hidden_states_are_zero_or_right(isa, rng):
    problem = random_problem(rng, Shape(2, 32, 32, 1, 1), dtype=np.float32, bias="both")
    problem.hidden_states[...] = 2.0**-130
    result = problem.run()
    problem.hidden_states[...] = 0
    assert_same_bits(result, problem.run())  # 2**-130 is far below the rounding of the biases
