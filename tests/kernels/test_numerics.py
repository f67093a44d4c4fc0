"""Random problems against bounds that follow from the arithmetic of the contract."""

import numpy as np
import pytest
from problems import (
    ACTIVATIONS,
    BIASES,
    LAYOUTS,
    Problem,
    Shape,
    bfloat16,
    pack_nibbles,
    random_problem,
    rel_l2,
    ungated,
)

from mxfp4moe import reference

EPS32 = 2.0**-24  # half an ulp of float32, relative
EPS16 = 2.0**-8  # half an ulp of bfloat16, relative: 8 bits of precision
ACTIVATION_ULPS = 16  # of an approximated sigmoid, erf or tanh, and of what a gate times it is
SOFT_CLAMP_ULPS = 8  # of limit * tanh(x / limit): 5.1 of tanh (3e-7), a division and a product


def activation_ulps(activation: str) -> int:
    """How far an activation may be off by its approximations and roundings, if its gate and up are exact."""
    return ACTIVATION_ULPS + (SOFT_CLAMP_ULPS if activation == "situ" else 0)


def intermediate_error(activation: str, sums: list[np.ndarray], errors: list[np.ndarray]) -> np.ndarray:
    """Largest error of an intermediate, not yet rounded, of gate and up, or up alone, with these errors.

    The derivative of gate * factor(gate) is below 1.13 for every activation, so the error of a gate enters
    the intermediate times 1.13 * |up|. (For situ, with t = tanh(g / b), it is (1 - t^2) sigmoid(g) +
    b t sigmoid'(g), and |b t| <= |g|: no more than that of silu for positive g; for negative g the terms have
    opposite signs and are below 1.) relu2 is a square.
    """
    if activation == "relu2":
        (up,), (error,) = sums, errors
        return (2 * abs(up) + error) * error + EPS32 * (abs(up) + error) ** 2
    (gate, up), (gate_error, up_error) = sums, errors
    up_factor = abs(up) + 1 + up_error
    approximated = activation_ulps(activation) * EPS32 * (abs(gate) + gate_error) * up_factor
    return 1.13 * gate_error * up_factor + (abs(gate) + gate_error) * up_error + approximated


def elementwise_bound(problem: Problem, activation: str, output_eps: float) -> np.ndarray:
    """Largest error of each output of float32 sums in any order and the roundings of the contract.

    A sum of n products of bfloat16 numbers is off by at most n * EPS32 * (sum of the magnitudes): each
    product and each partial sum is rounded at most once.
    """
    hidden, arrays, topk_weights, topk_ids = problem
    hidden = hidden.astype(np.float64)
    bound = np.zeros(hidden.shape)
    for token, slot in np.ndindex(*topk_ids.shape):
        weights = reference.moe._expert_weights(arrays, topk_ids[token, slot])
        w13, w2 = weights.w13.astype(np.float64), weights.w2.astype(np.float64)
        sums, sum_errors = w13 @ hidden[token], abs(w13) @ abs(hidden[token])
        if weights.w13_bias is not None:
            sums, sum_errors = sums + weights.w13_bias, sum_errors + abs(weights.w13_bias)
        sum_errors *= (hidden.shape[-1] + 2) * EPS32
        parts = 2 if arrays.gated else 1
        (*gate, up), errors = np.split(sums, parts), np.split(sum_errors, parts)
        intermediate = abs(reference.activate(gate[0] if gate else None, up, activation, None, None))
        error = intermediate_error(activation, [*gate, up], errors)
        error += EPS16 * (intermediate + error)
        down_error = abs(w2) @ error + (w2.shape[1] + 2) * EPS32 * (abs(w2) @ (intermediate + error))
        if weights.w2_bias is not None:
            down_error += EPS32 * abs(weights.w2_bias)
        bound[token] += abs(topk_weights[token, slot]) * down_error
    result = problem.float64(activation=activation)
    return bound + (output_eps + (topk_ids.shape[-1] + 2) * EPS32) * (abs(result) + bound)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "output_eps"), [(bfloat16, EPS16), (np.float32, EPS32), (np.float16, 2.0**-11)]
)
def test_every_output_is_within_its_bound(isa, rng, activation, layout, dtype, output_eps):
    problem = random_problem(rng, Shape(9, 96, 160, 4, 3), layout=layout, bias="both")
    out = np.empty((9, 96), dtype=dtype)
    problem.run(out=out, activation=activation)
    error = abs(out.astype(np.float64) - problem.float64(activation=activation))
    bound = elementwise_bound(problem, activation, output_eps)
    assert (error <= bound).all()


@pytest.mark.parametrize("bias", BIASES)
def test_every_output_without_a_gate_is_within_its_bound(isa, rng, bias):
    problem = ungated(random_problem(rng, Shape(9, 96, 160, 4, 3), bias=bias))
    out = np.empty((9, 96), dtype=np.float32)
    problem.run(out=out, activation="relu2")
    error = abs(out.astype(np.float64) - problem.float64(activation="relu2"))
    assert (error <= elementwise_bound(problem, "relu2", EPS32)).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [Shape(3, 64, 32, 2, 1), Shape(21, 288, 352, 8, 4)])
