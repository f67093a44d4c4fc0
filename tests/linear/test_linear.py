"""A packed matrix by hidden states, in every format: exact cases, bounds, a token's bits, forms of a call."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import numpy as np
import pytest
from format_problems import FREE_SIZES
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import MATRICES, exact_matrix, magnitude, random_matrix
from problems import assert_same_bits, bfloat16, rel_l2

import mxfp4moe as mx
from mxfp4moe import reference

UNIT = 2.0**-24
DTYPES = (np.dtype(np.float32), bfloat16, np.dtype(np.float16))


def sparse_tokens(rng: np.random.Generator, num_tokens: int, k: int) -> np.ndarray:
    """Hidden states of at most four columns that are 1, -1 or 2: the sums of exact matrices are exact."""
    hidden = np.zeros((num_tokens, k), np.float32)
    for token in hidden:
        token[rng.choice(k, min(4, k), replace=False)] = rng.choice([-1, 1, 2], min(4, k))
    return hidden


# --- results ------------------------------------------------------------------------------------------------


@pytest.mark.emulation
@pytest.mark.smoke
@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize(("rows", "k"), [(1, 32), (40, 96), (129, 224)])
def test_exact_cases_bit_for_bit(isa: str, rng: np.random.Generator, name: str, rows: int, k: int) -> None:
    arguments = exact_matrix(rng, name, rows, k)
    hidden = sparse_tokens(rng, 40, k)
    linear = mx.pack_linear(**arguments)
    for dtype in DTYPES:
        expected = reference.linear(hidden, **arguments, dtype=dtype)
        for part in (slice(0, 1), slice(1, 3), slice(3, 8), slice(8, 40)):
            assert_same_bits(linear(hidden[part], dtype=dtype), expected[part])


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("k", [32, 288, 2080])
def test_errors_are_those_of_float32_sums(isa: str, rng: np.random.Generator, name: str, k: int) -> None:
    arguments = random_matrix(rng, name, 50, k)
    hidden = rng.standard_normal((21, k), np.float32)
    exact = reference.linear_float64(hidden, **arguments)
    # Products are exact. Each of k terms goes through at most k additions; where there are scales of ranges
    # of K, a sum is multiplied and added once more; then come two additions of sums of terms, a tensor scale
    # and the bias. The terms of a float32 weight have its sign.
    roundings = (k + k // 32 + 6) * UNIT
    bound = roundings / (1 - roundings) * magnitude(hidden, arguments)
    linear = mx.pack_linear(**arguments)
    result = linear(hidden)
    assert (abs(result - exact) <= bound).all()
    for dtype in DTYPES[1:]:
        assert_same_bits(linear(hidden, dtype=dtype), result.astype(dtype))  # rounded once
    assert rel_l2(reference.linear(hidden, **arguments), exact) < 4 * UNIT


@pytest.mark.parametrize("name", [*FREE_SIZES, "float32"])
@pytest.mark.parametrize(("rows", "k"), [(1, 1), (7, 33), (47, 5), (33, 131)])
def test_sizes_are_free(isa: str, rng: np.random.Generator, name: str, rows: int, k: int) -> None:
    arguments = random_matrix(rng, name, rows, k)
    hidden = rng.standard_normal((5, k), np.float32)
    roundings = (k + k // 32 + 6) * UNIT
    bound = roundings / (1 - roundings) * magnitude(hidden, arguments)
    result = mx.pack_linear(**arguments)(hidden)
    assert (abs(result - reference.linear_float64(hidden, **arguments)) <= bound).all()


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8-e4m3", "mxfp8-e5m2", "bf16"])
def test_tensor_scale_multiplies_the_sums(isa: str, rng: np.random.Generator, name: str) -> None:
    arguments = exact_matrix(rng, name, 40, 96)
    hidden = sparse_tokens(rng, 9, 96)
    bias = arguments["bias"]
    plain = mx.pack_linear(**(arguments | {"bias": None}))(hidden)
    arguments["tensor_scale"] = np.float32(-0.25)
    scaled = mx.pack_linear(**arguments)
    assert_same_bits(scaled(hidden), plain * np.float32(-0.25) + bias)
    assert_same_bits(scaled(hidden), reference.linear(hidden, **arguments))


def test_infinite_results_and_nan(isa: str, rng: np.random.Generator) -> None:
    weight = np.eye(20, 45, dtype=np.float32)
    hidden = rng.standard_normal((6, 45), np.float32)
    linear = mx.pack_linear(weight)
    finite = linear(hidden)
    hidden[2, 7], hidden[4, 3] = np.nan, np.inf
    result = linear(hidden)
    assert_same_bits(np.delete(result, [2, 4], axis=0), np.delete(finite, [2, 4], axis=0))
    with np.errstate(invalid="ignore"):  # 0 times infinity
        assert_same_bits(result[[2, 4]], hidden[[2, 4]] @ weight.T)
    large = mx.pack_linear(np.full((1, 64), 3e38, np.float32))(np.full((1, 64), 2, np.float32))
    assert large == np.inf


# --- a token's bits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MATRICES)
def test_any_batch_gives_the_same_bits(isa: str, rng: np.random.Generator, name: str) -> None:
    linear = mx.pack_linear(**random_matrix(rng, name, 75, 160))
    hidden = rng.standard_normal((48, 160), np.float32)
    whole = linear(hidden, num_threads=1)

    @settings(max_examples=10)
    @given(indexes=st.lists(st.integers(0, 47), min_size=1, max_size=90), num_threads=st.integers(1, 5))
    def check(indexes: list[int], num_threads: int) -> None:
        assert_same_bits(linear(hidden[indexes], num_threads=num_threads), whole[indexes])

    check()


@pytest.mark.parametrize("name", ["bf16", "mxfp8-e4m3", "fp8_block-24x64"])
def test_matrices_of_many_parts(native_isa: str, rng: np.random.Generator, name: str) -> None:
    """Several parts for each thread, several groups of tokens, several steps of a part."""
    linear = mx.pack_linear(**random_matrix(rng, name, 8200, 352))
    hidden = rng.standard_normal((300, 352), np.float32)
    whole = linear(hidden, num_threads=1)
    for num_threads in (1, 2, 3, 7):
        for part in (slice(1), slice(3, 7), slice(100, 170), slice(300)):
            assert_same_bits(linear(hidden[part], num_threads=num_threads), whole[part])
    wide = np.full((300, 8300), 7, bfloat16)
    assert linear(hidden, out=wide[:, 50:8250]).base is wide
    assert_same_bits(wide[:, 50:8250], whole.astype(bfloat16))
    assert (wide[:, :50] == 7).all()
    assert (wide[:, 8250:] == 7).all()


def test_calls_from_several_threads(isa: str, rng: np.random.Generator) -> None:
    linear = mx.pack_linear(**random_matrix(rng, "mxfp8-e4m3", 700, 320))
    batches = [rng.standard_normal((count, 320), np.float32) for count in (1, 3, 40)] * 3
    expected = [linear(batch) for batch in batches]
    contexts = [copy_context() for _ in batches]  # each knows the kernel table
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(c.run, linear, batch) for c, batch in zip(contexts, batches, strict=True)]
    for call, wanted in zip(calls, expected, strict=True):
        assert_same_bits(call.result(), wanted)


# --- forms of a call ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("leading", [(), (1,), (4, 2, 3), (0,), (2, 0)])
def test_leading_axes(isa: str, rng: np.random.Generator, dtype: Any, leading: tuple[int, ...]) -> None:
    linear = mx.pack_linear(rng.standard_normal((6, 45), np.float32), bias=np.ones(6, bfloat16))
    hidden = rng.standard_normal((*leading, 45), np.float32).astype(dtype)
    result = linear(hidden)
    assert (result.dtype, result.shape) == (np.float32, (*leading, 6))
    assert_same_bits(result.reshape(-1, 6), linear(hidden.reshape(-1, 45)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_out(isa: str, rng: np.random.Generator, dtype: Any) -> None:
    linear = mx.pack_linear(rng.standard_normal((45, 45), np.float32))
    hidden = rng.standard_normal((2, 40, 45), np.float32).astype(dtype)
    expected = linear(hidden, dtype=dtype)
    out = np.empty(hidden.shape, dtype)
    assert linear(hidden, out=out) is out
    assert linear(hidden, out=out, dtype=dtype, num_threads=3) is out
    assert_same_bits(out, expected)
    swapped = np.empty((40, 2, 45), dtype).swapaxes(0, 1)  # whose rows no view has as two axes
    assert linear(hidden, out=swapped) is swapped
    assert_same_bits(swapped, expected)
    assert linear(hidden, out=hidden) is hidden  # itself
    assert_same_bits(hidden, expected)


def test_out_may_lie_between_the_rows_of_hidden_states(isa: str, rng: np.random.Generator) -> None:
    linear = mx.pack_linear(rng.standard_normal((20, 32), np.float32))
    memory = rng.standard_normal((30, 52), np.float32)
    expected = linear(memory[:, :32].copy())
    linear(memory[:, :32], out=memory[:, 32:])
    assert_same_bits(memory[:, 32:].copy(), expected)


@pytest.mark.parametrize("step", [-1, 2])
def test_strides(isa: str, rng: np.random.Generator, step: int) -> None:
    linear = mx.pack_linear(rng.standard_normal((20, 32), np.float32))
    hidden = rng.standard_normal((30, 64), np.float32)
    expected = linear(np.ascontiguousarray(hidden[::step, ::2]))
    assert_same_bits(linear(hidden[::step, ::2]), expected)
    assert_same_bits(linear(np.ascontiguousarray(hidden[:, ::2])[::step]), expected)


LINEAR = mx.pack_linear(np.ones((6, 32), np.float32))
HIDDEN = np.ones((3, 32), np.float32)
READ_ONLY = np.ones((3, 6), np.float32)
READ_ONLY.flags.writeable = False
WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "hidden float64": ({"hidden_states": np.ones((3, 32))}, TypeError, "hidden_states: .*, got .*float64"),
    "hidden shape": ({"hidden_states": np.ones((3, 31), np.float32)}, ValueError, r"shape \(..., 32\), got"),
    "hidden scalar": ({"hidden_states": np.float32(1)}, ValueError, r"hidden_states: expected shape"),
    "dtype float64": ({"dtype": np.float64}, TypeError, "dtype: expected bfloat16, .*, got float64"),
    "dtype none": ({"dtype": "x"}, TypeError, "dtype: expected bfloat16, float16 or float32, got 'x'"),
    "dtype of out": (
        {"dtype": np.float16, "out": np.ones((3, 6), np.float32)},
        ValueError,
        "dtype: expected None or float32, that of out, got float16",
    ),
    "out shape": ({"out": np.ones((3, 32), np.float32)}, ValueError, r"out: expected shape \(3, 6\), got"),
    "out float64": ({"out": np.ones((3, 6))}, TypeError, "out: expected an array of float32, .*, got"),
    "out list": ({"out": [[0.0] * 6] * 3}, TypeError, "out: expected an ndarray or .*, got .* list"),
    "out read-only": ({"out": READ_ONLY}, ValueError, "out: expected a writeable array, got"),
    "out overlaps": ({"out": HIDDEN[:, :6]}, ValueError, "out: expected memory apart from hidden_states"),
    "out strides": ({"out": np.ones((3, 12), np.float32)[:, ::2]}, ValueError, "out: expected a contiguous"),
    "threads": ({"num_threads": 0}, ValueError, "num_threads: expected an integer in"),
    "threads float": ({"num_threads": 1.5}, TypeError, "num_threads: expected an integer, got"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls(case: str) -> None:
    change, error, match = WRONG[case]
    arguments = {"hidden_states": HIDDEN} | change
    with pytest.raises(error, match=match):
        LINEAR(arguments.pop("hidden_states"), **arguments)
