"""Shapes, strides, byte orders, out= and threads: all give the bits of the plain call."""

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import numpy as np
import pytest
from problems import Problem, Shape, assert_same_bits, bfloat16, random_problem

import mxfp4moe as mx

DTYPES = (bfloat16, np.float16, np.float32)
SHAPE = Shape(12, 64, 32, 4, 2)


@pytest.fixture(params=DTYPES, ids=["bfloat16", "float16", "float32"])
def problem(request, rng) -> Problem:
    return random_problem(rng, SHAPE, dtype=request.param, bias="both")


def call(problem: Problem, hidden_states: np.ndarray, **options) -> np.ndarray:
    return problem._replace(hidden_states=hidden_states).run(**options)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_no_tokens(isa, problem, shape):
    empty = problem.tokens(slice(0))
    empty = Problem(
        empty.hidden_states.reshape(*shape, 64),
        empty.arrays,
        empty.topk_weights.reshape(*shape, 2),
        empty.topk_ids.reshape(*shape, 2),
    )
    result = empty.run()
    assert result.shape == (*shape, 64)
    assert result.dtype == problem.hidden_states.dtype
    out = np.empty((*shape, 64), dtype=np.float32)
    assert empty.run(out=out) is out


@pytest.mark.parametrize("lead", [(3, 4), (2, 3, 2), (12, 1)])
def test_any_leading_shape(isa, problem, lead):
    given = Problem(
        problem.hidden_states.reshape(*lead, 64),
        problem.arrays,
        problem.topk_weights.reshape(*lead, 2),
        problem.topk_ids.reshape(*lead, 2),
    )
    expected = problem.run().reshape(*lead, 64)
    assert_same_bits(given.run(), expected)
    out = np.zeros((*lead, 64), dtype=problem.hidden_states.dtype)
    given.run(out=out)
    assert_same_bits(out, expected)


def test_one_token_without_a_leading_axis(isa, problem):
    token = problem.tokens(3)
    assert token.hidden_states.shape == (64,)
    assert_same_bits(token.run(), problem.run()[3])


def test_row_strides_of_hidden_states(isa, problem):
    expected = problem.run()
    wide = np.zeros((24, 80), dtype=problem.hidden_states.dtype)
    wide[::2, 8:72] = problem.hidden_states
    assert_same_bits(call(problem, wide[::2, 8:72]), expected)
    assert_same_bits(call(problem, problem.hidden_states[::-1].copy()[::-1]), expected)
    assert_same_bits(call(problem, np.asfortranarray(problem.hidden_states)), expected)
    assert_same_bits(call(problem, problem.hidden_states[:, ::-1].copy()[:, ::-1]), expected)


def test_zero_row_stride_of_hidden_states(isa, problem):
    repeated = np.broadcast_to(problem.hidden_states[:1], (12, 64))
    assert_same_bits(call(problem, repeated), call(problem, repeated.copy()))


def test_leading_axes_that_do_not_merge(isa, problem):
    lead = (3, 4)
    hidden = np.zeros((4, 3, 64), dtype=problem.hidden_states.dtype).transpose(1, 0, 2)
    hidden[...] = problem.hidden_states.reshape(*lead, 64)
    out = np.zeros((3, 8, 64), dtype=problem.hidden_states.dtype)[:, ::2]
    given = Problem(
        hidden,
        problem.arrays,
        np.asfortranarray(problem.topk_weights.reshape(*lead, 2)),
        np.asfortranarray(problem.topk_ids.reshape(*lead, 2)),
    )
    given.run(out=out)
    assert_same_bits(np.ascontiguousarray(out), problem.run().reshape(*lead, 64))


def test_strides_of_weights_and_ids(isa, problem):
    expected = problem.run()
    weights = np.repeat(problem.topk_weights, 2, axis=1)[:, ::2]
    ids = problem.topk_ids[::-1, ::-1].copy()[::-1, ::-1]
    assert_same_bits(problem._replace(topk_weights=weights, topk_ids=ids).run(), expected)


