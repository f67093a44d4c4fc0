"""Layers that are larger than memory: `memory_limit` beside plain mapped files, in turns, in one cgroup.

    python bench/memory_limit.py --folder /data/scratch --layers 4 --rounds 3

Writes layers with random weights of the widths of gpt-oss-20b to a packed folder, half of which fits into the
cgroup, and decodes tokens one by one. Experts are chosen by Zipf: the router has the logarithms of 1 / rank
as its bias, and what it reads adds noise. A layer reads what the layer before it has read and what that one
has added. Needs the right to make a cgroup.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import mxfp4moe as mx
from mxfp4moe.checkpoint.packed import layer_file_name, write_index

K, INTERMEDIATE, EXPERTS, TOP_K = 2880, 2880, 32, 4
NOISE = 1.28  # the deviation of a Gumbel variable: then the largest of the sums is drawn by the bias


def make_folder(folder: Path, layers: int) -> None:
    """Write the layers, unless they are there."""
    if (folder / "packed_layers.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(layers):
        rng = np.random.default_rng(number)
        w13 = rng.integers(0, 256, (EXPERTS, 2 * INTERMEDIATE, K // 2), np.uint8)
        w2 = rng.integers(0, 256, (EXPERTS, K, INTERMEDIATE // 2), np.uint8)
        # So that what a layer adds is about a third of what it reads.
        s13 = np.full((EXPERTS, 2 * INTERMEDIATE, K // 32), 120, np.uint8)
        s2 = np.full((EXPERTS, K, INTERMEDIATE // 32), 119, np.uint8)
        router = rng.standard_normal((EXPERTS, K), np.float32) * NOISE / K**0.5
        bias = -np.log(rng.permutation(EXPERTS) + 1.0).astype(np.float32)
        experts = mx.pack_experts(w13, s13, w2, s2)
        mx.MoELayer(experts, router, bias, top_k=TOP_K).save(folder / layer_file_name(number))
    write_index(folder, "random", layers, range(layers))


def drop_cached(folder: Path) -> None:
    """Give back what the cache has of the files."""
    for path in folder.glob("*.packed"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_read() -> int:
    """What this process has caused to be read from disks."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def decode(args: argparse.Namespace) -> None:
    """Decode tokens in this process, and print what it took as JSON."""
    if args.cgroup:
        (args.cgroup / "cgroup.procs").write_text(str(os.getpid()))
    drop_cached(args.folder)
    layers = mx.load_layers(args.folder, memory_limit=args.memory_limit)
    rng = np.random.default_rng(args.seed)
    added: list[float] = []

    def token() -> None:
        x = rng.standard_normal((1, K), np.float32)
        for layer in layers:
            y = layer(x)
            added.append(float(np.linalg.norm(y) / np.linalg.norm(x)))
            x = (x + y) / np.float32(np.sqrt(np.mean((x + y) ** 2)))

    for _ in range(args.tokens // 2):
        token()
    before, started = bytes_read(), time.perf_counter()
    for _ in range(args.tokens):
        token()
    seconds = time.perf_counter() - started
    result = {"tokens/s": args.tokens / seconds, "MB/token": (bytes_read() - before) / args.tokens / 1e6}
    result["added"] = float(np.mean(added))
    caches = [cache for layer in layers if (cache := layer.load_statistics().cache) is not None]
    if caches:
        result["hit rate"] = sum(c.hits for c in caches) / sum(c.hits + c.misses for c in caches)
        result["prefetched"] = sum(c.prefetched for c in caches)
        result["misses"] = sum(c.misses for c in caches)
    print(json.dumps(result))


@contextmanager
def memory_cgroup(limit: int) -> Iterator[Path]:
    """A cgroup of its own with a limit of memory."""
    root = Path("/sys/fs/cgroup")
    is_old = (root / "memory").is_dir()
    group = (root / "memory" if is_old else root) / f"mxfp4moe-bench-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if is_old else "memory.max")).write_text(str(limit))
        yield group
    finally:
        group.rmdir()


def compare(args: argparse.Namespace) -> None:
    """Let both take turns; each is a process of its own in the cgroup."""
    make_folder(args.folder, args.layers)
    size = sum(path.stat().st_size for path in args.folder.glob("*.packed"))
    budget = size // 2
    print(f"{size / 1e6:.0f} MB of experts, {budget / 1e6:.0f} MB of memory for them", flush=True)
    with memory_cgroup(budget + args.overhead * 1_000_000) as group:
        command = [sys.executable, __file__, "--folder", args.folder, "--tokens", args.tokens]
        for number in range(args.rounds):
            for name, options in (("mapped", []), ("memory_limit", ["--memory-limit", budget])):
                call = [*command, *options, "--cgroup", group, "--seed", number, "--decode"]
                output = subprocess.run(
                    list(map(str, call)), capture_output=True, text=True, check=True
                ).stdout
                figures = json.loads(output)
                print(f"{name:14}", *(f"{key} {value:.4g}" for key, value in figures.items()), flush=True)


def main() -> None:
    """Compare, or, in one of the processes, decode."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where the layers are written and kept")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=60, help="of a turn; half as many come before")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--overhead", type=int, default=150, help="MB of the cgroup beside the experts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory-limit", type=int)
    parser.add_argument("--cgroup", type=Path)
    parser.add_argument("--decode", action="store_true")
    args = parser.parse_args()
    decode(args) if args.decode else compare(args)


if __name__ == "__main__":
    main()
