"""The thread pool as a Python program sees it, and its C++ stress test.

What could disturb the test run itself, or be disturbed by it, runs in an interpreter of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT

import mxfp4moe as mx

CPP = ROOT / "src" / "cpp"

# Each script starts with a call that is large enough to be worth several threads.
PRELUDE = """
import os, sys, threading, time
import numpy as np
import mxfp4moe as mx
from mxfp4moe import _core

values = np.random.default_rng(0).standard_normal((256, 4096), np.float32)

def call(num_threads):
    with mx.num_threads(num_threads):
        blocks, scales = mx.quantize_mxfp4(values)
    return blocks.tobytes() + scales.tobytes()

"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc or forks")


def run_script(script: str) -> str:
    """Output of `script`, which must end by itself, with status 0 and nothing on stderr."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PRELUDE + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"MXFP4MOE_NUM_THREADS": "3"},
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


# The stage `sanitizers` runs the same program in each merge.
@pytest.mark.nightly
def test_pool_stress(tmp_path: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or not CPP.is_dir():
        pytest.skip("needs a C++ compiler and the sources")
    sources = [ROOT / "tests/cpp/pool_test.cpp"]
    sources += (CPP / "threads" / f"{name}.cpp" for name in ("cpus", "interrupt", "pool"))
    sources += (CPP / "platform" / "linux").glob("*.cpp")
    program = tmp_path / "pool_test"
    options = ["-std=c++17", "-O1", "-pthread", f"-I{CPP}"]
    subprocess.run([compiler, *options, *sources, "-o", program], check=True)
    result = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (0, "ok\n", "")


@linux
def test_threads_are_made_when_needed() -> None:
    output = run_script("""
        def count():
            return len(os.listdir("/proc/self/task"))

        before = count()
        assert _core.num_workers() == 0
        call(1)
        assert (_core.num_workers(), count()) == (0, before)
        call(3)
        assert (_core.num_workers(), count()) == (2, before + 2)
        call(2)
        assert (_core.num_workers(), count()) == (2, before + 2)
        _core.release_workers()
        assert _core.num_workers() == 0
        call(2)
        assert _core.num_workers() == 1
        print("done")
    """)
    assert output == "done\n"


@linux
def test_workers_run_where_the_caller_may() -> None:
    output = run_script("""
        def masks():
            tasks = [f"/proc/self/task/{task}" for task in os.listdir("/proc/self/task")]
            workers = [task for task in tasks if open(task + "/comm").read().startswith("mxfp4moe")]
            return [os.sched_getaffinity(int(worker.rpartition("/")[2])) for worker in workers]

        def bound_call(cpus):
            os.sched_setaffinity(threading.get_native_id(), cpus)
            assert call(3) == expected
            assert masks() == [cpus, cpus], (masks(), cpus)

        expected = call(1)
        cpus = os.sched_getaffinity(0)
        for subset in ({min(cpus)}, {max(cpus)}, cpus):
            thread = threading.Thread(target=bound_call, args=[subset])
            thread.start()
            thread.join()
        bound_call({max(cpus)})
        bound_call(cpus)
        print("done")
    """)
    assert output == "done\n"


@pytest.mark.emulation
def test_several_python_threads_at_once() -> None:
    def quantize(index: int) -> bytes:
        with mx.num_threads(1 + index % 4):
            blocks, scales = mx.quantize_mxfp4(inputs[index % 3])
        return bytes(blocks.tobytes() + scales.tobytes())

    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((256, 4096), np.float32) for _ in range(3)]
    with mx.num_threads(1):
        expected = [b"".join(part.tobytes() for part in mx.quantize_mxfp4(values)) for values in inputs]
    with ThreadPoolExecutor(8) as executor:
        for index, result in enumerate(executor.map(quantize, range(80))):
            assert result == expected[index % 3]


@linux
def test_child_of_fork_makes_its_own_threads() -> None:
    output = run_script("""
        expected = call(3)
        for _ in range(5):
            child = os.fork()
            if child == 0:
                fresh = _core.num_workers() == 0
                os._exit(0 if fresh and call(3) == expected and _core.num_workers() == 2 else 1)
            assert os.waitpid(child, 0)[1] == 0
        assert call(3) == expected
        print("done")
    """)
    assert output == "done\n"


@linux
def test_fork_while_another_thread_computes() -> None:
    output = run_script("""
        expected = call(1)
        stop = threading.Event()

        def compute():
            while not stop.is_set():
                call(3)

        threads = [threading.Thread(target=compute) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            child = os.fork()
            if child == 0:
                os._exit(0 if call(3) == expected else 1)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        for thread in threads:
            thread.join()
        print("done")
    """)
    assert output == "done\n"


FORK_DURING_FIRST_CALL = """
import os, signal, sys, threading, time
import numpy as np
import mxfp4moe as mx

def call():
    weights = np.full((2, 64, 16), 0x21, np.uint8), np.full((2, 64, 1), 120, np.uint8)
    down = np.full((2, 32, 16), 0x21, np.uint8), np.full((2, 32, 1), 120, np.uint8)
    experts = mx.pack_experts(*weights, *down)
    states, router_weights = np.ones((1, 32), np.float32), np.ones((1, 1), np.float32)
    mx.fused_experts(states, experts, router_weights, np.zeros((1, 1), np.int32))

thread = threading.Thread(target=call)
thread.start()
time.sleep(float(sys.argv[1]))
child = os.fork()
if child == 0:
    signal.alarm(20)
    call()
    os._exit(0)
thread.join()
sys.exit(os.waitpid(child, 0)[1] != 0)
"""


@linux
@pytest.mark.parametrize("delay", [0, 1e-4, 2e-4, 3e-4, 1e-3])
def test_fork_during_the_first_call(delay) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORK_DURING_FIRST_CALL, str(delay)]
    subprocess.run(command, check=True, timeout=60)


@linux
def test_multiprocessing_fork() -> None:
    output = run_script("""
        import multiprocessing

        expected = call(3)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(call, [1, 2, 3, 4]) == [expected] * 4
        print("done")
    """)
    assert output == "done\n"


def test_exit_with_waiting_workers() -> None:
    assert run_script("call(4); print('done')") == "done\n"


def test_exit_with_daemon_threads_in_flight() -> None:
    output = run_script("""
        def compute():
            while True:
                call(3)

        for _ in range(3):
            threading.Thread(target=compute, daemon=True).start()
        time.sleep(0.1)
        print("done")
    """)
    assert output == "done\n"


def test_waiting_workers_use_no_cpu() -> None:
    output = run_script("""
        call(3)
        before = time.process_time()
        time.sleep(0.5)
        print(time.process_time() - before)
    """)
    # A single worker that spins would use 0.5 s.
    assert float(output) < 0.1
