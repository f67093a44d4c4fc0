"""How a call is cut into work: every panel once, evenly over many threads, the same bits however it is."""

import heapq
from collections import deque
from typing import NamedTuple

import numpy as np
import pytest
from problems import Shape, assert_same_bits, random_ids, random_problem

from mxfp4moe import _core, config
from mxfp4moe.formats import FORMATS

MODELS = {"G": (2880, 2880, 32, 4), "Q": (2048, 768, 128, 8)}
(WEIGHT_FORMAT,) = set(FORMATS["mxfp4"].weight_dtypes.values())
FLOAT32 = _core.DTYPES["float32"]
BATCHES = (1, 4, 16, 64, 256, 1024)


class Plan(NamedTuple):
    """The items of both GEMMs are rows of (NUMA node, expert or -1 for all, first pair, end)."""

    num_threads: int
    gate_up: np.ndarray
    down: np.ndarray
    tokens_of_expert: np.ndarray  # in the first chunk


def plan_of(shape: Shape, ids: np.ndarray, num_threads: int, num_nodes: int = 1) -> Plan:
    # Memory that nothing is written to.
    storage = _core.ExpertStorage(
        w13_format=(WEIGHT_FORMAT, 0, 0, FLOAT32),
        w2_format=(WEIGHT_FORMAT, 0, 0, FLOAT32),
        num_experts=shape.num_experts,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
    )
    chunk, threads, gate_up, down = _core.plan_call(
        storage, config.active_kernels(), ids, num_threads, num_nodes
    )
    counts = np.bincount(ids[:chunk][ids[:chunk] >= 0], minlength=shape.num_experts)
    return Plan(threads, np.array(gate_up), np.array(down), counts)


def makespan(costs: np.ndarray, nodes: np.ndarray, num_threads: int) -> float:
    """When the last thread ends: each takes items of its node in their order, then those of other nodes."""
    num_nodes = nodes[-1] + 1
    queues = [deque(costs[nodes == node]) for node in range(num_nodes)]
    threads = [(0.0, thread) for thread in range(num_threads)]
    end = 0.0
    while threads:
        now, thread = heapq.heappop(threads)
        end = max(end, now)
        queue = next(filter(None, (queues[(thread + i) % num_nodes] for i in range(num_nodes))), None)
        if queue:
            heapq.heappush(threads, (now + queue.popleft(), thread))
    return end


def imbalance(plan: Plan, shape: Shape, cost_of_expert: np.ndarray) -> float:
    """What waiting adds to the time of both GEMMs, if a pair of panels takes as long as it has k."""
    whole = np.append(cost_of_expert, cost_of_expert.sum())  # expert -1: all of them
    span = work = 0.0
    for items, k in ((plan.gate_up, shape.hidden_size), (plan.down, shape.intermediate_size)):
        costs = whole[items[:, 1]] * (items[:, 3] - items[:, 2]) * k
        span += makespan(costs, items[:, 0], plan.num_threads)
        work += costs.sum()
    return span / (work / plan.num_threads) - 1


@pytest.mark.parametrize(
    ("num_threads", "num_nodes"),
    [(2, 1), (8, 1), (32, 1), (64, 1), (128, 1), (32, 2), (64, 2), (128, 2), (128, 4)],
)
@pytest.mark.parametrize("model", MODELS)
def test_threads_wait_for_less_than_a_tenth(isa, rng, model, num_threads, num_nodes):
    for num_tokens in BATCHES:
        shape = Shape(num_tokens, *MODELS[model])
        plan = plan_of(shape, random_ids(rng, shape), num_threads, num_nodes)
        assert plan.num_threads == num_threads
        used = plan.tokens_of_expert > 0
        # These are the costs if memory is the limit, if both are (at 4.25 tokens they take as long), and,
        # below, if arithmetic is.
        costs = [used, used + plan.tokens_of_expert / 4.25]
        if num_tokens >= 64:
            costs.append(plan.tokens_of_expert)
        for cost in costs:
            assert imbalance(plan, shape, cost.astype(float)) <= 0.1, num_tokens


