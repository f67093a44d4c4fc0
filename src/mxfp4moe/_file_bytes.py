"""The bytes of files: mapped where the system can map them, else read; no descriptor stays open."""

from __future__ import annotations

import mmap
import os
import weakref
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
            self._mapping: _core.FileMapping | None = None
            self._whole = self._map(file, 0, self.size) if mapped else None
        check_is_content(path, self[: min(self.size, HEAD_BYTES)].tobytes())

    def __getitem__(self, place: slice) -> NDArray[np.uint8]:
        begin, end, _ = place.indices(self.size)
        end = max(begin, end)
        if self._whole is not None:
            return self._whole[begin:end]
        with self._open_again() as file:
            mapped = self._map(file, begin, end) if end - begin >= mmap.PAGESIZE else None
            return self._read(file, begin, end) if mapped is None else mapped

    def pages(self) -> FilePages:
        """The pages of the file, which must be mapped as a whole."""
        if self._whole is None or self._mapping is None or not self._mapping.expect_random_reads():
            expected = "a file that is mapped as a whole, on Linux, to keep a limit of memory"
            raise value_error(str(self.path), expected, "one that is not")
        with self._open_again() as file, errors_name(self.path):
            return FilePages(self.path, self._mapping, os.dup(file.fileno()), self.size)

    def _open_again(self) -> BinaryIO:
        file = self._absolute.open("rb", buffering=0)
        if _identity(file) != self._identity:
            file.close()
            raise value_error(str(self.path), "the file that was opened", "one that has changed since")
        return file

    def _map(self, file: BinaryIO, begin: int, end: int) -> NDArray[np.uint8] | None:
        start = begin - begin % mmap.ALLOCATIONGRANULARITY
        try:
            mapping = _core.FileMapping(file.fileno(), start, end - start)
        except OSError:  # whatever it is, reading may do
            return None
        if end - begin == self.size:
            self._mapping = mapping
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


class FilePages:
    """The pages of a mapped file: asked for before they are used, and given back afterwards.

    It keeps a descriptor open. Bytes may be read at any time; those that are not in memory take longer.

    Parameters
    ----------
    path : pathlib.Path
        For errors.
    mapping : FileMapping
        Of the whole file.
    descriptor : int
        Of the same file; it is closed with this object.
    size : int
    """

    def __init__(self, path: Path, mapping: _core.FileMapping, descriptor: int, size: int) -> None:
        self._path, self._mapping, self._descriptor, self._size = path, mapping, descriptor, size
        weakref.finalize(self, os.close, descriptor)

    def check_size(self) -> None:
        """Raise if the file has become shorter: to touch bytes that are gone would end the process."""
        if (now := os.fstat(self._descriptor).st_size) < self._size:
            raise value_error(str(self._path), f"{self._size} bytes, as when it was opened", str(now))

    def request(self, begin: int, end: int) -> None:
        """Begin to read the pages of these bytes."""
        self._mapping.request_pages(*self._rounded(begin, end))

    def drop(self, begin: int, end: int) -> None:
        """Give back the memory of the pages of these bytes, also that of the system's cache."""
        self._mapping.drop_pages(self._descriptor, *self._rounded(begin, end))

    def _rounded(self, begin: int, end: int) -> tuple[int, int]:
        page = mmap.PAGESIZE
        return begin - begin % page, min(end + -end % page, self._size)


def _identity(file: BinaryIO) -> tuple[int, ...]:
    """What tells whether a name still leads to the same file."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
