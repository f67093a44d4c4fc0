"""Random layers on the ranks of MPI against the same layer in one process, and calls that go wrong.

    mpiexec -n 4 python tests/mpi/random_cases.py --cases 2000 --seed 1

Every rank draws the same layer and placement, and tokens of its own. It ends with status 0 if each result had
the same bits, and with the first case that had not otherwise; `--only N` runs that case again.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import layer_fields
from mpi4py import MPI
from packed_examples import FORMATS, ROUTINGS, UNGATED, K, make_experts, make_layer
from problems import bfloat16

import mxfp4moe as mx
from mxfp4moe.mpi import ExpertParallelLayer, RankError, by_load, contiguous, round_robin

TIMEOUT = 60.0
DTYPES = (bfloat16, np.float16, np.float32)


def random_layer(rng: np.random.Generator) -> tuple[mx.MoELayer, int]:
    """A layer, and how many numbers its token ids are below, 0 if it needs none."""
    kind = rng.integers(3)
    if kind == 0:
        names = layer_fields.COMBINATIONS[rng.integers(len(layer_fields.COMBINATIONS))]
        return layer_fields.random_call(rng, names, 1).layer, 0
    routing = rng.choice([*ROUTINGS])
    format = str(rng.choice([name for name in FORMATS if not name.endswith(UNGATED)]))
    if routing == "nemotron" and "gpt-oss" in format:
        format = "mxfp4"  # gate and up, which alternate in the other one, are not both there
    if kind == 1:
        return make_layer(rng, routing, format), 4 if routing == "deepseek v4" else 0
    count = int(rng.integers(1, 17))
    weight = rng.standard_normal((count, K), np.float32)
    shared = make_experts(rng, "bf16", num_experts=1) if rng.integers(2) else None
    experts = make_experts(rng, format, num_experts=count)
    top_k = int(rng.integers(1, count + 1))
    return mx.MoELayer(experts, weight, top_k=top_k, shared_experts=shared), 0


def on_integers(layer: mx.MoELayer) -> mx.MoELayer:
    """The layer with activations of eight bits, if its weights allow it."""
    packed = [layer.experts] if layer.shared_experts is None else [layer.experts, layer.shared_experts]
    if {each.format for each in packed} <= {"mxfp4", "nvfp4", "int4", "int8"}:
        return mx.MoELayer(**{**layer.arguments(), "activation_format": "int8"})
    return layer


def random_placement(rng: np.random.Generator, num_experts: int, size: int) -> list[list[int]]:
    """Who holds what: by one of the functions, or anywhere, some experts several times."""
    kind = rng.integers(4)
    if kind == 0:
        return contiguous(num_experts, size)
    if kind == 1:
        return round_robin(num_experts, size)
    if kind == 2:
        replicas = int(rng.integers(0, num_experts * (size - 1) + 1))
        return by_load(rng.integers(0, 100, num_experts), size, num_replicas=replicas)
    held = rng.random((size, num_experts)) < 0.3
    held[rng.integers(size, size=num_experts), np.arange(num_experts)] = True
    held[np.arange(size), rng.integers(num_experts, size=size)] = True
    return [np.flatnonzero(row).tolist() for row in held]


def random_cut(rng: np.random.Generator, layer: mx.MoELayer) -> str | None:
    """Whose rows are spread over ranks: nothing's, as often as not."""
    shared = [] if layer.shared_experts is None else ["shared"]
    return str(rng.choice(["all", *shared])) if rng.integers(2) else None


def run_case(seed: int, number: int) -> str:
    """Run a case; return what was wrong on this rank, or nothing."""
    comm = MPI.COMM_WORLD
    rng = np.random.default_rng([seed, number])
    layer, num_ids = random_layer(rng)
    layer = on_integers(layer) if rng.integers(2) else layer
    placement = random_placement(rng, layer.num_experts, comm.size)
    options: dict[str, Any] = {"chunk_tokens": int(rng.choice([1, 7, 1024])), "timeout": TIMEOUT}
    options["tensor_parallel"] = random_cut(rng, layer)
    counts = rng.integers(0, rng.choice([2, 9, 40]), comm.size)
    dtype = DTYPES[rng.integers(len(DTYPES))]
    own = np.random.default_rng([seed, number, comm.rank])
    shape = int(counts[comm.rank]), layer.hidden_size
    x = own.standard_normal(shape, np.float32).astype(dtype)
    inputs: dict[str, Any] = {"num_threads": 1}
    if num_ids:
        inputs["input_ids"] = own.integers(0, num_ids, shape[0])
    if layer.separate_router_input:
        inputs["router_hidden_states"] = own.standard_normal(shape, np.float32).astype(dtype)
    is_cut = options["tensor_parallel"] == "all"
    parallel = ExpertParallelLayer(layer if is_cut else layer.slice(placement[comm.rank]), comm, **options)
    got, expected = parallel(x, **inputs), layer(x, **inputs)
    if got.tobytes() == expected.tobytes() and got.dtype == expected.dtype:
        return ""
    wrong = np.flatnonzero((got != expected).any(axis=-1)).tolist()
    where = f"case {number} of seed {seed}: tokens {wrong} of rank {comm.rank} differ"
    return f"{where}: {layer}, {placement}, {options}"


