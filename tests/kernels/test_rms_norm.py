"""The factors of RMS norms: the same bits as the definition, whatever the rows around and the threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from problems import assert_same_bits, bfloat16

from mxfp4moe import reference
from mxfp4moe.linear.rms_norm import mean_squares, rms_factors


@pytest.mark.emulation
@pytest.mark.parametrize("dtype", [np.float32, bfloat16])
@pytest.mark.parametrize("size", [1, 7, 8, 9, 64, 101, 2880])
def test_factors_are_those_of_the_definition(rng: np.random.Generator, dtype: Any, size: int) -> None:
    spread = np.exp2(rng.integers(-40, 40, (5, size)))  # so that each order of additions gives another sum
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
