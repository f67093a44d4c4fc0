"""Packed files: a header, a table of contents, then page-aligned arrays; docs/packed-files.md has every byte.

This module knows arrays by name and a JSON object `meta`; what they mean is the caller's affair.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxfp4moe import _core
from mxfp4moe._arguments import message
from mxfp4moe._dtypes import DTYPES
from mxfp4moe._file_bytes import FileBytes, FilePages
from mxfp4moe._files import atomic_file
from mxfp4moe._json import MAX_JSON_BYTES, MissingFileError, parse_object, shorten
from mxfp4moe.config import resolve_num_threads
from mxfp4moe.errors import PackedFormatError

# No text starts like this, and a transfer that changes the ends of lines breaks it.
MAGIC = b"\x8aMOE\r\n\x1a\n"
VERSION = 1
ALIGNMENT = 4096
FOLDER_INDEX = "packed_layers.json"  # of a folder with a packed file for each layer

_HEADER = struct.Struct("<8sIIQQ28xI")  # magic, version, crc32 and length of the table, file size, crc32
_CHECKED = _HEADER.size - 4  # the header's checksum covers what stands before it
_PIECE = 64 << 20  # bytes whose checksum is computed at a time, between looks at signals
_DTYPES = {name: dtype for name, dtype in DTYPES.items() if name != "BOOL"}  # of which every byte is valid
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_DIMS = 64  # of NumPy


@dataclass(frozen=True)
class Part:
    """An array to be written; with `by_row`, each index of its first axis has a checksum of its own."""

    name: str
    array: NDArray[Any]
    by_row: bool = False


@dataclass(frozen=True)
class PartInfo:
    """An array in a file, from byte `begin` to `end`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    checksums: tuple[int, ...]
    begin: int
    end: int