def run_cases(seed: int, first: int, count: int) -> int:
    """Run cases; return the exit status."""
    comm = MPI.COMM_WORLD
    for number in range(first, first + count):
        found = [text for text in comm.allgather(run_case(seed, number)) if text]
        if found:
            if comm.rank == 0:
                print(found[0], flush=True)
            return 1
    if comm.rank == 0:
        print(f"{count} cases on {comm.size} ranks: the same bits", flush=True)
    return 0


# --- what goes wrong ----------------------------------------------------------------------------------------


def fails(call: Any, kind: type[Exception], text: str) -> None:
    """All ranks call it, the last of them in a wrong way, which each must learn."""
    rank, last = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size - 1
    try:
        call()
    except Exception as error:
        assert type(error) is (kind if rank == last else RankError), error
        assert text in str(error), error
        assert rank == last or f"rank {last}: {kind.__name__}: " in str(error), error
    else:
        raise AssertionError(f"no error on rank {rank}, instead of {text!r}")


def broken(*_: Any) -> None:
    raise MemoryError("no memory for the workspace of fused_experts")


def check_faults_of_cut_experts() -> None:
    """The same where ranks compute rows of experts: in each step, of routed experts and of the shared one."""
    comm, rng = MPI.COMM_WORLD, np.random.default_rng(0)
    layer, is_last = make_layer(rng, "deepseek v3"), comm.rank == comm.size - 1
    part = layer.slice(contiguous(layer.num_experts, comm.size)[comm.rank])
    x = rng.standard_normal((3, K), np.float32)

    def make(of: mx.MoELayer, cut: str) -> ExpertParallelLayer:
        return ExpertParallelLayer(of, comm, timeout=TIMEOUT, tensor_parallel=cut)  # type: ignore[arg-type]

    without = mx.MoELayer(layer.experts, layer.router_weight, top_k=1)
    fails(lambda: make(layer, "no" if is_last else "all"), ValueError, "tensor_parallel: expected")
    if comm.size > 1:
        fails(lambda: make(part if is_last else layer, "all"), ValueError, "the whole layer, with")
    try:
        make(without, "shared")
    except ValueError as error:
        assert "layer_slice: expected a layer with a shared expert" in str(error), error
    else:
        raise AssertionError("no shared expert")
    for parallel in (make(part, "shared"), make(layer, "all")):
        shared = parallel._sum._shared
        for cut in {id(each): each for each in (shared, parallel._exchange)}.values():
            inside = (
                [] if not hasattr(cut, "_cut") else [(cut._cut, name) for name in ("intermediates", "sums")]
            )
            for owner, name in [(cut, "begin"), *inside]:
                if is_last:
                    setattr(owner, name, broken)
                fails(lambda parallel=parallel: parallel(x), MemoryError, "no memory")  # type: ignore[misc]
                if is_last:
                    delattr(owner, name)
        wrong = np.full_like(x, np.nan) if is_last else x
        fails(lambda p=parallel, w=wrong: p(w), ValueError, "hidden_states: expected values")  # type: ignore[misc]
        assert parallel(x).tobytes() == layer(x).tobytes()
    check_bytes_of_cut_experts(layer)


def check_bytes_of_cut_experts(layer: mx.MoELayer) -> None:
    """What is sent is what docs/distributed.md says."""
    comm = MPI.COMM_WORLD
    parallel = ExpertParallelLayer(layer, comm, timeout=TIMEOUT, tensor_parallel="all")
    x = np.random.default_rng(comm.rank).standard_normal((5, K), np.float32)
    parallel(x)
    for cut, slots, width in (
        (parallel._exchange, layer.top_k, layer.intermediate_size),
        (parallel._sum._shared, 1, layer.shared_experts.intermediate_size),  # type: ignore[union-attr]
    ):
        tokens, rows, of_slots = comm.allreduce(cut.traffic)  # type: ignore[union-attr]
        others = comm.size - 1
        assert tokens == 5 * comm.size
        assert of_slots == tokens * others * 8 * slots
        assert rows * comm.size == tokens * others * ((2 * K + 2 * slots * width) * comm.size + 4 * K)


