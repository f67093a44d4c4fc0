"""Writing where a process may open no more files: an error, after which nothing is left."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from mxfp4moe._files import atomic_file, atomic_folder


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """A limit that leaves a dozen descriptors more than are open now."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 12, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def _open_all(opened: list[int]) -> None:
    while True:
        opened.append(os.open(os.devnull, os.O_RDONLY))


@pytest.mark.parametrize("num_free", range(12))
@pytest.mark.parametrize("folder_in_it", [False, True])
def test_a_folder_that_cannot_be_finished_is_removed(
    tmp_path: Path, few_descriptors: None, num_free: int, folder_in_it: bool
) -> None:
    """Whether the descriptors end before the folder is made, or while files are written to it."""
    opened: list[int] = []
    try:
        with pytest.raises(OSError, match="Too many open files"):
            _open_all(opened)
        for _ in range(num_free):
            if opened:
                os.close(opened.pop())
        with pytest.raises(OSError, match="Too many open files"), atomic_folder(tmp_path / "a") as folder:
            (folder / "file").write_bytes(b"content")
            if folder_in_it:
                (folder / "folder").mkdir()
                (folder / "folder" / "file").write_bytes(b"content")
            _open_all(opened)
    finally:
        for descriptor in opened:
            os.close(descriptor)
    assert not os.listdir(tmp_path)


def test_a_file_that_cannot_be_finished_is_removed(tmp_path: Path, few_descriptors: None) -> None:
    opened: list[int] = []
    try:
        with pytest.raises(OSError, match="Too many open files"), atomic_file(tmp_path / "a"):
            _open_all(opened)
    finally:
        for descriptor in opened:
            os.close(descriptor)
    assert not os.listdir(tmp_path)
