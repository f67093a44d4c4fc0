"""Router logits on every kernel table: exact weights, float32 sums, a token's bits in any batch."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import assert_same_bits, bfloat16

import mxfp4moe as mx
from mxfp4moe import reference

UNIT = 2.0**-24
EXPERTS = (1, 5, 32, 128, 257)
DTYPES = (bfloat16, np.float16, np.float32)


def weight_of(kind: str, values: np.ndarray) -> np.ndarray:
    """`values` as float32, rounded to bfloat16 if that is the `kind`."""
    values = values.astype(np.float32)
    return reference.round_bfloat16(values) if kind == "bfloat16" else values


def pack_router(weight: np.ndarray, bias: np.ndarray | None = None) -> mx.PackedLinear:
    return mx.pack_linear(weight, format="float32", bias=bias)


def packed_terms(linear: mx.PackedLinear) -> np.ndarray:
    """The bfloat16 numbers that each weight is the sum of, [terms, N, K], from the packed bytes."""
    (rows, k), num_terms = linear.shape, linear.spec.num_terms
    panels, blocks = -(-rows // 16), -(-k // 32)
    numbers = np.asarray(linear.data)[: panels * num_terms * blocks * 1024].view(bfloat16)
    by_row = numbers.reshape(panels, num_terms, blocks, 16, 32).transpose(1, 0, 3, 2, 4)
    return by_row.reshape(num_terms, panels * 16, blocks * 32)[:, :rows, :k].astype(np.float64)


def layer_of(weight: np.ndarray, bias: np.ndarray | None = None) -> mx.MoELayer:
    """A layer with this router; its experts are of no interest."""
    num_experts, hidden_size = weight.shape
    w13, w2 = (
        np.zeros((num_experts, 2, hidden_size), bfloat16),
        np.zeros((num_experts, hidden_size, 1), bfloat16),
    )
    return mx.MoELayer(mx.pack_experts(w13, None, w2, None, format="bf16"), weight, bias, top_k=1)


# --- exact ------------------------------------------------------------------------------------------------


@pytest.mark.emulation
@pytest.mark.smoke
@pytest.mark.parametrize("fraction_bits", [0, 9, 17])  # weights of 3, 12 and 20 bits: one to three terms
@pytest.mark.parametrize(("num_tokens", "num_experts", "hidden_size"), [(1, 1, 1), (3, 17, 33), (37, 40, 96)])
def test_exact_sums(isa, rng, fraction_bits, num_tokens, num_experts, hidden_size):
    # Every partial sum is a multiple of 2**-17 below 2**6: exact in float32, whatever the order.
    weight = rng.integers(-(8 << fraction_bits), 8 << fraction_bits, (num_experts, hidden_size))
    weight = (weight / 2.0**fraction_bits).astype(np.float32)
    bias = rng.integers(-8, 9, num_experts).astype(np.float32)
    hidden = np.zeros((num_tokens, hidden_size), np.float32)
    for token in hidden:
        token[rng.choice(hidden_size, min(4, hidden_size), replace=False)] = 1
    hidden *= rng.choice([-1, 1], hidden.shape)
    for given_bias in (bias, None):
        logits = pack_router(weight, given_bias)(hidden)
        assert_same_bits(logits, reference.router_logits(hidden, weight, given_bias))
        assert_same_bits(layer_of(weight, given_bias).router_logits(hidden), logits)


@pytest.mark.emulation
@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32"])
def test_every_weight_is_exact(isa, rng, kind):
    # A token of a single 1 has the weights themselves as logits. The last bit of these is 2**-125 or more.
    exponents = rng.integers(-102, 127, (19, 40)) if kind != "float16" else rng.integers(-14, 15, (19, 40))
    weight = np.ldexp(rng.uniform(1, 2, (19, 40)) * rng.choice([-1, 1], (19, 40)), exponents).astype(
        np.float32
    )
    weight[rng.random(weight.shape) < 0.1] = 0
    weight[3, 7] = np.finfo(np.float32).max if kind == "float32" else 1
    weight = weight.astype(bfloat16 if kind == "bfloat16" else kind).astype(np.float32)
    linear = pack_router(weight)
    assert linear.spec.num_terms == {"bfloat16": 1, "float16": 2, "float32": 3}[kind]
    assert_same_bits(linear(np.eye(40, dtype=np.float32)), np.ascontiguousarray(weight.T))


def test_split_is_exact(rng):
    bits = rng.integers(0, 2**32, 20000, dtype=np.uint32)
    weight = np.concatenate([bits.view(np.float32), np.float32([0, -0.0, 1e-45, -1e-45, 2**-110, 3e38])])
    weight = weight[np.isfinite(weight)][None]
    linear = pack_router(weight)
    terms = packed_terms(linear)
    assert len(terms) == 3
    lost = np.where(abs(weight) < 2.0**-110, 2.0**-133, 0)
    assert (abs(terms.sum(axis=0) - weight) <= lost).all()
    assert (np.sign(terms) * np.sign(weight) >= 0).all()
    unpacked = linear.unpack().weight
    assert (abs(unpacked.astype(np.float64) - weight) <= lost).all()
    assert_same_bits(unpacked[lost == 0], weight[lost == 0])
    assert (np.signbit(unpacked) == np.signbit(weight)).all()


# --- bounds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_experts", EXPERTS)
@pytest.mark.parametrize("kind", ["bfloat16", "float32"])
def test_error_is_that_of_float32_sums(isa, rng, kind, num_experts):
    k, num_tokens = 2880, 3 if "model" in isa else 21
    weight = weight_of(kind, rng.normal(size=(num_experts, k)))
    bias = rng.normal(size=num_experts).astype(np.float32)
    hidden = rng.normal(size=(num_tokens, k)).astype(np.float32)
    x, w = reference.round_bfloat16(hidden).astype(np.float64), weight.astype(np.float64)
    expected = x @ w.T + bias
    # Products are exact. The terms of a weight have its sign, so their sums are together over as much
    # magnitude as the products; k of them in any order, two additions of sums, the bias.
    roundings = (k + 3) * UNIT
    bound = roundings / (1 - roundings) * (abs(x) @ abs(w).T + abs(bias))
    logits = pack_router(weight, bias)(hidden)
    assert (abs(logits - expected) <= bound).all()


# --- a token's bits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bfloat16", "float32"])
def test_any_batch_gives_the_same_bits(isa, rng, kind):
    bias = rng.normal(size=75).astype(np.float32)
    linear = pack_router(weight_of(kind, rng.normal(size=(75, 160))), bias)
    hidden = rng.normal(size=(48, 160)).astype(np.float32)
    whole = linear(hidden, num_threads=1)

    @settings(max_examples=20)
    @given(indexes=st.lists(st.integers(0, 47), min_size=1, max_size=90), num_threads=st.integers(1, 5))
    def check(indexes, num_threads):
        assert_same_bits(linear(hidden[indexes], num_threads=num_threads), whole[indexes])

    check()


@pytest.mark.parametrize("kind", ["bfloat16", "float32"])
@pytest.mark.parametrize("num_experts", EXPERTS)
def test_real_sizes_and_any_number_of_threads(native_isa, rng, kind, num_experts):
    linear = pack_router(weight_of(kind, rng.normal(size=(num_experts, 2880))))
    hidden = rng.normal(size=(300, 2880)).astype(bfloat16)
    whole = linear(hidden, num_threads=1)
    for num_threads in (2, 3, 4, 7):
        assert_same_bits(linear(hidden, num_threads=num_threads), whole)
    for count in (*range(1, 20), 31, 32, 33, 48, 100, 129, 257):
        first = int(rng.integers(301 - count))
        part = slice(first, first + count)
        for num_threads in (1, 2, 5):
            assert_same_bits(linear(hidden[part], num_threads=num_threads), whole[part])


@pytest.mark.emulation
def test_large_groups_on_every_table(isa, rng):
    linear = pack_router(rng.normal(size=(33, 64)).astype(np.float32))
    hidden = rng.normal(size=(600, 64)).astype(np.float32)
    whole = linear(hidden, num_threads=1)
    for num_threads in (1, 2, 3, 8):
        assert_same_bits(linear(hidden, num_threads=num_threads), whole)
        for part in (slice(1), slice(255, 258), slice(500, 533), slice(579, 600)):
            assert_same_bits(linear(hidden[part], num_threads=num_threads), whole[part])


def test_calls_from_several_threads(isa, rng):
    linear = pack_router(rng.normal(size=(64, 320)).astype(np.float32))
    batches = [rng.normal(size=(count, 320)).astype(np.float32) for count in (1, 3, 40, 150)] * 3
    expected = [linear(batch) for batch in batches]
    contexts = [copy_context() for _ in batches]  # each knows the kernel table
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(c.run, linear, batch) for c, batch in zip(contexts, batches, strict=True)]
    for call, wanted in zip(calls, expected, strict=True):
        assert_same_bits(call.result(), wanted)


# --- forms of a call --------------------------------------------------------------------------------------


def padded_rows(a: np.ndarray) -> np.ndarray:
    wide = np.full((len(a), a.shape[1] + 3), np.nan, a.dtype)
    wide[:, 1:-2] = a
    return wide[:, 1:-2]


FORMS = {
    "contiguous": lambda a: a,
    "padded rows": padded_rows,
    "every other row": lambda a: np.repeat(a, 2, axis=0)[::2],
    "rows backwards": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "Fortran order": np.asfortranarray,
    "every other column": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "columns backwards": lambda a: np.ascontiguousarray(a[:, ::-1])[:, ::-1],
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "unaligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("hidden_size", [32, 45])
def test_dtypes_and_strides(isa, rng, form, dtype, hidden_size):
    layer = layer_of(rng.normal(size=(6, hidden_size)).astype(np.float32), np.ones(6, np.float32))
    hidden = rng.normal(size=(20, hidden_size)).astype(np.float32).astype(dtype)
    rounded = reference.round_bfloat16(hidden).astype(bfloat16)
    assert_same_bits(layer.router_logits(FORMS[form](hidden)), layer.router_logits(rounded))


@pytest.mark.parametrize("dtype", DTYPES)
def test_leading_axes(isa, rng, dtype):
    layer = layer_of(rng.normal(size=(6, 45)).astype(np.float32))
    hidden = rng.normal(size=(4, 2, 3, 45)).astype(np.float32).astype(dtype)
    logits = layer.router_logits(hidden)
    assert logits.shape == (4, 2, 3, 6)
    assert_same_bits(logits.reshape(24, 6), layer.router_logits(hidden.reshape(24, 45)))
    assert_same_bits(layer.router_logits(hidden[::2, :, ::-1]), np.ascontiguousarray(logits[::2, :, ::-1]))
    assert_same_bits(layer.router_logits(hidden[1, 0, 2]), logits[1, 0, 2])
    same = np.broadcast_to(hidden[0, 0, 0], (19, 45))
    assert_same_bits(layer.router_logits(same), np.repeat(logits[0, 0, :1], 19, axis=0))


@pytest.mark.parametrize("leading", [(0,), (2, 0, 3)])
def test_no_tokens(isa, leading):
    logits = layer_of(np.ones((6, 45), np.float32)).router_logits(np.ones((*leading, 45), np.float32))
    assert (logits.dtype, logits.shape) == (np.float32, (*leading, 6))


@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_dtypes(isa, rng, dtype):
    weight = rng.normal(size=(6, 45)).astype(np.float32).astype(dtype)
    layer = layer_of(weight)
    assert_same_bits(layer.router_weight, weight.astype(np.float32))
    assert not layer.router_weight.flags.writeable
    hidden = rng.normal(size=(3, 45)).astype(np.float32)
    expected = layer.router_logits(hidden)
    assert_same_bits(layer_of(weight.astype(np.float32)).router_logits(hidden), expected)
    assert_same_bits(layer_of(np.asfortranarray(weight)).router_logits(hidden), expected)
    weight[:] = 0  # a copy was packed
    assert_same_bits(layer.router_logits(hidden), expected)


def test_copies_compute_the_same(isa, rng):
    linear = pack_router(rng.normal(size=(6, 45)).astype(np.float32))
    hidden = rng.normal(size=(3, 45)).astype(np.float32)
    for same in (copy.deepcopy(linear), pickle.loads(pickle.dumps(linear))):
        assert_same_bits(same(hidden), linear(hidden))


# --- infinity and NaN -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bfloat16", "float32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("num_tokens", [1, 2, 20, 70])
def test_infinite_hidden_states_reach_their_token_alone(isa, rng, kind, value, num_tokens):
    weight = weight_of(kind, rng.normal(size=(20, 45)))
    weight[3] = 0
    weight[4] = 2.0**-100  # of one bit: the other terms are 0
    linear = pack_router(weight)
    hidden = rng.normal(size=(num_tokens, 45)).astype(np.float32)
    finite = linear(hidden)
    token, column = num_tokens // 2, 44
    hidden[token, column] = value
    logits = linear(hidden)
    assert_same_bits(np.delete(logits, token, axis=0), np.delete(finite, token, axis=0))
    with np.errstate(invalid="ignore"):
        assert_same_bits(logits[token], np.float32(value) * weight[:, column])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_infinite_weights_reach_their_expert_alone(isa, rng, value):
    weight = rng.normal(size=(20, 45)).astype(np.float32)
    hidden = rng.normal(size=(5, 45)).astype(np.float32)
    hidden[2, 7] = 0
    finite = pack_router(weight)(hidden)
    weight[9, 7] = value
    logits = pack_router(weight)(hidden)
    assert_same_bits(np.delete(logits, 9, axis=1), np.delete(finite, 9, axis=1))
    with np.errstate(invalid="ignore"):
        assert_same_bits(logits[:, 9], np.float32(value) * hidden[:, 7])


def test_sums_too_large_are_infinite(isa):
    weight = np.full((2, 64), np.finfo(np.float32).max, np.float32)
    weight[1] *= -1
    logits = pack_router(weight)(np.full((1, 64), 2, np.float32))
    assert_same_bits(logits, np.array([[np.inf, -np.inf]], np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, 3.4e38])
@pytest.mark.parametrize(("leading", "token"), [((), ()), ((5,), (3,)), ((2, 3), (1, 0))])
def test_the_error_names_the_token(rng, value, leading, token):
    layer = layer_of(abs(rng.normal(size=(6, 45))).astype(np.float32))
    hidden = rng.normal(size=(*leading, 45)).astype(np.float32)
    hidden[(*token, 11)] = value
    position = ", ".join(map(str, (*token, 11))) + ("" if token else ",")
    expected = "hidden_states: expected values to route by that are finite in bfloat16"
    message = rf"^{expected}, got .* at position \({position}\) "
    for call in (layer, layer.route):
        with pytest.raises(
            ValueError, match=message + r"\(router_logits: expected finite values or -inf, got "
        ):
            call(hidden)


def test_the_error_of_finite_tokens_is_about_logits(rng):
    weight = np.ones((6, 45), np.float32)
    weight[2, 0] = np.nan
    with pytest.raises(
        ValueError, match=r"^router_logits: expected finite values .* got nan at position \(0, 2\)"
    ):
        layer_of(weight)(np.ones((3, 45), np.float32))


def test_number_of_threads_is_checked():
    layer = layer_of(np.ones((6, 45), np.float32))
    with pytest.raises(ValueError, match="num_threads: expected an integer in"):
        layer(np.ones((3, 45), np.float32), num_threads=0)
