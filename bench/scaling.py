"""What expert parallelism costs and gains: a model of network, memory and arithmetic, and measurements.

    python bench/scaling.py predict --shape deepseek-v3 --ranks 2,8,64,128 --tokens 1,16,64,256
    python bench/scaling.py predict --routing loads.npy        # layer.load_statistics().slots of a real layer
    python bench/scaling.py predict --shape mixtral-8x7b --placement tensor_parallel    # rows of each expert
    mpirun -n 2 python bench/scaling.py measure --tokens 16,64,256
    mpirun -n 2 python bench/scaling.py turns --shape gpt-oss-20b --tokens 64,1024

Who computes what, and how many rows and slots each rank sends to each other, is the package's own plan of
random tokens. A call is a sum of steps, without overlap:

    computing      the slowest rank's bytes of experts in use / memory bandwidth + products / arithmetic
    exchanging     tokens there and terms back, each: latency for each rank + bytes of the busiest / bandwidth
    agreeing       three small collective operations; `measure` times a call without tokens instead

`predict` compares that with the same number of ranks that hold all experts and exchange nothing, if memory
allowed. `measure` finds out the rates of this machine, from calls without exchange and from messages,
predicts the call, and times it. `turns` compares ranks of one thread with one process of as many threads: the
same tokens, of which each rank has a part, in turns.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import mxfp4moe as mx
from mxfp4moe.mpi import by_load, contiguous, round_robin
from mxfp4moe.mpi._plan import SLOT, holder_table, make_plan

_AGREEMENTS = 3  # small collective operations of a call


class Shape(NamedTuple):
    """The sizes of a layer in MXFP4."""

    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int

    @property
    def expert_bytes(self) -> float:
        """The weights of an expert: four bits, and eight for each 32 of them."""
        return 3 * self.hidden_size * self.intermediate_size * 4.25 / 8

    @property
    def slot_products(self) -> float:
        """The products of a token with an expert."""
        return 3.0 * self.hidden_size * self.intermediate_size


SHAPES = {
    "gpt-oss-20b": Shape(2880, 2880, 32, 4),
    "gpt-oss-120b": Shape(2880, 2880, 128, 4),
    "qwen3-30b-a3b": Shape(2048, 768, 128, 8),
    "deepseek-v3": Shape(7168, 2048, 256, 8),
    "kimi-k2": Shape(7168, 2048, 384, 8),
    "mixtral-8x7b": Shape(4096, 14336, 8, 2),
    "small": Shape(1024, 512, 32, 4),
}


@dataclass(frozen=True)
class Rates:
    """What a rank and the network between ranks can do."""

    latency: float
    """Seconds of a message."""
    bandwidth: float
    """Bytes a second into a rank, and out of it."""
    memory: float
    """Bytes of weights a second."""
    products: float
    """A second."""
    overhead: float
    """Seconds of a call of the experts."""
    agreeing: float | None = None
    """Seconds of a call without tokens, if that was measured."""


class Prediction(NamedTuple):
    """The seconds of a call, and what they come from."""

    computing: float
    exchanging: float
    agreeing: float
    imbalance: float
    """The slots of the busiest rank by those of the mean."""
    token_bytes: float
    """That a token sends and gets back."""

    @property
    def seconds(self) -> float:
        """All of the call."""
        return self.computing + self.exchanging + self.agreeing


def popularity(routing: str, num_experts: int) -> NDArray[np.float64]:
    """The chance of each expert: uniform, by Zipf in any order, or as it was counted."""
    if routing == "uniform":
        return np.full(num_experts, 1 / num_experts)
    if routing == "zipf":
        chances = 1 / np.random.default_rng(0).permutation(np.arange(1, num_experts + 1))
    else:
        chances = np.load(routing).astype(np.float64) + 1e-9
        if chances.shape != (num_experts,):
            raise SystemExit(f"--routing: expected {num_experts} counts, got shape {chances.shape}")
    return np.asarray(chances / chances.sum())


def draw(
    rng: np.random.Generator, chances: NDArray[np.float64], tokens: int, top_k: int
) -> NDArray[np.int32]:
    """Different experts for each token, drawn one after another by their chances."""
    keys = np.log(chances) + rng.gumbel(size=(tokens, len(chances)))
    return np.argpartition(-keys, top_k - 1, axis=1)[:, :top_k].astype(np.int32)


def place(name: str, chances: NDArray[np.float64], ranks: int) -> list[list[int]]:
    """Which experts each rank holds, where none is cut."""
    count = len(chances)
    if name == "by_load":
        replicas = min(ranks, count * (ranks - 1))
        return by_load(np.rint(chances * 1e6), ranks, num_replicas=replicas)
    return (contiguous if name == "contiguous" else round_robin)(count, ranks)


def computing(shape: Shape, rates: Rates, slots: float, experts: float) -> float:
    """The seconds of some slots of so many different experts."""
    in_memory = experts * shape.expert_bytes / rates.memory
    return rates.overhead + in_memory + slots * shape.slot_products / rates.products


def predict(
    shape: Shape, rates: Rates, placement: list[list[int]], ids: list[NDArray[np.int32]]
) -> Prediction:
    """A call of ranks with these placement, each with tokens of its own."""
    size = len(placement)
    held = np.zeros((size, shape.num_experts), bool)
    for rank, experts in enumerate(placement):
        held[rank, experts] = True
    counts, used = np.zeros((size, size, 3), np.int64), np.zeros((size, shape.num_experts), bool)
    for rank, of_rank in enumerate(ids):
        table = holder_table(held, rank)
        counts[rank] = make_plan(
            np.ones(of_rank.shape, np.float32), of_rank, table, size, True
        ).messages.counts
        where = table[of_rank, np.arange(len(of_rank))[:, None] % table.shape[1]]
        used[where.ravel(), of_rank.ravel()] = True
    slots = counts[:, :, 1].sum(axis=0)
    slowest = max(computing(shape, rates, s, u) for s, u in zip(slots, used.sum(axis=1), strict=True))
    away = counts * ~np.eye(size, dtype=bool)[:, :, None]
    there = away[:, :, 0] * 2 * shape.hidden_size + away[:, :, 1] * SLOT.itemsize
    back = away[:, :, 2].T * 4 * shape.hidden_size
    exchanging = sum(
        (size - 1) * rates.latency + max(sent.sum(axis=1).max(), sent.sum(axis=0).max()) / rates.bandwidth
        for sent in (there, back)
    )
    tokens = sum(map(len, ids))
    return Prediction(
        slowest,
        exchanging,
        _AGREEMENTS * (size - 1) * rates.latency if rates.agreeing is None else rates.agreeing,
        slots.max() / slots.mean(),
        (there.sum() + back.sum()) / tokens,
    )


def predict_cut(shape: Shape, rates: Rates, ids: list[NDArray[np.int32]]) -> Prediction:
    """A call of ranks that have some rows of each expert: tensor_parallel="all"."""
    size, counts = len(ids), np.array([len(each) for each in ids])
    slots = sum(each.size for each in ids)
    used = len(np.unique(np.concatenate([each.ravel() for each in ids])))
    others = size - 1
    # Each sends its tokens and slots to all, its part of the intermediates to all, and its part of the
    # results to those that have the tokens.
    there = others * counts * (2 * shape.hidden_size + 8 * shape.top_k)
    between = others * 2 * shape.intermediate_size * slots / size
    back = (counts.sum() - counts) * 4 * shape.hidden_size / size
    largest = counts.max() * others * 4 * shape.hidden_size / size  # into the rank with the most tokens
    exchanging = sum(
        others * rates.latency + nbytes / rates.bandwidth
        for nbytes in (there.max(), between, max(back.max(), largest))
    )
    return Prediction(
        computing(shape, rates, slots / size, used / size),
        exchanging,
        _AGREEMENTS * others * rates.latency if rates.agreeing is None else rates.agreeing,
        1.0,
        (there.sum() + size * between + back.sum()) / counts.sum(),
    )


def alone(shape: Shape, rates: Rates, ids: list[NDArray[np.int32]]) -> float:
    """The seconds of a rank that holds all experts and computes its own tokens."""
    return max(computing(shape, rates, each.size, len(np.unique(each))) for each in ids)


def numbers(text: str) -> list[int]:
    """Integers with commas between them."""
    return [int(word) for word in text.split(",")]


def run_predict(args: argparse.Namespace) -> None:
    """Print a table: a line for each number of ranks and of tokens."""
    shape = SHAPES[args.shape]
    rates = Rates(args.latency * 1e-6, args.bandwidth * 1e9, args.memory * 1e9, args.products * 1e12, 20e-6)
    chances = popularity(args.routing, shape.num_experts)
    print(f"{args.shape}, {args.routing}, {args.placement}: {rates}")
    columns = "ranks tokens experts/rank imbalance bytes/token"
    print(f"{columns} computing exchanging agreeing  total us  alone us  gain")
    for ranks in args.ranks:
        is_cut = args.placement == "tensor_parallel"
        placement = place("contiguous" if is_cut else args.placement, chances, ranks)
        for tokens in args.tokens:
            rng = np.random.default_rng(tokens)
            ids = [draw(rng, chances, tokens, shape.top_k) for _ in range(ranks)]
            call = predict_cut(shape, rates, ids) if is_cut else predict(shape, rates, placement, ids)
            single = alone(shape, rates, ids)
            held = shape.num_experts / ranks if is_cut else np.mean([len(part) for part in placement])
            print(
                f"{ranks:5} {tokens:6} {held:12.1f} {call.imbalance:9.2f}"
                f" {call.token_bytes:11.0f} {1e6 * call.computing:9.0f} {1e6 * call.exchanging:10.0f}"
                f" {1e6 * call.agreeing:8.0f} {1e6 * call.seconds:9.0f} {1e6 * single:9.0f}"
                f" {single / call.seconds:5.2f}",
                flush=True,
            )


def best(call: Callable[[], Any], rounds: int, barrier: Callable[[], None]) -> float:
    """The seconds of the fastest of some calls, which all ranks begin together."""
    result = float("inf")
    for _ in range(rounds):
        barrier()
        begin = time.perf_counter()
        call()
        result = min(result, time.perf_counter() - begin)
    return result


def calibrated(whole: mx.MoELayer, shape: Shape, comm: Any, rounds: int) -> Rates:
    """The rates of this machine: calls of all ranks at the same time, and messages among all."""
    rng = np.random.default_rng(0)

    def seconds(ids: NDArray[np.int32]) -> float:
        x, weights = np.ones((len(ids), shape.hidden_size), np.float32), np.ones(ids.shape, np.float32)
        own = best(lambda: mx.fused_experts(x, whole.experts, weights, ids), rounds, comm.Barrier)
        return float(comm.allreduce(own)) / comm.size

    everything = np.arange(shape.num_experts, dtype=np.int32)[None]
    few, busy = seconds(everything[:, :1]), rng.integers(0, 2, (32, shape.top_k), np.int32)
    each = (seconds(everything) - few) / (shape.num_experts - 1)
    products = busy.size * shape.slot_products / seconds(busy)
    rates = Rates(0.0, np.inf, shape.expert_bytes / each, products, max(few - each, 0.0))
    if comm.size > 1:
        times = []
        for size in (8, 1 << 20):
            sent, got = np.zeros((comm.size, size), np.uint8), np.zeros((comm.size, size), np.uint8)

            def exchange(sent: Any = sent, got: Any = got) -> None:
                comm.Ialltoall(sent, got).Wait()

            times.append(comm.allreduce(best(exchange, rounds, comm.Barrier)) / comm.size / (comm.size - 1))
        rates = replace(rates, latency=times[0], bandwidth=(1 << 20) / max(times[1] - times[0], 1e-9))
    # Ranks that have no processor of their own compute in turns.
    turns = max(1.0, comm.size / len(os.sched_getaffinity(0)))
    return replace(rates, memory=rates.memory / turns, products=rates.products / turns)


def make_layer(args: argparse.Namespace) -> tuple[mx.MoELayer, NDArray[np.float64]]:
    """A layer of random weights, and the chances of its experts."""
    rng = np.random.default_rng(0)
    k, i, count, top_k = SHAPES[args.shape]
    w13 = rng.integers(0, 256, (count, 2 * i, k // 2), np.uint8)
    w2 = rng.integers(0, 256, (count, k, i // 2), np.uint8)
    scales = np.full((count, 2 * i, k // 32), 120, np.uint8), np.full((count, k, i // 32), 120, np.uint8)
    chances = popularity(args.routing, count)
    # Logits are those of the chances and of noise that comes with the token.
    router = rng.standard_normal((count, k), np.float32) * np.float32(1.28 / k**0.5)
    experts = mx.pack_experts(w13, scales[0], w2, scales[1])
    return mx.MoELayer(experts, router, np.log(chances).astype(np.float32), top_k=top_k), chances


def make_parallel(
    args: argparse.Namespace, whole: mx.MoELayer, chances: NDArray[np.float64], comm: Any
) -> tuple[Any, list[list[int]] | None]:
    """The layer on the ranks, and who holds what, None if each expert is cut."""
    from mxfp4moe.mpi import ExpertParallelLayer

    if args.placement == "tensor_parallel":
        return ExpertParallelLayer(whole, comm, tensor_parallel="all"), None
    placement = place(args.placement, chances, comm.size)
    return ExpertParallelLayer(whole.slice(placement[comm.rank]), comm), placement


def run_measure(args: argparse.Namespace) -> None:
    """Time calls of this number of ranks, one thread each, beside the prediction."""
    from mpi4py import MPI

    comm, shape = MPI.COMM_WORLD, SHAPES[args.shape]
    mx.set_num_threads(1)
    whole, chances = make_layer(args)
    rates = calibrated(whole, shape, comm, args.rounds)
    layer, placement = make_parallel(args, whole, chances, comm)
    nothing = np.empty((0, shape.hidden_size), np.float32)
    empty = comm.allreduce(best(lambda: layer(nothing), args.rounds, comm.Barrier)) / comm.size
    rates = replace(rates, agreeing=empty)
    if comm.rank == 0:
        print(f"{args.shape}, {args.routing}, {comm.size} ranks: {rates}")
    for tokens in args.tokens:
        x = np.random.default_rng(comm.rank).standard_normal((tokens, shape.hidden_size), np.float32)
        seconds = best(lambda x=x: layer(x), args.rounds, comm.Barrier)  # type: ignore[misc]
        ids = comm.gather(whole.route(x)[1])
        slowest = comm.reduce(seconds, MPI.MAX)
        if comm.rank == 0:
            cut = placement is None
            call = predict_cut(shape, rates, ids) if cut else predict(shape, rates, placement, ids)
            print(
                f"{tokens:5} tokens a rank: measured {1e3 * slowest:8.3f} ms,"
                f" predicted {1e3 * call.seconds:8.3f} (computing {1e3 * call.computing:.3f},"
                f" exchanging {1e3 * call.exchanging:.3f}), ratio {slowest / call.seconds:.2f},"
                f" imbalance {call.imbalance:.2f}",
                flush=True,
            )


def wait_quietly(comm: Any) -> None:
    """Wait for all ranks, without a processor: MPI's own barrier looks for messages all the time."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(1e-3)