def is_packed_file(path: Path) -> bool:
    """Whether the regular file at `path` starts like a packed file."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def write_packed_file(path: str | os.PathLike[str], meta: Mapping[str, Any], parts: Sequence[Part]) -> None:
    """Write `parts` and the JSON object `meta` to a packed file at `path`, atomically."""
    check_byte_order(str(path))
    head, begins, data = _lay_out(meta, parts)
    with atomic_file(Path(path)) as file:
        file.write(head)
        for begin, content in zip(begins, data, strict=False):
            file.seek(begin)
            file.write(content.data)
        file.truncate(begins[-1])


def packed_bytes(meta: Mapping[str, Any], parts: Sequence[Part]) -> bytes:
    """The bytes of the file that `write_packed_file` writes."""
    head, begins, data = _lay_out(meta, parts)
    file = np.zeros(begins[-1], np.uint8)
    file[: len(head)] = np.frombuffer(head, np.uint8)
    for begin, content in zip(begins, data, strict=False):
        file[begin : begin + content.nbytes] = content
    return file.tobytes()


def _lay_out(
    meta: Mapping[str, Any], parts: Sequence[Part]
) -> tuple[bytes, list[int], list[NDArray[np.uint8]]]:
    """Header and table of contents; where each array begins, and the file ends; the bytes of each."""
    arrays = [np.asarray(part.array, order="C") for part in parts]
    data = [array.reshape(-1).view(np.uint8) for array in arrays]
    entries = [
        {
            "name": part.name,
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "crc32": list(_checksums(_split(content, 0, content.size, len(array) if part.by_row else 1))),
        }
        for part, array, content in zip(parts, arrays, data, strict=True)
    ]
    table = json.dumps({"meta": meta, "parts": entries}, allow_nan=False, separators=(",", ":")).encode()
    begins = [_round_up(_HEADER.size + len(table))]
    for content in data:
        begins.append(_round_up(begins[-1] + content.nbytes))
    header = _HEADER.pack(MAGIC, VERSION, zlib.crc32(table), len(table), begins[-1], 0)
    header = header[:_CHECKED] + struct.pack("<I", zlib.crc32(header[:_CHECKED]))
    return header + table, begins, data


class PackedFile(Mapping[str, "np.ndarray[Any, Any]"]):
    """A packed file, memory-mapped where it can be: a mapping from names to read-only arrays.

    Header and table of contents are checked here, so that afterwards every array is known to lie inside the
    file; the checksums of the arrays, by `verify`. The file must not be truncated while it is in use.

    Parameters
    ----------
    path : str or os.PathLike

    Attributes
    ----------
    path : pathlib.Path
    meta : dict
    parts : dict of str to PartInfo
        In the order of the file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    PackedFormatError
        If it is no valid packed file of this version; the message says what was expected and what came.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        check_byte_order(str(path))
        try:
            self._bytes = FileBytes(self.path)
        except MissingFileError:
            raise
        except ValueError as error:
            raise PackedFormatError(str(error)) from None
        if self._bytes.size == 0:
            raise self.error("a packed file", "an empty file")
        table_bytes = self._read_header()
        table = self._json(_HEADER.size, table_bytes)
        if set(table) != {"meta", "parts"} or not isinstance(table["meta"], dict):
            raise self.error("a table of contents with an object meta and parts", shorten(table))
        self.meta: dict[str, Any] = table["meta"]
        self.parts = self._read_parts(table["parts"], _round_up(_HEADER.size + table_bytes))

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __contains__(self, name: object) -> bool:
        return name in self.parts

    def __getitem__(self, name: str) -> NDArray[Any]:
        part = self.parts[name]
        array: NDArray[Any] = self._bytes[part.begin : part.end].view(_DTYPES[part.dtype])
        return array.reshape(part.shape)

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self._bytes.size

    def error(self, expected: str, got: str) -> PackedFormatError:
        """The error of this file."""
        return PackedFormatError(message(str(self.path), expected, got))

    def span(self, names: Sequence[str]) -> NDArray[np.uint8]:
        """The bytes of parts that follow one another in the file, with the padding after each."""
        order = list(self.parts)
        first = order.index(names[0]) if names and names[0] in self.parts else 0
        if not names or order[first : first + len(names)] != list(names):
            raise self.error(f"parts {shorten(list(names))} in this order", shorten(order))
        return self._bytes[self.parts[names[0]].begin : _round_up(self.parts[names[-1]].end)]

    def parts_under(self, prefix: str) -> list[PartInfo]:
        """The parts whose names begin with `prefix` and a slash, in the order of the file."""
        return [part for name, part in self.parts.items() if name.startswith(f"{prefix}/")]

    def pages(self) -> FilePages:
        """The pages of the file; a ValueError where the system gives no way to handle them."""
        return self._bytes.pages()

    def verify(
        self,
        advance: Callable[[int], None] = lambda num_bytes: None,
        is_used: Callable[[str, int], bool] = lambda part, row: True,
    ) -> None:
        """Compare each checksum, and the padding with zeros; `advance` is told how many bytes are done.

        Rows of parts that are not used are left out.

        Raises
        ------
        PackedFormatError
            Naming the first part, and the row of it, that is damaged.
        """
        rows = [
            (part, row, content)
            for part in self.parts.values()
            for row, content in enumerate(_split(self._bytes, part.begin, part.end, len(part.checksums)))
            if is_used(part.name, row)
        ]
        found = _checksums([content for _, _, content in rows])
        for (part, row, content), got in zip(rows, found, strict=True):
            want = part.checksums[row]
            if want != got:
                place = f"part {part.name!r}" + (f", row {row}" if len(part.checksums) > 1 else "")
                raise self.error(f"the checksum {want:#010x} of {place}", f"{got:#010x}: the data is damaged")
            advance(content.end - content.begin)
        ends = [_HEADER.size + self._table_bytes, *(part.end for part in self.parts.values())]
        for end in ends:
            if self._bytes[end : _round_up(end)].any():
                raise self.error(f"zeros after byte {end}, up to the next page", "other bytes")

    def _read_header(self) -> int:
        """Check the header; return the length of the table of contents."""
        start = self._bytes[: _HEADER.size].tobytes()
        if start[: len(MAGIC)] != MAGIC:
            raise self.error(f"a packed file, which starts with {MAGIC!r}", repr(start[: len(MAGIC)]))
        if len(start) < _HEADER.size:
            raise self.error(f"a header of {_HEADER.size} bytes", f"a file of {len(start)} bytes")
        _, version, table_crc, table_bytes, size, crc = _HEADER.unpack(start)
        if crc != zlib.crc32(start[:_CHECKED]):
            raise self.error("an intact header", f"one that its checksum {crc:#010x} does not fit")
        if version != VERSION:
            raise self.error(
                f"a packed file of version {VERSION}",
                f"version {version}: read it with the mxfp4moe that wrote it, or pack the checkpoint again",
            )
        if size != self._bytes.size:
            raise self.error(f"a file of {size} bytes", f"{self._bytes.size}: it is not complete")
        limit = min(size - _HEADER.size, MAX_JSON_BYTES)
        if not 2 <= table_bytes <= limit:
            raise self.error(f"a table of contents of 2 to {limit} bytes", str(table_bytes))
        self._table_bytes, self._table_crc = table_bytes, table_crc
        return int(table_bytes)

    def _json(self, begin: int, num_bytes: int) -> dict[str, Any]:
        text = self._bytes[begin : begin + num_bytes].tobytes()
        if zlib.crc32(text) != self._table_crc:
            raise self.error(
                "an intact table of contents", f"one that its checksum {self._table_crc:#010x} does not fit"
            )
        try:
            return parse_object(text, f"{self.path}: table of contents")
        except ValueError as error:
            raise PackedFormatError(str(error)) from None

    def _read_parts(self, entries: Any, begin: int) -> dict[str, PartInfo]:
        """The parts; where each lies follows from their sizes, not from numbers in the file."""
        if not isinstance(entries, list):
            raise self.error("a list of parts", shorten(entries))
        parts: dict[str, PartInfo] = {}
        for entry in entries:
            part = self._read_part(entry, begin)
            if part.name in parts:
                raise self.error("parts of different names", f"{shorten(part.name)} twice")
            parts[part.name] = part
            begin = _round_up(part.end)
        if begin != self._bytes.size:
            raise self.error(f"a file of {begin} bytes, as its parts need", str(self._bytes.size))
        return parts

    def _read_part(self, entry: Any, begin: int) -> PartInfo:
        if not isinstance(entry, dict) or set(entry) != {"name", "dtype", "shape", "crc32"}:
            raise self.error("a part with name, dtype, shape and crc32", shorten(entry))
        name, dtype, shape, checksums = entry["name"], entry["dtype"], entry["shape"], entry["crc32"]
        if not isinstance(name, str) or not isinstance(dtype, str) or dtype not in _DTYPES:
            raise self.error("a part with a name and a known dtype", shorten([name, dtype]))
        if not _is_ints(shape, 63) or len(shape) > _MAX_DIMS or math.prod(n for n in shape if n) >= 2**60:
            raise self.error(f"the shape of part {shorten(name)}", shorten(shape))
        num_bytes = math.prod(shape) * _DTYPES[dtype].itemsize
        if not _is_ints(checksums, 32) or len(checksums) not in (1, shape[0] if shape else 1):
            raise self.error(f"1 or {shape[:1]} checksums of part {shorten(name)}", shorten(checksums))
        if begin + num_bytes > self._bytes.size:
            got = f"{num_bytes} bytes from byte {begin} in a file of {self._bytes.size}"
            raise self.error(f"part {shorten(name)} inside the file", got)
        return PartInfo(name, dtype, tuple(shape), tuple(checksums), begin, begin + num_bytes)


