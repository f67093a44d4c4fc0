"""Who computes what: placements, and messages that give the bits of one process, without any MPI."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packed_examples import make_experts

import mxfp4moe as mx
from mxfp4moe.mpi import ExpertParallelLayer, by_load, contiguous, round_robin
from mxfp4moe.mpi._plan import arrange_work, holder_table, make_plan

K = 64
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # tokens, weights, ids

# --- placements ---------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 12))
def test_every_expert_is_held_once_and_every_rank_holds_some(num_experts: int, num_ranks: int) -> None:
    for parts in (contiguous(num_experts, num_ranks), round_robin(num_experts, num_ranks)):
        sizes = [len(part) for part in parts]
        assert len(parts) == num_ranks
        assert all(part == sorted(set(part)) for part in parts)
        assert {expert for part in parts for expert in part} == set(range(num_experts))
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) == max(num_experts, num_ranks)
    parts = contiguous(num_experts, num_ranks)
    assert all(part == list(range(part[0], part[-1] + 1)) for part in parts)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30), st.integers(1, 8), st.data())
def test_placement_by_load(loads: list[int], num_ranks: int, data: st.DataObject) -> None:
    most = len(loads) * (num_ranks - 1)
    replicas = data.draw(st.integers(0, most))
    parts = by_load(loads, num_ranks, num_replicas=replicas)
    held = sum(map(len, parts))
    assert len(parts) == num_ranks
    assert all(part == sorted(set(part)) for part in parts)
    assert {expert for part in parts for expert in part} == set(range(len(loads)))
    assert len(loads) + replicas <= held <= max(len(loads) + replicas, num_ranks + len(loads) + replicas - 1)
    assert by_load(np.array(loads, np.float32), num_ranks, num_replicas=replicas) == parts


def test_replicas_share_the_load_of_hot_experts() -> None:
    """With Zipf loads, the hottest rank has less to do than by any placement without replicas."""
    loads = 1 / np.arange(1, 65)
    shares = [
        max(sum(loads[e] / sum(e in part for part in parts) for e in part) for part in parts)
        / loads.sum()
        * 8
        for parts in (contiguous(64, 8), by_load(loads, 8), by_load(loads, 8, num_replicas=8))
    ]
    assert shares[0] > shares[1] > shares[2]
    assert shares[2] <= 1.25  # of the mean: no single share of an expert is above 1 / 4 of the mean of a rank


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: contiguous(0, 1), ValueError, "num_experts: expected an integer of at least 1, got 0"),
        (lambda: round_robin(3, 0), ValueError, "num_ranks: expected an integer of at least 1, got 0"),
        (lambda: contiguous(3, 1.0), TypeError, "num_ranks: expected an integer, got 1.0"),  # type: ignore[arg-type]
        (lambda: by_load([], 2), ValueError, r"loads: expected shape \(num_experts,\)"),
        (lambda: by_load([1, -1], 2), ValueError, "loads: expected finite numbers of at least 0, got -1.0"),
        (
            lambda: by_load([1, np.nan], 2),
            ValueError,
            "loads: expected finite numbers of .* got nan",
        ),
        (
            lambda: by_load([1, 2], 2, num_replicas=3),
            ValueError,
            r"num_replicas: expected an integer in .0, 2.",
        ),
    ],
)
def test_wrong_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# --- messages -----------------------------------------------------------------------------------------------


def exchange(
    held: np.ndarray,
    batches: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    experts: mx.PackedExperts,
    exact: bool,
) -> tuple[list[np.ndarray], np.ndarray]:
    """What ranks with these tokens, weights and ids compute together, one after another in this process."""
    size = len(held)
    plans = [
        make_plan(w, ids, holder_table(held, rank), size, exact) for rank, (_, w, ids) in enumerate(batches)
    ]
    counts = np.stack([plan.messages.counts for plan in plans])
    results: list[list[np.ndarray]] = [[] for _ in plans]
    for rank in range(size):
        tokens, slots = [], []
        for (x, _, _), plan in zip(batches, plans, strict=True):
            first, last = np.cumsum(plan.messages.counts, axis=0)[rank] - plan.messages.counts[rank], 0
            last = first + plan.messages.counts[rank]
            tokens.append(x[plan.messages.tokens[first[0] : last[0]]])
            assert len(set(plan.messages.tokens[first[0] : last[0]].tolist())) == len(tokens[-1])  # each once
            slots.append(plan.messages.slots[first[1] : last[1]])
            assert held[rank, slots[-1]["expert"]].all()
        work = arrange_work(np.concatenate(slots), counts[:, rank])
        out = np.empty((len(work.tokens), K), np.float32)
        x = np.concatenate(tokens)[work.tokens]
        mx.fused_experts(x, experts, work.weights, work.experts, out=out)
        for source, part in enumerate(np.split(out, np.cumsum(counts[:, rank, 2])[:-1])):
            results[source].append(part)
    sums = []
    for (x, _, _), plan, parts in zip(batches, plans, results, strict=True):
        sums.append(np.empty((len(x), K), np.float32))
        plan.addends.add_up(np.concatenate(parts), sums[-1])
    return sums, counts


def random_batches(rng: np.random.Generator, size: int, num_experts: int) -> list[Any]:
    batches = []
    for _ in range(size):
        shape = int(rng.integers(0, 20)), int(rng.integers(1, 6))
        x = rng.standard_normal((shape[0], K), np.float32)
        batches.append(
            (x, rng.standard_normal(shape, np.float32), rng.integers(-1, num_experts, shape, np.int32))
        )
    return batches


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_messages_give_the_bits_of_one_process(isa: str, rng: np.random.Generator, size: int) -> None:
    num_experts = 9
    experts = make_experts(rng, "mxfp4", num_experts)
    for share in (0.0, 0.4):
        held = rng.random((size, num_experts)) < share
        held[rng.integers(size, size=num_experts), np.arange(num_experts)] = True
        batches = random_batches(rng, size, num_experts)
        sums, _ = exchange(held, batches, experts, exact=True)
        for (x, weights, ids), got in zip(batches, sums, strict=True):
            out = np.empty_like(got)
            mx.fused_experts(x, experts, weights, ids, out=out)
            assert got.tobytes() == out.tobytes()


def test_no_more_is_sent_than_needed(rng: np.random.Generator) -> None:
    """A token goes once to each rank with an expert of it; rounded sums come back as one row for each."""
    held = np.kron(np.eye(4, dtype=bool), np.ones(3, bool))  # four ranks with three experts each
    batches = random_batches(rng, 4, 12)
    for exact in (True, False):
        _, counts = exchange(held, batches, make_experts(rng, "mxfp4", 12), exact)
        for rank, (_, _, ids) in enumerate(batches):
            owners = np.where(ids >= 0, ids // 3, -1)
            pairs = [(t, r) for t, row in enumerate(owners) for r in set(row.tolist()) - {-1}]
            assert np.array_equal(counts[rank, :, 0], np.bincount([r for _, r in pairs], minlength=4))
            assert counts[rank, :, 1].sum() == (ids >= 0).sum()
            rows = sum(
                len(kept) - max(int((kept == kept.min()).sum()) - 1, 0)
                for row in owners
                if (kept := row[row >= 0]).size
            )
            assert counts[rank, :, 2].sum() == (rows if exact else len(pairs))


def test_mpi_is_imported_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ImportError, match=r"mpi4py is not installed .pip install 'mxfp4moe.mpi.'"):
        ExpertParallelLayer(None, None)  # type: ignore[arg-type]
