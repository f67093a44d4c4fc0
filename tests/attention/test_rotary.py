"""`RotaryEmbedding`: sines and cosines to the last bits, turns to the bit, and calls that are wrong."""

from __future__ import annotations

import copy
import math
import pickle
import re
from decimal import Decimal, localcontext
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from problems import assert_same_bits

import mxfp4moe as mx
from mxfp4moe import reference

GPT_OSS = mx.YarnScaling(32.0, 4096, truncate=False)
YARNS = [None, GPT_OSS, mx.YarnScaling(4, 32768), mx.YarnScaling(8, 16, 4, 2, attention_factor=1.5)]


def turns(rotary: mx.RotaryEmbedding, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cosines and sines of each position and pair: what the first unit vector of each pair becomes."""
    pairs = rotary.rotary_dim // 2
    x = np.zeros((len(positions), pairs, rotary.head_dim), np.float32)
    at = np.arange(pairs)
    first, second = (2 * at, 2 * at + 1) if rotary.interleaved else (at, at + pairs)
    x[:, at, first] = 1
    turned = rotary(x, positions)
    return turned[:, at, first], turned[:, at, second]


@pytest.mark.emulation
@pytest.mark.parametrize("base", [1.5, 10000.0, 150000.0, 1e7])
@pytest.mark.parametrize("yarn", YARNS)
def test_frequencies(base: float, yarn: mx.YarnScaling | None) -> None:
    """The definition computes them in float64: some steps, each with a relative error of an ulp or two."""
    for dim in (2, 16, 64, 128):
        rotary = mx.RotaryEmbedding(dim, base=base, yarn=yarn)
        frequencies, factor = reference.rotary_frequencies(base, dim, yarn)
        np.testing.assert_allclose(rotary.frequencies, frequencies, rtol=2**-44)  # the ramp may end near 0
        assert math.isclose(rotary.attention_factor, factor, rel_tol=2**-50)
        assert rotary.frequencies[0] == 1 or yarn is not None
        assert not rotary.frequencies.flags.writeable


def test_frequencies_are_rounded_once() -> None:
    for base, dim in ((10000.0, 64), (150000.0, 128), (1e6, 96)):
        with localcontext() as context:
            context.prec = 60
            exact = [float(Decimal(base) ** (Decimal(-2 * i) / dim)) for i in range(dim // 2)]
        assert_same_bits(mx.RotaryEmbedding(dim, base=base).frequencies, np.array(exact))


@pytest.mark.emulation
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("yarn", [None, GPT_OSS])
def test_sines_and_cosines(rng: np.random.Generator, interleaved: bool, yarn: mx.YarnScaling | None) -> None:
    """Half an ulp of float32, from the rounding, and 2**-50 for what float64 arithmetic has lost before."""
    rotary = mx.RotaryEmbedding(64, base=150000.0, interleaved=interleaved, yarn=yarn)
    edges = [0, 1, 2, 3, 4095, 131071, 2**24 - 1]
    positions = np.concatenate([edges, rng.integers(0, 2**24, 500), np.arange(400)])
    angles = positions[:, None] * rotary.frequencies
    for got, function in zip(turns(rotary, positions), (np.cos, np.sin), strict=True):
        exact = function(angles) * rotary.attention_factor
        assert (abs(got - exact) <= np.spacing(abs(got)) / 2 + 2.0**-50).all()
    assert_same_bits(turns(rotary, np.array([0]))[0], np.full((1, 32), rotary.attention_factor, np.float32))


@pytest.mark.emulation
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, None), (2, None), (80, 32), (7, 4)])
def test_turns_are_those_of_the_definition(
    rng: np.random.Generator, interleaved: bool, head_dim: int, rotary_dim: int | None
) -> None:
    """With the same sines and cosines, each product and each sum is rounded once."""
    options: dict[str, Any] = {"base": 500.0, "rotary_dim": rotary_dim, "interleaved": interleaved}
    rotary = mx.RotaryEmbedding(head_dim, **options)
    positions = rng.integers(0, 5000, 40)
    x = rng.standard_normal((40, 3, head_dim), np.float32)
    cos, sin = (each[:, None] for each in turns(rotary, positions))
    pairs = rotary.rotary_dim // 2
    first = slice(0, 2 * pairs, 2) if interleaved else slice(0, pairs)
    second = slice(1, 2 * pairs, 2) if interleaved else slice(pairs, 2 * pairs)
    expected = x.copy()
    expected[..., first] = x[..., first] * cos - x[..., second] * sin
    expected[..., second] = x[..., second] * cos + x[..., first] * sin
    got = rotary(x, positions)
    assert_same_bits(got, expected)
    near = reference.rotary_embedding(x, positions, rotary.frequencies, interleaved=interleaved)
    # A sine or cosine may be rounded to the other neighbour, 2**-24 away; what follows has three roundings.
    bound = 5 * 2.0**-24 * (abs(x).max(axis=-1, keepdims=True) * 2)
    assert (abs(got - near) <= bound).all()


def test_any_cut_any_threads_any_axes(rng: np.random.Generator) -> None:
    rotary = mx.RotaryEmbedding(64, base=10000.0, yarn=GPT_OSS)
    x = rng.standard_normal((2, 300, 5, 64), np.float32)
    positions = np.stack([np.arange(300), rng.integers(0, 9000, 300)])
    whole = rotary(x, positions, num_threads=1)
    for threads in (2, 5):
        assert_same_bits(rotary(x, positions, num_threads=threads), whole)
    for t in (0, 17, 299):
        assert_same_bits(rotary(x[1, t : t + 1], positions[1, t : t + 1]), whole[1, t : t + 1])
    assert_same_bits(rotary(x, positions[0]), np.stack([whole[0], rotary(x[1], positions[0])]))
    assert_same_bits(rotary(np.asfortranarray(x), positions.astype(np.uint16)), whole)
    assert_same_bits(rotary(x[:, :, :1], 7), rotary(x[:, :, :1], np.full(300, 7)))
    narrow = x.astype(ml_dtypes.bfloat16)
    assert_same_bits(rotary(narrow, positions), rotary(narrow.astype(np.float32), positions))
    assert rotary(x[:, :0], positions[:, :0]).shape == (2, 0, 5, 64)


def test_copies_and_repr() -> None:
    rotary = mx.RotaryEmbedding(8, base=100, rotary_dim=4, interleaved=True, yarn=GPT_OSS, max_position=99)
    x = np.arange(16, dtype=np.float32).reshape(1, 2, 8)
    for other in (copy.deepcopy(rotary), pickle.loads(pickle.dumps(rotary))):
        assert_same_bits(other(x, 5), rotary(x, 5))
    assert repr(rotary).startswith("RotaryEmbedding(8, base=100.0, rotary_dim=4, interleaved=True, yarn=Yarn")
    assert mx.YarnScaling(32, 4096, truncate=False) == GPT_OSS


WRONG_EMBEDDINGS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"head_dim": 0}, ValueError, "head_dim: expected an integer in [1, 4096], got 0"),
    ({"head_dim": 1}, ValueError, "rotary_dim: expected an integer in [2, 1], got 1"),
    ({"rotary_dim": 3}, ValueError, "rotary_dim: expected an even number, got 3"),
    ({"rotary_dim": 66}, ValueError, "rotary_dim: expected an integer in [2, 64], got 66"),
    ({"base": 1.0}, ValueError, "base: expected a number above 1"),
    ({"base": np.nan}, ValueError, "base: expected a number above 1"),
    ({"base": "10000"}, TypeError, "base: expected a real number"),
    ({"interleaved": 1}, TypeError, "interleaved: expected a bool, got 1"),
    ({"yarn": {"factor": 2}}, TypeError, "yarn: expected a YarnScaling or None"),
    ({"max_position": 0}, ValueError, "max_position: expected an integer in [1, 16777216], got 0"),
    ({"max_position": 2**25}, ValueError, "max_position: expected an integer in [1, 16777216]"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG_EMBEDDINGS)
def test_wrong_embeddings(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        mx.RotaryEmbedding(**{"head_dim": 64, "base": 10000.0} | arguments)


WRONG_YARNS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"factor": 0.5}, ValueError, "factor: expected a number in [1, 1e+30], got 0.5"),
    ({"factor": np.inf}, ValueError, "factor: expected a number in"),
    ({"factor": None}, TypeError, "factor: expected a real number"),
    (
        {"original_max_position_embeddings": 0},
        ValueError,
        "original_max_position_embeddings: expected an integer",
    ),
    ({"beta_fast": 0.5}, ValueError, "beta_fast: expected at least beta_slow, 1.0, got 0.5"),
    ({"beta_slow": 0}, ValueError, "beta_slow: expected a number in"),
    ({"truncate": None}, TypeError, "truncate: expected a bool, got None"),
    ({"attention_factor": -1}, ValueError, "attention_factor: expected a number in [0, 1e+30], got -1.0"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG_YARNS)
def test_wrong_yarns(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        mx.YarnScaling(**{"factor": 2.0, "original_max_position_embeddings": 4096} | arguments)


HEADS = np.zeros((2, 1, 64), np.float32)
WRONG_CALLS: list[tuple[Any, Any, type[Exception], str]] = [
    (HEADS[:, 0], 0, ValueError, "x: expected shape (..., T, heads, 64), got shape (2, 64)"),
    (HEADS[..., 1:], 0, ValueError, "x: expected shape (..., T, heads, 64), got shape (2, 1, 63)"),
    (HEADS.astype(np.float64), 0, TypeError, "x: expected an array of"),
    (HEADS, [0, 1, 2], ValueError, "positions: expected a shape that broadcasts to (2,), got shape (3,)"),
    (HEADS, [0, -1], ValueError, "positions: expected values in [0, 99], got -1"),
    (HEADS, [100, 0], ValueError, "positions: expected values in [0, 99], got 100"),
    (HEADS, [0.0, 1.0], TypeError, "positions: expected an array of integers"),
    (HEADS, np.array([2**64 - 1], np.uint64), ValueError, "positions: expected values in [0, 99], got 92233"),
]


@pytest.mark.parametrize(("x", "positions", "error", "message"), WRONG_CALLS)
def test_wrong_calls(x: Any, positions: Any, error: type[Exception], message: str) -> None:
    rotary = mx.RotaryEmbedding(64, base=10000.0, max_position=100)
    with pytest.raises(error, match=re.escape(message)):
        rotary(x, positions)