def check_faults() -> None:
    """Errors of one rank are errors of all, at the latest after the time-out; then calls go on."""
    comm, rng = MPI.COMM_WORLD, np.random.default_rng(0)
    layer, last = make_layer(rng, "default"), MPI.COMM_WORLD.size - 1
    part = layer.slice(contiguous(layer.num_experts, comm.size)[comm.rank])
    x = rng.standard_normal((3, K), np.float32)
    is_last = comm.rank == last

    def make(**options: Any) -> ExpertParallelLayer:
        return ExpertParallelLayer(part, comm, timeout=TIMEOUT, **options)

    fails(lambda: make(chunk_tokens=0 if is_last else 1024), ValueError, "chunk_tokens: expected an integer")
    fails(lambda: make(combine="no" if is_last else "exact"), ValueError, "combine: expected 'exact' or")
    whole: Any = None if is_last else part
    fails(lambda: ExpertParallelLayer(whole, comm, timeout=TIMEOUT), TypeError, "layer_slice: expected a MoE")
    parallel = make()
    wrong = np.full_like(x, np.nan) if is_last else x
    fails(lambda: parallel(wrong), ValueError, "hidden_states: expected values to route by")
    fails(lambda: parallel(x[:, : K - is_last]), ValueError, "hidden_states: expected shape")

    if is_last:  # in the middle of a call
        parallel._exchange._run = broken  # type: ignore[method-assign]
    fails(lambda: parallel(x), MemoryError, "no memory for the workspace")
    if is_last:
        del parallel._exchange._run
    assert parallel(x).tobytes() == layer(x).tobytes()
    if comm.size > 1:
        try:
            ExpertParallelLayer(layer.slice([0]), comm, timeout=TIMEOUT)
        except ValueError as error:
            assert "each expert on some rank, got none with 1, 2" in str(error), error
        else:
            raise AssertionError("experts that nobody holds")
    check_faults_of_cut_experts()
    comm.Barrier()
    if comm.rank == 0:
        print(f"faults on {comm.size} ranks: errors on all", flush=True)


def check_timeout() -> None:
    """A rank that does not come is an error of the others after the time-out; the process ends by abort."""
    comm, rng = MPI.COMM_WORLD, np.random.default_rng(0)
    layer = make_layer(rng, "default")
    part = layer.slice(contiguous(layer.num_experts, comm.size)[comm.rank])
    parallel = ExpertParallelLayer(part, comm, timeout=1.0)
    begin = time.monotonic()
    if comm.rank == 0:
        time.sleep(4)
    try:
        parallel(np.ones((2, K), np.float32))
    except TimeoutError as error:
        assert comm.rank == 0 or time.monotonic() - begin < 4
        print(f"{error}; rank {comm.rank} has ended in time", flush=True)
    try:
        parallel(np.ones((2, K), np.float32))
    except RuntimeError as error:
        assert "in step" in str(error)
    if comm.rank:
        time.sleep(8)  # until rank 0, which ends last, aborts all


def check_reading_ahead(folder: Path) -> None:
    """Ranks with a limit of memory read experts of the next layer, for tokens of another rank as well."""
    comm, rng = MPI.COMM_WORLD, np.random.default_rng(0)
    whole = mx.MoELayer(make_experts(rng, "mxfp4", 8), rng.standard_normal((8, K), np.float32), top_k=8)
    if comm.rank == 0:
        whole.save(folder / "layer.packed")
    comm.Barrier()
    ids = contiguous(8, comm.size)[comm.rank]
    first, second = (
        mx.MoELayer.open(folder / "layer.packed", experts=ids, memory_limit=1 << 20) for _ in range(2)
    )
    first._precede(second)
    x = rng.standard_normal((1 if comm.rank == 0 else 0, K), np.float32)
    result = ExpertParallelLayer(first, comm, timeout=TIMEOUT)(x)
    assert result.tobytes() == whole(x).tobytes()
    cache = second.expert_cache
    assert cache is not None
    deadline = time.monotonic() + TIMEOUT
    while cache.statistics().prefetched < len(ids):
        assert time.monotonic() < deadline, f"rank {comm.rank} has read {cache.statistics()}"
        time.sleep(0.01)
    comm.Barrier()
    if comm.rank == 0:
        print(f"{comm.size} ranks have read ahead", flush=True)


def main() -> int:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--timeout", action="store_true")
    parser.add_argument("--ahead", type=Path, metavar="FOLDER")
    args = parser.parse_args()
    if args.ahead:
        check_reading_ahead(args.ahead)
        return 0
    if args.timeout:
        check_timeout()
        return 0
    if args.faults:
        check_faults()
        return 0
    return run_cases(args.seed, args.only or 0, 1 if args.only is not None else args.cases)


if __name__ == "__main__":
    sys.exit(main())
