"""Signals that come during long calls.

When a signal comes is a matter of chance, so calls get more work until one was interrupted inside.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from problems import Problem, Shape, assert_same_bits, random_problem

import mxfp4moe as mx
from mxfp4moe import _core

Call = Callable[[], Any]


@contextmanager
def signals(seconds: float, handler: Any) -> Iterator[None]:
    """SIGINT for this process every few `seconds`, handled by `handler`, while the context lasts."""
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(seconds):
            os.kill(os.getpid(), signal.SIGINT)

    previous = signal.signal(signal.SIGINT, handler)
    sender = threading.Thread(target=send)
    try:  # the first one may come while the thread is being started
        sender.start()
        yield
    finally:
        signal.signal(signal.SIGINT, lambda *_: None)  # for one that the sender sends last
        stop.set()
        sender.join()
        signal.signal(signal.SIGINT, previous)


def interrupt(call: Call, number: int) -> str | None:
    """The file whose function the handler of signal `number` ended; None if `call` was over before."""
    left = number

    def handler(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    try:
        with signals(0.02, handler):
            call()
            left = 0
    except KeyboardInterrupt as error:
        return traceback.extract_tb(error.__traceback__)[-2].filename
    return None


def interrupt_some(make: Callable[[int], Call], size: int) -> None:
    """Interrupt `make(size)` inside the binding, with `size` doubled until it takes long enough for that."""
    call, number = make(size), 1
    while not (file := interrupt(call, number) or "").endswith((".pxi", ".pyx")):
        if file:  # what Python does before or after
            number += 1
            continue
        size *= 2
        assert size < 1 << 33, "no call was interrupted inside"
        call, number = make(size), 1


def small_problem() -> Problem:
    return random_problem(np.random.default_rng(0), Shape(8, 512, 512, 4, 4), dtype=np.float32)


def many_tokens(size: int) -> np.ndarray:
    return np.resize(np.arange(8), size >> 12)


def experts_call(size: int) -> Call:
    problem = small_problem()
    experts = problem.pack()
    many = problem.tokens(many_tokens(size))
    return lambda: many.run(experts)


def small_layer() -> mx.MoELayer:
    return mx.MoELayer(small_problem().pack(), np.eye(4, 512, dtype=np.float32), top_k=4)


def layer_call(size: int) -> Call:
    layer = small_layer()
    many = small_problem().hidden_states[many_tokens(size)]
    return lambda: layer(many)


def logits_call(size: int) -> Call:
    weight = np.ones((256, 512), np.float32)
    layer = mx.MoELayer(zero_experts(256, 512, 32), weight, top_k=1)
    many = np.ones((size >> 12, 512), np.float32)
    return lambda: layer.router_logits(many)


def zero_experts(num_experts: int, hidden_size: int, intermediate_size: int) -> mx.PackedExperts:
    return pack_zeros(num_experts, hidden_size, intermediate_size)()


def pack_zeros(e: int, k: int, i: int) -> Callable[[], mx.PackedExperts]:
    shapes = (e, 2 * i, k // 2), (e, 2 * i, k // 32), (e, k, i // 2), (e, k, i // 32)
    arrays = [np.zeros(shape, np.uint8) for shape in shapes]
    return lambda: mx.pack_experts(*arrays)


def values(size: int) -> np.ndarray:
    return np.resize(np.random.default_rng(0).standard_normal((16, 1024), np.float32), (size >> 10, 1024))


def forward(function: Callable[..., Any], *args: Any, **options: Any) -> Callable[[int], Call]:
    """How to make calls of `function` with so many values."""

    def make(size: int) -> Call:
        array = values(size)
        return lambda: function(array, *args, **options)

    return make


def inverse(quantize: Callable[[np.ndarray], Any], dequantize: Callable[..., Any]) -> Callable[[int], Call]:
    """How to make calls of `dequantize` with what `quantize` makes of so many values."""

    def make(size: int) -> Call:
        parts = quantize(values(1 << 14)[None])
        many = [np.resize(part, (size >> 14, *part.shape[1:])) for part in parts]
        return lambda: dequantize(*many)

    return make


# How to make calls that do not compute with experts. They run on one thread, so that little memory is enough.
CALLS = {
    "quantize_mxfp4": forward(mx.quantize_mxfp4),
    "quantize_mxfp8": forward(mx.quantize_mxfp8),
    "quantize_nvfp4": forward(mx.quantize_nvfp4),
    "quantize_fp8_block": forward(mx.quantize_fp8_block),
    "quantize_int4": forward(mx.quantize_int4),
    "quantize_fp8_tensor": forward(mx.quantize_fp8_block, block_shape=(None, None)),
    "dequantize_mxfp4": inverse(mx.quantize_mxfp4, mx.dequantize_mxfp4),
    "dequantize_mxfp8": inverse(mx.quantize_mxfp8, mx.dequantize_mxfp8),
    "dequantize_nvfp4": inverse(mx.quantize_nvfp4, mx.dequantize_nvfp4),
    "dequantize_int8": inverse(lambda w: mx.quantize_int8(w)[:2], mx.dequantize_int8),
    "dequantize_fp8_block": inverse(mx.quantize_fp8_block, mx.dequantize_fp8_block),
    "pack_experts": lambda size: pack_zeros(1, 1024, size >> 9),
    "unpack": lambda size: zero_experts(1, 1024, size >> 9).unpack,
    "unpack_e2m1": forward(lambda array: mx.unpack_e2m1(array.view(np.uint8))),
    "topk_softmax": forward(mx.topk_softmax, 8),
    "grouped_topk": forward(mx.grouped_topk, 8, num_groups=8, topk_group=4),
    "router_logits": logits_call,
    "checksum": forward(lambda array: _core.crc32(array.reshape(-1).view(np.uint8), 0, 1)),
}


@pytest.mark.parametrize("name", CALLS)
def test_call_is_interrupted(name: str) -> None:
    with mx.num_threads(1):
        interrupt_some(CALLS[name], 1 << 24)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_experts_are_interrupted_and_right_afterwards(isa: str, num_threads: int) -> None:
    expected = small_problem().run()
    with mx.num_threads(num_threads):
        interrupt_some(experts_call, 1 << 22)
        assert_same_bits(small_problem().run(), expected)


def test_layer_is_interrupted_and_right_afterwards() -> None:
    layer, hidden = small_layer(), small_problem().hidden_states
    expected = layer(hidden)
    interrupt_some(layer_call, 1 << 22)
    assert_same_bits(layer(hidden), expected)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_call_goes_on_after_a_handler_that_does_not_raise(isa: str, num_threads: int) -> None:
    problem = small_problem()
    experts = problem.pack()
    expected = problem.run(experts)
    inside: list[np.ndarray] = []  # results of calls within another one
    is_inside = threading.Event()

    def handler(*_: object) -> None:
        if not is_inside.is_set():
            is_inside.set()
            inside.append(problem.run(experts))
            is_inside.clear()

    with mx.num_threads(num_threads), signals(0.02, handler):
        size, handled = 1 << 18, 0
        while handled < 4:  # some of them within the call
            many = problem.tokens(many_tokens(size))
            handled = -len(inside)
            result = many.run(experts)
            handled += len(inside)
            assert_same_bits(result, np.resize(expected, result.shape))
            size *= 2
    for result in inside:
        assert_same_bits(result, expected)


def test_handlers_run_on_the_main_thread_alone() -> None:
    problem = small_problem()
    expected = problem.run()
    results, threads = [], set()
    with signals(0.01, lambda *_: threads.add(threading.get_ident())):
        worker = threading.Thread(target=lambda: results.append(experts_call(1 << 24)()))
        worker.start()
        worker.join()
    assert threads <= {threading.main_thread().ident}
    assert_same_bits(results[0][:8], expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_child_of_fork_is_interrupted() -> None:
    # The thread that forks is the child's main thread.
    def fork() -> None:
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            try:
                interrupt_some(experts_call, 1 << 22)
                os._exit(0)
            finally:
                os._exit(1)
        statuses.append(os.waitpid(child, 0)[1])

    statuses: list[int] = []
    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
    assert statuses == [0]
