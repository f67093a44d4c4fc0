"""Checksums of packed files: those of zlib, on the package's own threads, and where there can be none."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest

import mxfp4moe as mx
from mxfp4moe import _core
from mxfp4moe.packed.container import PackedFile, Part, write_packed_file

SIZES = [0, 1, 3, 15, 16, 17, 31, 32, 33, 255, 4096, 16383, 16384, 16385, 3 * 16384 + 5, 1_000_003]


@pytest.mark.emulation
@pytest.mark.parametrize("num_threads", [1, 2, 3, 8])
@pytest.mark.parametrize("size", SIZES)
def test_checksum_is_that_of_zlib(rng: np.random.Generator, size: int, num_threads: int) -> None:
    data = rng.integers(0, 256, size + 3, np.uint8)[3:]  # not aligned
    for start in (0, 1, 0x80000000, 0xFFFFFFFF, int(rng.integers(2**32))):
        assert _core.crc32(data, start, num_threads) == zlib.crc32(data.tobytes(), start)


@pytest.mark.parametrize("byte", [0, 0xFF])
def test_checksum_of_equal_bytes(byte: int) -> None:
    data = np.full(200_000, byte, np.uint8)
    assert _core.crc32(data, 0, 4) == zlib.crc32(data.tobytes())


@pytest.mark.parametrize("at", range(0, 40_000, 1999))
def test_checksum_continues(rng: np.random.Generator, at: int) -> None:
    data = rng.integers(0, 256, 40_000, np.uint8)
    assert _core.crc32(data[at:], _core.crc32(data[:at], 0, 2), 3) == zlib.crc32(data.tobytes())


@pytest.mark.parametrize("by_row", [False, True])
def test_large_files_need_no_python_threads(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, by_row: bool
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    data = rng.integers(0, 256, (4, 3 << 20), np.uint8)
    with mx.num_threads(4):
        write_packed_file(tmp_path / "a", {}, [Part("w", data, by_row)])
        file = PackedFile(tmp_path / "a")
        file.verify()
    rows = list(data) if by_row else [data]
    assert file.parts["w"].checksums == tuple(zlib.crc32(row.tobytes()) for row in rows)


SETUP = """
import atexit, os, resource, sys, threading, time
import numpy as np
from mxfp4moe import _core
from mxfp4moe.packed.container import PackedFile, Part, write_packed_file
path = sys.argv[1]
def write_and_verify():
    write_packed_file(path, {}, [Part("w", np.ones((3, 3 << 20), np.uint8), by_row=True)])
    PackedFile(path).verify()
    print("done", flush=True)
"""
AFTER_MAIN = """
threading.Thread(target=lambda: (threading.main_thread().join(), write_and_verify())).start()
"""
AT_EXIT = """
atexit.register(write_and_verify)
"""
NO_PROCESS = """
if os.getuid() == 0:  # whom the limit does not hold
    os.chdir(os.path.dirname(path))  # whose parents others may not be able to search
    path = os.path.basename(path)
    os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
try:
    threading.Thread(target=print).start()
except RuntimeError:
    pass
else:
    print("no limit")
write_and_verify()
"""


@pytest.mark.parametrize(
    "code", [AFTER_MAIN, AT_EXIT, NO_PROCESS], ids=["after main", "at exit", "no process"]
)
def test_large_files_where_no_thread_can_be_made(tmp_path: Path, code: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder").chmod(0o777)
    command = [sys.executable, "-c", SETUP + code, str(tmp_path / "folder" / "a")]
    environment = os.environ | {"MXFP4MOE_NUM_THREADS": "4"}
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    if "no limit" in result.stdout:
        pytest.skip("this system makes threads all the same")
    assert result.stdout == "done\n"
