"""The memory that a call takes beside its result, measured, and what stays of it."""

import subprocess
import sys

import pytest

# Peak and present size of the process, in a process of its own: RSS of what ran before would hide the peak.
PROGRAM = """
import sys
import ml_dtypes
import numpy as np
import mxfp4moe as mx

from mxfp4moe import config

kernels = config._use_kernels(sys.argv[1])
kernels.__enter__()
format = sys.argv[2]
tokens, hidden, intermediate, experts, top_k, threads = map(int, sys.argv[3:])

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(key))

def weights(rows, k):
    if format == "bf16":
        return np.full((experts, rows, k), 0.5, ml_dtypes.bfloat16), None
    return np.full((experts, rows, k // 2), 0x21, np.uint8), np.full((experts, rows, k // 32), 120, np.uint8)

packed = mx.pack_experts(*weights(2 * intermediate, hidden), *weights(hidden, intermediate), format=format)
rng = np.random.default_rng(1)
ids = np.argsort(rng.random((tokens, experts)), axis=1)[:, :top_k].astype(np.int32)
router_weights = np.full((tokens, top_k), 1 / top_k, np.float32)
states = np.ones((tokens, hidden), np.float32)
out = np.zeros_like(states)
mx.fused_experts(states[:1], packed, router_weights[:1], ids[:1], num_threads=threads, out=out[:1])
# What the first call brings in once: code, threads, and the pages of the weights.
np.frombuffer(packed._storage, np.uint8).max()
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins anew
before = status("VmRSS")
mx.fused_experts(states, packed, router_weights, ids, num_threads=threads, out=out)
assert config._TABLES[config.active_kernels()].name == sys.argv[1]
print(status("VmHWM") - before, status("VmRSS") - before)
"""

MIB = 1 << 20


def bound(tokens: int, hidden: int, intermediate: int, experts: int, top_k: int, threads: int) -> int:
    sizes = hidden + intermediate
    scratch = tokens * (2 * sizes * top_k + 4 * hidden) + 32 * experts * sizes
    return min(512 * MIB, scratch) + 4 * MIB * threads


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("weight_format", "sizes"),
    [
        ("mxfp4", (1, 2880, 2880, 4, 4, 2)),
        ("mxfp4", (64, 2880, 2880, 4, 4, 1)),
        ("mxfp4", (1024, 1024, 512, 16, 4, 2)),
        ("mxfp4", (7000, 544, 256, 12, 6, 2)),  # seventeen pairs of output panels
        ("mxfp4", (3000, 160, 512, 8, 4, 2)),  # experts are split
        pytest.param("mxfp4", (16000, 2816, 64, 8, 8, 2), marks=pytest.mark.nightly),  # in chunks
        ("mxfp4", (16384, 32, 32, 64, 64, 1)),  # many slots, little else
        ("mxfp4", (16, 131072, 512, 1, 1, 8)),  # long rows, widened by each thread
        ("bf16", (16384, 1, 1, 8, 8, 1)),  # most is padding
        pytest.param("bf16", (12000, 1025, 33, 8, 8, 1), marks=pytest.mark.nightly),
    ],
    ids=str,
)
def test_memory_of_a_call(native_isa, weight_format, sizes):
    command = [sys.executable, "-c", PROGRAM, native_isa, weight_format, *map(str, sizes)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if "clear_refs" in run.stderr:
        pytest.skip("the peak of a process cannot be reset here")
    assert run.returncode == 0, run.stderr
    peak, kept = map(int, run.stdout.split())
    assert peak <= bound(*sizes)
    assert kept <= 64 * MIB
