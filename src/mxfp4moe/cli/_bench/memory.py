"""How much memory and cache there is, and shapes that fit into the memory."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from mxfp4moe.cli._bench.problem import Shape

USED_SHARE = 0.8  # of the available memory that is used at most
_CALL_BYTES = 600 << 20  # of a call: scratch
_CACHE_KIB = 32 << 10


def available_memory() -> int:
    """Bytes that this process may still take: of the machine and of its cgroup."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            limits.append(int(line.split()[1]) << 10)
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        maximum, used = _text(limit).strip(), _text(usage).strip()
        if maximum.isdecimal() and used.isdecimal():
            limits.append(int(maximum) - int(used))
    return max(0, min(limits))


def last_cache_bytes() -> int:
    """Size of the last cache, or what is common where the system does not say."""
    sizes = [
        _text(str(path)).strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    ]
    kibibytes = [int(size[:-1]) for size in sizes if size.endswith("K") and size[:-1].isdecimal()]
    return max(kibibytes, default=_CACHE_KIB) << 10


def fit(shape: Shape, copies: float, available: int, num_tokens: int) -> Shape:
    """`shape` with as many of its experts as `available` bytes allow.

    `copies` of the weights are in memory at a time, beside one expert as float32 and what that takes, and the
    calls of `num_tokens`: results are compared in float64, routing draws a float64 for each expert.
    """
    call = _CALL_BYTES + num_tokens * 24 * (shape.hidden_size + shape.num_experts)
    room = USED_SHARE * available - call - 12 * shape.expert_weights
    num_experts = min(shape.num_experts, int(room // (copies * shape.expert_bytes)))
    if num_experts < shape.top_k:
        raise ValueError(
            f"memory: expected room for {shape.top_k} experts of {shape.title}, "
            f"got {available / 1e9:.1f} GB, enough for {max(0, num_experts)}"
        )
    return replace(shape, num_experts=num_experts)


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
