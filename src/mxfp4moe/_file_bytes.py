"""The bytes of files: mapped where the system can map them, else read; no descriptor stays open."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from mxfp4moe import _core, _unix
from mxfp4moe._arguments import value_error
from mxfp4moe._files import errors_name
from mxfp4moe._json import check_regular_file
from mxfp4moe._placeholders import HEAD_BYTES, check_is_content

_ALIGNMENT = 64  # of what is read into memory: enough for the kernels
_PIECE = 64 << 20  # bytes that are read at a time, between which an interrupt is seen


class FileBytes:
    """The bytes of a regular file; ``[begin:end]`` of it is a read-only array of uint8.

    The file is mapped as a whole. Where the system cannot do that (some network file systems), or would count
    it against a limit of address space, only the slices that are asked for are mapped or else read; they are
    then read from the same file or not at all: one that has changed since is refused.

    Parameters
    ----------
    path : pathlib.Path

    Attributes
    ----------
    path : pathlib.Path
    size : int

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    OSError, ValueError
        If it cannot be opened, or is no regular file, or holds what was left in its place: a Git LFS pointer
        or the page of a failed download.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        check_regular_file(path)
        self._absolute = path.absolute()
        with path.open("rb", buffering=0) as file:
            self._identity = _identity(file)
            self.size = os.fstat(file.fileno()).st_size
            mapped = self.size and _unix.has_unlimited_addresses()
            self._whole = self._map(file, 0, self.size) if mapped else None
        check_is_content(path, self[: min(self.size, HEAD_BYTES)].tobytes())

    def __getitem__(self, place: slice) -> NDArray[np.uint8]:
        begin, end, _ = place.indices(self.size)
        end = max(begin, end)
        if self._whole is not None:
            return self._whole[begin:end]
        with self._absolute.open("rb", buffering=0) as file:
            if _identity(file) != self._identity:
                raise value_error(str(self.path), "the file that was opened", "one that has changed since")
            mapped = self._map(file, begin, end) if end - begin >= mmap.PAGESIZE else None
            return self._read(file, begin, end) if mapped is None else mapped

    def _map(self, file: BinaryIO, begin: int, end: int) -> NDArray[np.uint8] | None:
        start = begin - begin % mmap.ALLOCATIONGRANULARITY
        try:
            mapping = _core.FileMapping(file.fileno(), start, end - start)
        except OSError:  # whatever it is, reading may do
            return None
        return np.frombuffer(memoryview(mapping), np.uint8)[begin - start :]

    def _read(self, file: BinaryIO, begin: int, end: int) -> NDArray[np.uint8]:
        try:
            memory = np.empty(end - begin + _ALIGNMENT, np.uint8)
        except MemoryError:
            what = f"{end - begin} of its {self.size} bytes"
            raise MemoryError(f"{self.path}: cannot be mapped, and no memory is left for {what}") from None
        offset = -memory.__array_interface__["data"][0] % _ALIGNMENT
        result = memory[offset : offset + end - begin]
        with errors_name(self.path):
            file.seek(begin)
            done = 0
            while done < result.size:
                count = file.readinto(result[done : done + _PIECE].data)  # type: ignore[attr-defined]
                if not count:
                    raise value_error(str(self.path), f"{self.size} bytes", f"the end after {begin + done}")
                done += count
        result.flags.writeable = False
        return result


def _identity(file: BinaryIO) -> tuple[int, ...]:
    """What tells whether a name still leads to the same file."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
