"""A token's bits depend on nothing else in the batch, nor on its place or the number of threads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import ACTIVATIONS, Shape, assert_same_bits, bfloat16, random_problem

SHAPE = Shape(48, 96, 64, 6, 3)
INDEXES = st.lists(st.integers(0, SHAPE.num_tokens - 1), min_size=1, max_size=90)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_any_batch_gives_the_same_bits(isa, rng, activation):
    problem = random_problem(rng, SHAPE, bias="both")
    problem.topk_ids[rng.random(problem.topk_ids.shape) < 0.1] = -1
    experts = problem.pack()
    whole = problem.run(experts, activation=activation, num_threads=1)

    @settings(max_examples=20)
    @given(indexes=INDEXES, num_threads=st.integers(1, 5))
    def check(indexes, num_threads):
        batch = problem.tokens(np.array(indexes))
        assert_same_bits(batch.run(experts, activation=activation, num_threads=num_threads), whole[indexes])

    check()


@pytest.mark.parametrize("dtype", [bfloat16, np.float32])
def test_every_batch_size_and_single_tokens(isa, rng, dtype):
    problem = random_problem(rng, Shape(70, 160, 96, 2, 1), dtype=dtype)
    problem.topk_ids[:] = 1  # one expert gets them all
    experts = problem.pack()
    whole = problem.run(experts)
    for count in (*range(1, 36), 47, 48, 49, 63, 64, 65):
        assert_same_bits(problem.tokens(slice(count)).run(experts), whole[:count])
        assert_same_bits(problem.tokens(slice(count, count + 1)).run(experts), whole[count : count + 1])


@pytest.mark.parametrize("shape", [Shape(260, 2880, 32, 2, 1), Shape(260, 32, 2880, 2, 1)])
def test_long_sums_of_large_groups(native_isa, rng, shape):
    problem = random_problem(rng, shape, dtype=np.float32, bias="both")
    experts = problem.pack()
    whole = problem.run(experts)
    for tokens in (slice(1), slice(100, 104), slice(200, 233), slice(3, 150)):
        assert_same_bits(problem.tokens(tokens).run(experts, num_threads=1), whole[tokens])


@pytest.mark.emulation
@pytest.mark.smoke
def test_large_groups_on_every_table(isa, rng):
    problem = random_problem(rng, Shape(600, 64, 32, 2, 1), dtype=np.float32, bias="both")
    problem.topk_ids[:580] = 0
    experts = problem.pack()
    whole = problem.run(experts)
    for tokens in (slice(1), slice(255, 258), slice(500, 533), slice(579, 600)):
        assert_same_bits(problem.tokens(tokens).run(experts), whole[tokens])


@pytest.mark.emulation
def test_slots_may_come_in_any_order(isa, rng):
    # The sum runs by expert, so distinct experts may stand in any slot.
    problem = random_problem(rng, Shape(20, 64, 32, 6, 4), dtype=np.float32, bias="both")
    order = np.argsort(rng.random((20, 4)), axis=-1)
    shuffled = problem._replace(
        topk_ids=np.take_along_axis(problem.topk_ids, order, -1),
        topk_weights=np.take_along_axis(problem.topk_weights, order, -1),
    )
    assert_same_bits(shuffled.run(), problem.run())


def test_other_experts_do_not_matter(isa, rng):
    # Dropped slots and experts that other tokens use leave a token's bits alone.
    problem = random_problem(rng, Shape(30, 64, 32, 6, 2), dtype=np.float32)
    experts = problem.pack()
    whole = problem.run(experts)
    changed = problem._replace(topk_ids=problem.topk_ids.copy())
    changed.topk_ids[5:] = (changed.topk_ids[5:] + 1) % 6
    changed.topk_ids[20:] = -1
    assert_same_bits(changed.run(experts)[:5], whole[:5])


@pytest.mark.parametrize("layout", ["concatenated", "interleaved"])
def test_a_call_repeats_its_bits(isa, rng, layout):
    problem = random_problem(rng, SHAPE, layout=layout, bias="both")
    experts = problem.pack()
    first = problem.run(experts)
    for _ in range(5):
        assert_same_bits(problem.run(experts), first)
    assert_same_bits(problem.run(), first)