@pytest.mark.parametrize("num_threads", [8, 32, 64, 128])
@pytest.mark.parametrize("model", MODELS)
def test_threads_hardly_wait_for_a_hot_expert(isa, rng, model, num_threads):
    for num_tokens in (64, 256, 1024):
        shape = Shape(num_tokens, *MODELS[model])
        ids = random_ids(rng, shape)
        # A quarter of all slots are the last expert's: what is handed out in order of experts ends with it.
        ids[np.arange(ids.size).reshape(ids.shape) % 4 == 3] = shape.num_experts - 1
        plan = plan_of(shape, ids, num_threads)
        assert imbalance(plan, shape, plan.tokens_of_expert.astype(float)) <= 0.1


@pytest.mark.parametrize("hot", [False, True])
@pytest.mark.parametrize("num_nodes", [1, 2, 5])
@pytest.mark.parametrize("num_threads", [1, 2, 3, 7, 48, 512])
@pytest.mark.parametrize(
    "shape", [Shape(9, 2880, 2880, 32, 4), Shape(300, 80, 640, 9, 2), Shape(3, 32, 32, 2, 1)]
)
def test_items_are_every_panel_once(isa, rng, shape, num_threads, num_nodes, hot):
    ids = random_ids(rng, shape)
    if hot:
        ids[:, 0] = 1
    plan = plan_of(shape, ids, num_threads, num_nodes)
    assert 1 <= plan.num_threads <= num_threads
    used = set(np.flatnonzero(plan.tokens_of_expert))
    gate_up_pairs = -(-shape.intermediate_size // 32) * 2
    down_pairs = -(-shape.hidden_size // 32)
    for items, pairs in ((plan.gate_up, gate_up_pairs), (plan.down, down_pairs)):
        experts = {-1} if items[0, 1] == -1 else used
        assert set(items[:, 1]) == experts
        for expert in experts:
            nodes, _, first, end = items[items[:, 1] == expert].T
            np.testing.assert_array_equal(first, np.append(0, end[:-1]))
            assert end[-1] == pairs
            assert (first < end).all()
            # A part of the panels is at home on each node, the same part of every expert.
            if expert >= 0:
                homes = np.arange(num_nodes + 1) * pairs // num_nodes
                assert (first >= homes[nodes]).all()
                assert (end <= homes[nodes + 1]).all()


@pytest.mark.emulation
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_split_experts_give_the_same_bits(isa, rng, dtype):
    # 5 pairs of output panels: two threads split experts, one thread or five do not.
    shape = Shape(70, 160, 512, 12, 3)
    problem = random_problem(rng, shape, dtype=dtype, bias="both")
    problem.topk_ids[rng.random(problem.topk_ids.shape) < 0.1] = -1
    experts = problem.pack()
    assert plan_of(shape, problem.topk_ids, 2).down[0, 1] >= 0
    assert plan_of(shape, problem.topk_ids, 5).down[0, 1] == -1
    whole = problem.run(experts, num_threads=1)
    for num_threads in (2, 3, 5, 16):
        for tokens in (slice(0, 70), slice(3, 4), slice(20, 57)):
            batch = problem.tokens(tokens)
            assert_same_bits(batch.run(experts, num_threads=num_threads), whole[tokens])
    in_place = problem.hidden_states.copy()
    problem._replace(hidden_states=in_place).run(experts, num_threads=2, out=in_place)
    assert_same_bits(in_place, whole)


@pytest.mark.emulation
@pytest.mark.parametrize("num_nodes", [2, 3, 16])
def test_nodes_give_the_same_bits(isa, rng, num_nodes):
    for shape in (Shape(40, 160, 512, 6, 3), Shape(40, 256, 96, 6, 3)):
        problem = random_problem(rng, shape, bias="both")
        whole = problem.run(num_threads=1)
        _core.simulate_nodes(num_nodes)
        try:
            experts = problem.pack()
            for num_threads in (1, 2, 5):
                assert_same_bits(problem.run(experts, num_threads=num_threads), whole)
        finally:
            _core.simulate_nodes(0)
        assert_same_bits(problem.run(experts), whole)
    assert _core.num_nodes() >= 1