def run_turns(args: argparse.Namespace) -> None:
    """Time ranks of one thread and one process of as many threads, in turns, on the same tokens."""
    from mpi4py import MPI

    comm, shape = MPI.COMM_WORLD, SHAPES[args.shape]
    whole, chances = make_layer(args)
    layer, _ = make_parallel(args, whole, chances, comm)
    for tokens in args.tokens:
        x = np.random.default_rng(1).standard_normal((tokens, shape.hidden_size), np.float32)
        own = np.array_split(x, comm.size)[comm.rank]
        times = np.full(2, np.inf)
        for _ in range(args.rounds + 1):  # the first round is for pages and caches
            wait_quietly(comm)
            if comm.rank == 0:
                begin = time.perf_counter()
                whole(x, num_threads=comm.size)
                times[0] = min(times[0], time.perf_counter() - begin)
            wait_quietly(comm)
            comm.Barrier()
            begin = time.perf_counter()
            layer(own, num_threads=1)
            seconds = comm.allreduce(time.perf_counter() - begin, MPI.MAX)
            times[1] = min(times[1], seconds)
        if comm.rank == 0:
            one, several = 1e3 * times
            print(
                f"{args.shape}, {tokens:5} tokens: one process of {comm.size} threads {one:8.2f} ms,"
                f" {comm.size} ranks of one {several:8.2f} ms: {100 * one / several:.0f} %",
                flush=True,
            )


def main() -> None:
    """Predict, measure or compare."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("what", choices=("predict", "measure", "turns"))
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--routing", default="zipf", help="zipf, uniform, or an .npy file of counts")
    placements = ("by_load", "contiguous", "round_robin", "tensor_parallel")
    text = "the first has replicas, the last one cuts each expert"
    parser.add_argument("--placement", choices=placements, default="by_load", help=text)
    parser.add_argument("--ranks", type=numbers, default=[2, 4, 8, 16, 32, 64, 128])
    parser.add_argument(
        "--tokens", type=numbers, default=[1, 8, 64, 256], help="of each rank, or of all (turns)"
    )
    parser.add_argument("--latency", type=float, default=2.0, help="us of a message")
    parser.add_argument("--bandwidth", type=float, default=12.5, help="GB/s of a rank's network")
    parser.add_argument("--memory", type=float, default=200.0, help="GB/s of a rank's memory")
    parser.add_argument("--products", type=float, default=2.0, help="10^12 a second of a rank")
    parser.add_argument("--rounds", type=int, default=15, help="of measurements, of which the best counts")
    args = parser.parse_args()
    {"predict": run_predict, "measure": run_measure, "turns": run_turns}[args.what](args)


if __name__ == "__main__":
    main()
