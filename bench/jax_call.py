"""What a call from a JAX program costs beyond that of NumPy: python bench/jax_call.py

One token through experts of the sizes of gpt-oss-20b, by NumPy and by `jit`, in turns; the least times count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import mxfp4moe as mx
import mxfp4moe.jax
from mxfp4moe.jax import _ffi

TOP_K = 4


def make_experts(rng: np.random.Generator, num_experts: int, size: int) -> mx.PackedExperts:
    """Random codes, which stand for ordinary numbers."""

    def codes(rows: int) -> np.ndarray:
        return rng.integers(0, 256, (num_experts, rows, size // 2), np.uint8)

    def scales(rows: int) -> np.ndarray:
        return np.full((num_experts, rows, size // 32), 120, np.uint8)

    return mx.pack_experts(codes(2 * size), scales(2 * size), codes(size), scales(size), format="mxfp4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experts", type=int, default=8, help="how many there are; default 8")
    parser.add_argument("--size", type=int, default=2880, help="hidden and intermediate; default 2880")
    parser.add_argument("--rounds", type=int, default=200, help="calls of each kind; default 200")
    parser.add_argument("--threads", type=int, default=mx.get_num_threads(), help="of a call; default: all")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    experts = make_experts(rng, options.experts, options.size)
    x = jax.numpy.asarray(rng.standard_normal((1, options.size)), jax.numpy.bfloat16)
    weights = jax.numpy.full((1, TOP_K), 1 / TOP_K, np.float32)
    ids = [
        jax.numpy.asarray(rng.choice(options.experts, (1, TOP_K), replace=False), np.int32) for _ in range(16)
    ]
    of_numpy = [np.asarray(array) for array in ids]
    hidden, scores = np.asarray(x), np.asarray(weights)

    def jitted() -> Callable[[int], Any]:
        call = jax.jit(lambda x, w, i: mxfp4moe.jax.fused_experts(x, experts, w, i))
        call(x, weights, ids[0])
        return lambda n: call(x, weights, ids[n]).block_until_ready()

    with mx.num_threads(options.threads):
        calls: dict[str, Callable[[int], Any]] = {
            "numpy": lambda n: mx.fused_experts(hidden, experts, scores, of_numpy[n]),
            mxfp4moe.jax.backend(): jitted(),
        }
        if "ffi" in calls:
            found = _ffi.foreign_functions
            _ffi.foreign_functions = lambda: None
            calls["pure_callback"] = jitted()
            _ffi.foreign_functions = found
        least = dict.fromkeys(calls, float("inf"))
        for n in range(options.rounds):
            for name, call in calls.items():
                begin = time.perf_counter()
                call(n % len(ids))
                least[name] = min(least[name], time.perf_counter() - begin)
    for name, seconds in least.items():
        print(f"{name:14} {seconds * 1e6:9.1f} us  {seconds / least['numpy'] - 1:+.1%}")


if __name__ == "__main__":
    main()
