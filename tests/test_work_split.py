"""How a call is cut into work: every panel once, evenly over many threads, the same bits however it is."""

import heapq
from typing import NamedTuple

import numpy as np
import pytest
from problems import Shape, assert_same_bits, random_ids, random_problem

from mxfp4moe import _core, config
from mxfp4moe.formats import FORMATS

MODELS = {"G": (2880, 2880, 32, 4), "Q": (2048, 768, 128, 8)}
(WEIGHT_FORMAT,) = set(FORMATS["mxfp4"].weight_dtypes.values())
BATCHES = (1, 4, 16, 64, 256, 1024)


class Plan(NamedTuple):
    """The items of both GEMMs are rows of (expert or -1 for all, first pair, end)."""

    num_threads: int
    gate_up: np.ndarray
    down: np.ndarray
    tokens_of_expert: np.ndarray  # in the first chunk


def plan_of(shape: Shape, ids: np.ndarray, num_threads: int) -> Plan:
    # Memory that nothing is written to.
    sizes = shape.num_experts, shape.hidden_size, shape.intermediate_size
    storage = _core.ExpertStorage(WEIGHT_FORMAT, sizes, (False, False), False, (0, 0))
    chunk, threads, gate_up, down = _core.plan_call(storage, config.active_kernels(), ids, num_threads)
    counts = np.bincount(ids[:chunk][ids[:chunk] >= 0], minlength=shape.num_experts)
    return Plan(threads, np.array(gate_up), np.array(down), counts)


def makespan(costs: np.ndarray, num_threads: int) -> float:
    """When the last of the threads ends that take items in their order."""
    ends = [0.0] * num_threads
    for cost in costs:
        heapq.heappush(ends, heapq.heappop(ends) + cost)
    return max(ends)


def imbalance(plan: Plan, cost_of_expert: np.ndarray) -> float:
    """What waiting adds to the time of both GEMMs, if a pair of GEMM 1 takes as long as a pair of GEMM 2."""
    whole = np.append(cost_of_expert, cost_of_expert.sum())  # expert -1: all of them
    costs = [whole[items[:, 0]] * (items[:, 2] - items[:, 1]) for items in (plan.gate_up, plan.down)]
    spans = sum(makespan(cost, plan.num_threads) for cost in costs)
    return float(spans / (sum(cost.sum() for cost in costs) / plan.num_threads) - 1)


@pytest.mark.parametrize("num_threads", [2, 8, 32, 64, 128])
@pytest.mark.parametrize("model", MODELS)
def test_threads_wait_for_less_than_a_tenth(isa, rng, model, num_threads):
    for num_tokens in BATCHES:
        shape = Shape(num_tokens, *MODELS[model])
        plan = plan_of(shape, random_ids(rng, shape), num_threads)
        assert plan.num_threads == num_threads
        used = plan.tokens_of_expert > 0
        # Bound by the memory, by arithmetic, and where both take as long at 4.25 tokens.
        for cost in (used, plan.tokens_of_expert, used + plan.tokens_of_expert / 4.25):
            assert imbalance(plan, cost.astype(float)) <= 0.1, num_tokens


@pytest.mark.parametrize("hot", [False, True])
@pytest.mark.parametrize("num_threads", [1, 2, 3, 7, 48, 128, 512])
@pytest.mark.parametrize(
    "shape", [Shape(9, 2880, 2880, 32, 4), Shape(300, 80, 640, 9, 2), Shape(3, 32, 32, 2, 1)]
)
def test_items_are_every_panel_once(isa, rng, shape, num_threads, hot):
    ids = random_ids(rng, shape)
    if hot:
        ids[:, 0] = 1
    plan = plan_of(shape, ids, num_threads)
    assert 1 <= plan.num_threads <= num_threads
    used = set(np.flatnonzero(plan.tokens_of_expert))
    gate_up_pairs = -(-shape.intermediate_size // 32) * 2
    down_pairs = -(-shape.hidden_size // 32)
    for items, pairs in ((plan.gate_up, gate_up_pairs), (plan.down, down_pairs)):
        experts = {-1} if items[0, 0] == -1 else used
        assert set(items[:, 0]) == experts
        for expert in experts:
            of_expert = items[items[:, 0] == expert]
            np.testing.assert_array_equal(of_expert[:, 1], np.append(0, of_expert[:-1, 2]))
            assert of_expert[-1, 2] == pairs
            assert (of_expert[:, 1] < of_expert[:, 2]).all()


@pytest.mark.emulation
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_split_experts_give_the_same_bits(isa, rng, dtype):
    # 5 pairs of output panels: two threads split experts, one thread or five do not.
    shape = Shape(70, 160, 512, 12, 3)
    problem = random_problem(rng, shape, dtype=dtype, bias="both")
    problem.topk_ids[rng.random(problem.topk_ids.shape) < 0.1] = -1
    experts = problem.pack()
    assert plan_of(shape, problem.topk_ids, 2).down[0, 0] >= 0
    assert plan_of(shape, problem.topk_ids, 5).down[0, 0] == -1
    whole = problem.run(experts, num_threads=1)
    for num_threads in (2, 3, 5, 16):
        for tokens in (slice(0, 70), slice(3, 4), slice(20, 57)):
            batch = problem.tokens(tokens)
            assert_same_bits(batch.run(experts, num_threads=num_threads), whole[tokens])
    in_place = problem.hidden_states.copy()
    problem._replace(hidden_states=in_place).run(experts, num_threads=2, out=in_place)
    assert_same_bits(in_place, whole)
