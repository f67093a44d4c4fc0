"""topk_softmax: selection, order, weights, and what it refuses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mxfp4moe as mx
from mxfp4moe import reference

pytestmark = pytest.mark.emulation

# Weights are float64 softmax values rounded once; the reference adds in another order: one ulp of float32.
ULP = 2.0**-23


def tied_logits(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Multiples of 1/2 with many ties, both zeros, and some -inf; column 0 is finite."""
    rng = np.random.default_rng(seed)
    logits = (rng.integers(-6, 7, shape) / 2).astype(np.float32)
    logits[rng.random(shape) < 0.2] = -0.0
    logits[..., 1:][rng.random(logits[..., 1:].shape) < 0.2] = -np.inf
    return logits


@given(
    seed=st.integers(0, 2**32),
    num_tokens=st.integers(0, 20),
    num_experts=st.integers(1, 70),
    data=st.data(),
    renormalize=st.booleans(),
)
def test_topk_softmax_agrees_with_reference(seed, num_tokens, num_experts, data, renormalize):
    top_k = data.draw(st.integers(1, num_experts))
    logits = tied_logits(seed, (num_tokens, num_experts))
    weights, ids = mx.topk_softmax(logits, top_k, renormalize=renormalize)
    expected_weights, expected_ids = reference.topk_softmax(logits, top_k, renormalize=renormalize)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(weights, expected_weights, rtol=ULP, atol=0)
    assert weights.dtype == np.float32
    assert ids.dtype == np.int32


@given(seed=st.integers(0, 2**32), num_tokens=st.integers(1, 40), num_experts=st.integers(1, 300))
def test_rows_do_not_depend_on_the_batch(seed, num_tokens, num_experts):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num_tokens, num_experts)).astype(np.float32) * 4
    top_k = min(8, num_experts)
    weights, ids = mx.topk_softmax(logits, top_k, renormalize=False)
    order = rng.permutation(num_tokens)
    permuted = mx.topk_softmax(np.asfortranarray(logits[order]), top_k, renormalize=False)
    np.testing.assert_array_equal(permuted[0], weights[order])
    np.testing.assert_array_equal(permuted[1], ids[order])
    one_weights, one_ids = mx.topk_softmax(logits[0], top_k, renormalize=False)
    np.testing.assert_array_equal(one_weights, weights[0])
    np.testing.assert_array_equal(one_ids, ids[0])


def test_ties_go_to_the_lower_id():
    logits = np.array([[1.0, 3.0, 3.0, 1.0, 3.0], [0.0, -0.0, 0.0, -0.0, -1.0]], dtype=np.float32)
    assert mx.topk_softmax(logits, 4)[1].tolist() == [[1, 2, 4, 0], [0, 1, 2, 3]]


def test_ids_come_by_descending_logit_across_signs_and_magnitudes():
    values = np.array([-3e38, -1.0, -1e-45, 0.0, 1e-45, 1.0, 3e38], dtype=np.float32)
    order = np.array([4, 0, 6, 2, 5, 1, 3])
    _, ids = mx.topk_softmax(values[order][None], 7)
    assert values[order][ids[0]].tolist() == values[::-1].tolist()


@pytest.mark.parametrize("renormalize", [True, False])
def test_weights_are_a_softmax(renormalize):
    logits = np.log(np.array([[1.0, 4.0, 2.0, 1.0]])).astype(np.float32)
    weights, ids = mx.topk_softmax(logits, 2, renormalize=renormalize)
    assert ids.tolist() == [[1, 2]]
    np.testing.assert_allclose(weights, [[4 / 6, 2 / 6] if renormalize else [4 / 8, 2 / 8]], rtol=4 * ULP)


@pytest.mark.parametrize("renormalize", [True, False])
def test_large_logits_do_not_overflow(renormalize):
    logits = np.array([[3e38, -3e38, 3e38, 0.0]], dtype=np.float32)
    weights, ids = mx.topk_softmax(logits, 3, renormalize=renormalize)
    assert ids.tolist() == [[0, 2, 3]]
    assert weights.tolist() == [[0.5, 0.5, 0.0]]


def test_excluded_experts_have_weight_zero():
    logits = np.array([[-np.inf, 1.0, -np.inf]], dtype=np.float32)
    weights, ids = mx.topk_softmax(logits, 3)
    assert ids.tolist() == [[1, 0, 2]]
    assert weights.tolist() == [[1.0, 0.0, 0.0]]


def test_input_is_not_written(rng):
    logits = rng.normal(size=(3, 5)).astype(np.float32)
    before = logits.copy()
    logits.flags.writeable = False
    mx.topk_softmax(logits, 2)
    np.testing.assert_array_equal(logits, before)


def test_row_without_finite_logits_is_refused():
    logits = np.zeros((3, 4), dtype=np.float32)
    logits[2] = -np.inf
    with pytest.raises(ValueError, match=r"router_logits: expected a finite value .* row \(2,\)"):
        mx.topk_softmax(logits, 2)