@pytest.mark.parametrize("limit", [None, 0.5])
def test_differs_from_reference_by_rare_rounding_flips(isa, rng, activation, shape, limit):
    # With a float32 output only the order of the sums and the last bits of the activation differ from the
    # reference. They change an intermediate, by a relative 2**-7 at most, when it is as near to a rounding
    # boundary as they reach. If fewer than one in 100 flips, the relative error is below
    # sqrt(1 / 100) * 2**-7; an intermediate that is not rounded, or twice, makes more than 1.4e-3.
    problem = random_problem(rng, shape, bias="both")
    out = np.empty(problem.hidden_states.shape, dtype=np.float32)
    problem.run(out=out, activation=activation, limit=limit)
    expected = problem.expected(activation=activation, limit=limit, out_dtype=np.float32)
    assert rel_l2(out, expected) <= 0.1 * 2.0**-7


def activation_problem(gates: np.ndarray, ups: np.ndarray) -> Problem:
    """A problem whose float32 results are the intermediates of `gates` and `ups`, [tokens, 32]."""
    count = len(gates)
    identity = pack_nibbles(np.eye(32, dtype=np.uint8) * 2)  # code 2 is 1.0
    arrays = reference.ExpertArrays(
        w13=np.zeros((count, 64, 16), dtype=np.uint8),
        w13_scales=np.full((count, 64, 1), 127, dtype=np.uint8),
        w2=np.broadcast_to(identity, (count, 32, 16)),
        w2_scales=np.full((count, 32, 1), 127, dtype=np.uint8),
        w13_bias=np.concatenate([gates, ups], axis=1),
    )
    ids = np.arange(count, dtype=np.int32)[:, None]
    return Problem(np.zeros((count, 32), np.float32), arrays, np.ones((count, 1), np.float32), ids)


@pytest.mark.emulation
@pytest.mark.smoke
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_accuracy(isa, activation):
    # 32 gates for each expert, given as biases and read out one by one, in float32; the other factor is 1.
    ranges = np.linspace(-30, 30, 32 * 64), np.linspace(-120, 120, 32 * 8), np.geomspace(1e-30, 1, 64)
    gates = np.concatenate(ranges).astype(np.float32).reshape(-1, 32)
    ups = np.full(gates.shape, 0 if activation == "swigluoai" else 1, dtype=np.float32)
    problem = activation_problem(gates, ups)
    options = {"activation": activation, "limit": np.inf}
    expected = problem.float64(**options)
    # exp(-gate) of a rounded alpha * gate has a relative error that grows with the gate; 1 + erf and 1 + tanh
    # have an absolute one. The factor, and the result, may be zero below 2**-126.
    bound = (EPS16 + ACTIVATION_ULPS * EPS32 * (1 + gates**2)) * abs(expected)
    bound += 2.0**-126 * (1 + abs(gates))
    if activation in ("gelu", "gelu_tanh"):
        bound += ACTIVATION_ULPS * EPS32 * abs(gates)
    assert (abs(problem.run(**options) - expected) <= bound).all()


ACCURATE = {"silu": {}, "silu_clamp": {"limit": 2.5}, "situ": {}, "situ-2": {"alpha": 0.7, "limit": 3.0}}


@pytest.mark.emulation
@pytest.mark.parametrize("name", ACCURATE)
def test_intermediate_is_accurate_in_float32(isa, rng, name):
    # Rounding keeps the order of numbers, so that the intermediate is between the roundings of both ends of
    # the float32 error. They are the same but where a boundary is as near: for one value in 1400 (2 * 24 *
    # EPS32 of a distance of EPS16 or more).
    activation, options = name.removesuffix("-2"), ACCURATE[name]
    count = 400
    gates, ups = (
        (rng.choice([-1, 1], (count, 32)) * np.exp2(rng.uniform(-20, 6, (count, 32)))).astype(np.float32)
        for _ in range(2)
    )
    problem = activation_problem(gates, ups)
    exact = reference.activate(gates.astype(np.float64), ups.astype(np.float64), activation, *(
        float(np.float32(options[key])) if key in options else None for key in ("alpha", "limit")
    ))  # fmt: skip
    error = activation_ulps(activation) * EPS32 * abs(exact)
    low, high = (reference.round_bfloat16((exact + sign * error).astype(np.float32)) for sign in (-1, 1))
    result = problem.run(activation=activation, **options)
    assert ((low <= result) & (result <= high)).all()


@pytest.fixture(scope="module")
def real_layer():
    """K = I = 2880 and top_k 4, and the float64 result from the same bfloat16 inputs."""
    rng = np.random.default_rng(2880)
    problem = random_problem(rng, Shape(300, 2880, 2880, 8, 4), layout="interleaved", bias="both")
    return problem, problem.pack(), problem.float64(activation="swigluoai")


@pytest.mark.parametrize("num_tokens", [1, 5, 33, 300])
@pytest.mark.parametrize(("dtype", "bound"), [(bfloat16, 2.6e-3), (np.float32, 2.0e-3)])
def test_relative_error_at_real_sizes(native_isa, real_layer, num_tokens, dtype, bound):
    problem, experts, expected = real_layer
    out = np.empty((num_tokens, 2880), dtype=dtype)
    problem.tokens(slice(num_tokens)).run(experts, activation="swigluoai", out=out)
    assert rel_l2(out, expected[:num_tokens]) <= bound