def test_big_endian_arguments_are_computed(isa, problem):
    given = problem._replace(
        topk_weights=problem.topk_weights.astype(">f4"), topk_ids=problem.topk_ids.astype(">i4")
    )
    if problem.hidden_states.dtype != bfloat16:
        given = given._replace(
            hidden_states=problem.hidden_states.astype(problem.hidden_states.dtype.newbyteorder())
        )
    result = given.run(expert_map=np.arange(4).astype(">i8"))
    assert_same_bits(result.astype(problem.hidden_states.dtype), problem.run())


def test_unaligned_arguments_are_computed(isa, problem):
    def unaligned(array: np.ndarray) -> np.ndarray:
        buffer = np.zeros(array.nbytes + 1, dtype=np.uint8)[1:]
        result = buffer.view(array.dtype).reshape(array.shape)
        result[...] = array
        return result

    given = Problem(
        unaligned(problem.hidden_states),
        problem.arrays,
        unaligned(problem.topk_weights),
        unaligned(problem.topk_ids),
    )
    assert_same_bits(given.run(), problem.run())


def test_read_only_arguments_are_not_written(isa, problem):
    given = Problem(
        problem.hidden_states.copy(), problem.arrays, problem.topk_weights.copy(), problem.topk_ids.copy()
    )
    arrays = given.hidden_states, given.topk_weights, given.topk_ids
    for array in arrays:
        array.flags.writeable = False
    assert_same_bits(given.run(), problem.run())
    assert_same_bits(given.hidden_states, problem.hidden_states)
    assert_same_bits(given.topk_weights, problem.topk_weights)


def test_out_may_be_hidden_states(isa, problem):
    expected = problem.run()
    hidden = problem.hidden_states.copy()
    assert call(problem, hidden, out=hidden) is hidden
    assert_same_bits(hidden, expected)
    wide = np.zeros((24, 80), dtype=hidden.dtype)
    view = wide[::2, :64]
    view[...] = problem.hidden_states
    call(problem, view, out=wide[::2, :64])  # another object, the same memory
    assert_same_bits(np.ascontiguousarray(view), expected)
    assert not wide[1::2].any()
    assert not wide[:, 64:].any()


@pytest.mark.parametrize("out_dtype", DTYPES)
def test_out_with_row_strides_touches_nothing_else(isa, problem, out_dtype):
    plain = np.empty((12, 64), dtype=out_dtype)
    problem.run(out=plain)
    guard = np.full((25, 66), 7, dtype=out_dtype)
    view = guard[23:0:-2, 1:65]  # rows backwards, the last axis contiguous
    assert problem.run(out=view) is view
    assert_same_bits(np.ascontiguousarray(view), plain)
    assert (guard[0::2] == 7).all()
    assert (guard[:, [0, 65]] == 7).all()


def test_result_is_a_new_array(isa, problem):
    experts = problem.pack()
    first = problem.run(experts)
    kept = first.copy()
    problem._replace(hidden_states=-problem.hidden_states).run(experts)
    assert_same_bits(first, kept)


def test_several_threads_share_experts(isa, problem):
    experts = problem.pack()
    calls = [problem.tokens(slice(i % 5, i % 5 + 1 + i % 7)) for i in range(40)]
    expected = [c.run(experts) for c in calls]

    def compute(given: Problem) -> np.ndarray:
        return given.run(experts, num_threads=2)

    with ThreadPoolExecutor(4) as pool:
        # The kernel selection is a context variable: carry it into the workers.
        contexts = [copy_context() for _ in calls]
        results = list(pool.map(lambda c, given: c.run(compute, given), contexts, calls))
    for result, reference in zip(results, expected, strict=True):
        assert_same_bits(result, reference)


def test_experts_outlive_their_arrays(isa, problem):
    expected = problem.run()
    arrays = problem.arrays
    copies = [a.copy() for a in arrays[:6]]
    experts = mx.pack_experts(
        *copies[:4],
        format="mxfp4",
        w13_bias=copies[4],
        w2_bias=copies[5],
        gate_up_layout=arrays.gate_up_layout,
    )
    for copy in copies:
        copy[...] = 0
    assert_same_bits(problem.run(experts), expected)
