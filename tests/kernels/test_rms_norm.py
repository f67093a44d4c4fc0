"""RMS norms: the same bits as the definition, whatever the rows around and the threads."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from problems import assert_same_bits, bfloat16

import mxfp4moe as mx
from mxfp4moe import reference
from mxfp4moe.linear.rms_norm import mean_squares, rms_factors

DTYPES = [np.float32, bfloat16, np.float16]


@pytest.mark.emulation
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 7, 8, 9, 64, 101, 2880])
def test_factors_are_those_of_the_definition(rng: np.random.Generator, dtype: Any, size: int) -> None:
    width = 12 if dtype == np.float16 else 40
    spread = np.exp2(rng.integers(-width, width, (5, size)))  # each order of additions gives another sum
    rows = (rng.standard_normal((5, size)) * spread).astype(np.float32).astype(dtype)
    got = rms_factors(rows, 1e-6)
    assert_same_bits(got, reference.rms_factors(rows, 1e-6).astype(np.float32))
    assert got.shape == (5, 1)
    for row in range(5):
        assert_same_bits(rms_factors(rows[row], 1e-6), got[row])


def test_any_number_of_threads_and_any_strides(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((300, 2, 777), np.float32)
    whole = mean_squares(rows, 1)
    assert whole.shape == (300, 2)
    for threads in (2, 3, 5):
        assert_same_bits(mean_squares(rows, threads), whole)
    assert_same_bits(mean_squares(rows[::2, 1]), whole[::2, 1])
    assert mean_squares(rows[:0]).shape == (0, 2)


def test_large_small_and_nonfinite_numbers() -> None:
    rows = np.array([[3e38, -3e38], [1e-40, 0], [np.inf, 1], [np.nan, 1], [0, 0]], np.float32)
    expected = (rows.astype(np.float64) ** 2).sum(axis=-1) / 2
    assert_same_bits(mean_squares(rows), expected)
    factors = rms_factors(rows, 2.0**-100)[:, 0]
    assert factors[1] == factors[4] == 2.0**50
    assert factors[2] == 0
    assert np.isnan(factors[3])


@pytest.mark.emulation
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_dtype", [None, *DTYPES])
def test_norms_are_those_of_the_definition(rng: np.random.Generator, dtype: Any, out_dtype: Any) -> None:
    for size in (1, 7, 8, 64, 101, 2880):
        rows = (rng.standard_normal((5, 3, size)) * np.exp2(rng.integers(-9, 9, (5, 3, size)))).astype(dtype)
        rows[2] = 0
        rows[3, 1, 0] = np.nan
        rows[4, 2, -1] = np.inf
        for weight in (
            None,
            rng.standard_normal(size, np.float32),
            rng.standard_normal(size).astype(bfloat16),
        ):
            got = mx.rms_norm(rows, weight, eps=1e-5, dtype=out_dtype)
            expected = reference.rms_norm(rows, weight, eps=1e-5, dtype=out_dtype or np.float32)
            assert_same_bits(got, expected)
            assert_same_bits(mx.rms_norm(rows[1, 2], weight, eps=1e-5, dtype=out_dtype), got[1, 2])


def test_norms_of_any_strides_and_threads(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((60, 4, 1000), np.float32)
    weight = rng.standard_normal(1000, np.float32)
    whole = mx.rms_norm(rows, weight, eps=1e-6, num_threads=1)
    for threads in (2, 3, 7):
        assert_same_bits(mx.rms_norm(rows, weight, eps=1e-6, num_threads=threads), whole)
    assert_same_bits(mx.rms_norm(np.asfortranarray(rows), weight, eps=1e-6), whole)
    assert_same_bits(mx.rms_norm(rows[::3, 1:3], weight, eps=1e-6), whole[::3, 1:3])
    assert mx.rms_norm(rows[:0], weight, eps=1e-6).shape == (0, 4, 1000)
    assert mx.rms_norm(rows[..., :0], eps=1e-6).shape == (60, 4, 0)


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"hidden_states": np.zeros((2, 3))}, TypeError, "hidden_states: expected an array of"),
    ({"hidden_states": np.float32(1)}, ValueError, "hidden_states: expected at least one axis, got shape ()"),
    ({"weight": np.ones(4, np.float32)}, ValueError, "weight: expected shape (3,), got shape (4,)"),
    ({"weight": np.ones(3, np.int64)}, TypeError, "weight: expected an array of"),
    ({"eps": -1e-9}, ValueError, "eps: expected a finite float32 number of at least 0, got -1e-09"),
    ({"eps": np.nan}, ValueError, "eps: expected a finite float32 number of at least 0, got nan"),
    ({"eps": None}, TypeError, "eps: expected a real number, got None"),
    ({"dtype": np.float64}, TypeError, "dtype: expected bfloat16, float16 or float32, got float64"),
    ({"num_threads": 0}, ValueError, "num_threads: expected an integer in"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG)
def test_wrong_calls(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    right = {"hidden_states": np.zeros((2, 3), np.float32), "eps": 1e-6}
    with pytest.raises(error, match=re.escape(message)):
        mx.rms_norm(**right | arguments)