def check_byte_order(name: str) -> None:
    """Raise on a machine that is not little-endian; packed bytes are the same everywhere."""
    if sys.byteorder != "little":
        raise PackedFormatError(f"{name}: expected a little-endian machine, got a {sys.byteorder}-endian one")


def _is_ints(value: Any, bits: int) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << bits for n in value)


def _round_up(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class _Range:
    """Bytes of an array or of a file, which are sliced when they are needed."""

    data: NDArray[np.uint8] | FileBytes
    begin: int
    end: int


def _split(data: NDArray[np.uint8] | FileBytes, begin: int, end: int, num_rows: int) -> list[_Range]:
    """Bytes `begin` to `end` of `data` as rows of equal size."""
    size = (end - begin) // max(num_rows, 1)
    return [_Range(data, begin + row * size, begin + (row + 1) * size) for row in range(num_rows)]


def _checksums(rows: Sequence[_Range]) -> Iterator[int]:
    """The crc32 of each row, in order; the threads of the package share a row."""
    num_threads = resolve_num_threads(None)
    for row in rows:
        checksum = 0
        for begin in range(row.begin, row.end, _PIECE):
            piece = row.data[begin : min(begin + _PIECE, row.end)]
            checksum = _core.crc32(piece, checksum, num_threads)
        yield checksum
