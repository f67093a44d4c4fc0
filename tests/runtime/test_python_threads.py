"""Many Python threads at once, on interpreters with and without the global lock; and subinterpreters."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import mxfp4moe as mx

THREADS, ROUNDS = 16, 20


def test_the_lock_stays_off() -> None:
    """An extension that is not declared safe would have turned it on."""
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("this interpreter has a global lock")
    assert not sys._is_gil_enabled()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def calls() -> list[Callable[[int], bytes]]:
    """What threads do, each with inputs by a number: calls on shared objects, and their making."""
    rng = np.random.default_rng(0)
    w13 = mx.quantize_mxfp4(rng.standard_normal((4, 128, 96), np.float32))
    w2 = mx.quantize_mxfp4(rng.standard_normal((4, 96, 64), np.float32))
    experts = mx.pack_experts(*w13, *w2)
    layer = mx.MoELayer(experts, rng.standard_normal((4, 96), np.float32), top_k=2)
    hidden_states = rng.standard_normal((ROUNDS, 33, 96), np.float32)

    def compute(i: int) -> bytes:
        return layer(hidden_states[i]).tobytes()

    def pack(i: int) -> bytes:
        with mx.use_isa("portable"), mx.num_threads(1 + i % 3):
            again = mx.pack_experts(*w13, *w2)
            topk_weights, topk_ids = mx.topk_softmax(hidden_states[i, :, :4], 2)
            return mx.fused_experts(hidden_states[i], again, topk_weights, topk_ids).tobytes()

    def quantize(i: int) -> bytes:
        blocks, scales = mx.quantize_mxfp4(hidden_states[i])
        return blocks.tobytes() + scales.tobytes() + mx.dequantize_mxfp4(blocks, scales).tobytes()

    return [compute, pack, quantize]


def test_many_threads_compute_what_one_does(calls: list[Callable[[int], bytes]]) -> None:
    expected = [[call(i) for i in range(ROUNDS)] for call in calls]
    start = threading.Barrier(THREADS)

    def work(thread: int) -> list[tuple[int, int]]:
        start.wait()
        wrong = []
        for step in range(ROUNDS * len(calls)):
            what, i = (thread + step) % len(calls), (thread + step) % ROUNDS
            if calls[what](i) != expected[what][i]:
                wrong.append((what, i))
        return wrong

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(work, range(THREADS))) == [[]] * THREADS


SUBINTERPRETER = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

code = '''
try:
    import mxfp4moe._core as core
except ImportError as error:
    print("refused")
else:
    print("taken")
'''
{first}
interpreter = interpreters.create()
error = interpreters.run_string(interpreter, code)
assert error is None, error
{last}
print("ended")
"""


@pytest.mark.parametrize("last", ["", "interpreters.destroy(interpreter)"], ids=["left", "destroyed"])
@pytest.mark.parametrize("first", ["", "import mxfp4moe"], ids=["alone", "beside the main interpreter"])
def test_a_subinterpreter_is_refused(first: str, last: str) -> None:
    """NumPy and this package have one state for a process: whichever refuses, nothing crashes or hangs."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SUBINTERPRETER.format(first=first, last=last)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr  # to which NumPy writes why it refuses
    assert result.stdout == "refused\nended\n"
