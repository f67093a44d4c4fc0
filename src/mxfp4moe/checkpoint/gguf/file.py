"""The GGUF format: metadata, tensor descriptions, then aligned data; little-endian throughout.

Everything is checked against the size of the file before it is used, so that a damaged file ends in an error.
(The reader of the gguf package steps through a wrong array length element by element, up to 2^64 of them.)
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import value_error
from mxfp4moe._file_bytes import FileBytes
from mxfp4moe._json import shorten

MAGIC = b"GGUF"
BLOCKS = {
    "MXFP4": (32, 17),
    "NVFP4": (64, 36),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136),
}
"""Types of blocks: their elements, and their bytes, which are scales and then codes."""

_VERSIONS = (2, 3)
_ALIGNMENT = 32  # unless general.alignment says otherwise
_MAX_DIMS = 4
_MAX_NESTING = 8
# These bound what stands before the data; real files need a tenth of them at most.
_MAX_HEADER_BYTES = 64 << 20
_MAX_ENTRIES = 100_000  # metadata keys, and tensors
_MAX_ITEMS = 2_000_000  # strings and arrays in arrays
_MAX_NAME_BYTES = 65_535  # of a key (as the format says) and of a tensor
_MAX_VALUE_BYTES = 65_535  # of a string or array that is kept
_FIRST_READ = 1 << 16
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}

# Each type has a name, the dtype in which a tensor is returned, and the elements and bytes of a block.
_TYPES: dict[int, tuple[str, Any, int, int]] = {
    0: ("F32", np.dtype("<f4"), 1, 4),
    1: ("F16", np.dtype("<f2"), 1, 2),
    26: ("I32", np.dtype("<i4"), 1, 4),
    30: ("BF16", np.dtype(ml_dtypes.bfloat16), 1, 2),
}
_TYPES |= {
    number: (name, np.dtype(np.uint8), *BLOCKS[name])
    for number, name in {
        2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K",
        14: "Q6_K", 20: "IQ4_NL", 23: "IQ4_XS", 39: "MXFP4", 40: "NVFP4",
    }.items()
}  # fmt: skip
_OTHER_TYPES = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0",
}  # fmt: skip


class Omitted:
    """A value that is not kept in memory."""

    def __repr__(self) -> str:
        return "a long value, or an array of strings or arrays"


OMITTED = Omitted()


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `begin` is an offset in the data; the last axis is contiguous."""

    type: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int | None

    def __str__(self) -> str:
        return f"{self.type} {list(self.shape)}"


def is_gguf_file(path: Path) -> bool:
    """Whether `path` is named like a GGUF file or, as in caches of downloads, starts like one."""
    if path.suffix.lower() == ".gguf":
        return True
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:  # of paths that cannot be opened, the caller says more
        return False


class GgufFile:
    """A GGUF file, memory-mapped where it can be.

    Attributes
    ----------
    path : pathlib.Path
    metadata : dict of str to int, float, bool, str or ndarray
        Without arrays of strings or arrays, and what has more than 65535 bytes.
    omitted : dict of str to Omitted
        Those, by the same keys.
    infos : dict of str to TensorInfo
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._bytes = FileBytes(self.path)
        if self._bytes.size < 24:
            raise value_error(str(self.path), "a GGUF file", f"a file of {self._bytes.size} bytes")
        cursor = _Cursor(self._bytes)
        if cursor.take(4) != MAGIC:
            raise value_error(str(self.path), "a GGUF file", "one that does not begin with GGUF")
        version = cursor.scalar("<I")
        if version not in _VERSIONS:
            raise value_error(f"{self.path}: version", "2 or 3, little-endian", str(version))
        num_tensors = cursor.count(24, "tensors", _MAX_ENTRIES)
        num_keys = cursor.count(13, "metadata keys", _MAX_ENTRIES)
        self.metadata: dict[str, Any] = {}
        self.omitted: dict[str, Omitted] = {}
        self._read_metadata(cursor, num_keys)
        alignment = self.value("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise value_error(f"{self.path}: general.alignment", "a power of two", shorten(alignment))
        self.infos: dict[str, TensorInfo] = {}
        for _ in range(num_tensors):
            self._read_info(cursor, alignment)
        self._begin = -(-cursor.position // alignment) * alignment
        self._check_offsets()

    def value(self, key: str, default: Any) -> Any:
        """The value of a key, which may be `OMITTED`; `default` without one."""
        return self.omitted.get(key) or self.metadata.get(key, default)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return tensor `name` as a read-only view; blocks as uint8, with a last axis of their bytes."""
        info = self.infos[name]
        dtype = next((entry[1] for entry in _TYPES.values() if entry[0] == info.type), None)
        if dtype is None or info.nbytes is None:
            expected = " or ".join(entry[0] for entry in _TYPES.values())
            raise value_error(f"{self.path}: tensor {name}", expected, str(info))
        shape = info.shape
        if info.type in BLOCKS:
            elements, nbytes = BLOCKS[info.type]
            shape = (*shape[:-1], shape[-1] // elements, nbytes)
        begin = self._begin + info.begin
        data = self._bytes[begin : begin + info.nbytes]
        array: NDArray[Any] = data.view(dtype).reshape(shape)
        if not array.flags.aligned:  # general.alignment may be 1
            array = array.copy()
            array.flags.writeable = False
        return array

    def _read_metadata(self, cursor: _Cursor, num_keys: int) -> None:
        for _ in range(num_keys):
            key = cursor.name()
            if key in self.metadata or key in self.omitted:
                raise value_error(str(self.path), "each metadata key once", f"{shorten(key)} twice")
            value = cursor.value(cursor.scalar("<I"))
            (self.omitted if value is OMITTED else self.metadata)[key] = value

    def _read_info(self, cursor: _Cursor, alignment: int) -> None:
        name = cursor.name()
        place = f"{self.path}: tensor {shorten(name)}"
        if name in self.infos:
            raise value_error(place, "one tensor of that name", "two")
        num_dims = cursor.scalar("<I")
        if num_dims > _MAX_DIMS:
            raise value_error(place, f"at most {_MAX_DIMS} axes", str(num_dims))
        shape = tuple(cursor.scalar("<Q") for _ in range(num_dims))[::-1]
        number, begin = cursor.scalar("<I"), cursor.scalar("<Q")
        if begin % alignment:
            raise value_error(place, f"an offset that is a multiple of {alignment}", str(begin))
        nbytes = None
        if number in _TYPES:
            kind, _, block, block_bytes = _TYPES[number]
            if not shape or shape[-1] % block or 0 in shape:
                expected = f"sizes above 0, the last a multiple of {block}"
                raise value_error(place, expected, f"{kind} {list(shape)}")
            nbytes = math.prod(shape) // block * block_bytes
        else:
            kind = _OTHER_TYPES.get(number, f"type {number}")
        self.infos[name] = TensorInfo(kind, shape, begin, nbytes)

    def _check_offsets(self) -> None:
        """Tensors lie in the file and do not overlap."""
        end, previous, size = 0, "", max(self._bytes.size - self._begin, 0)
        for name, info in sorted(self.infos.items(), key=lambda item: item[1].begin):
            place = f"{self.path}: tensor {shorten(name)}"
            if info.begin < end:
                raise value_error(place, f"data that begins after {shorten(previous)}", str(info.begin))
            end, previous = info.begin + (info.nbytes or 1), name
            if end > size:
                expected = f"data that ends in the file, at most at {size}"
                raise value_error(place, expected, str(end))


class _Cursor:
    """Reads one item after the other; never beyond the end of the file, nor a header without bounds."""

    def __init__(self, file: FileBytes) -> None:
        self._file, self._source, self.position = file, str(file.path), 0
        self._limit = min(file.size, _MAX_HEADER_BYTES)
        self._head = b""  # as much of the file as was needed so far, and some more
        self._items_left = _MAX_ITEMS

    def take(self, num_bytes: int) -> bytes:
        begin = self.pass_over(num_bytes)
        return self._head[begin : self.position]

    def pass_over(self, num_bytes: int) -> int:
        """Move on; return where it was."""
        begin, end = self.position, self.position + num_bytes
        if end > self._limit:
            got = "the end of the file" if self._limit == self._file.size else "a header without an end"
            limit = "" if self._limit == self._file.size else f" of a header of at most {self._limit}"
            raise value_error(self._source, f"{num_bytes} bytes at {begin}{limit}", got)
        if end > len(self._head):
            self._head = self._file[: min(max(2 * end, _FIRST_READ), self._limit)].tobytes()
        self.position = end
        return begin

    def scalar(self, layout: str) -> Any:
        begin = self.pass_over(struct.calcsize(layout))
        return struct.unpack_from(layout, self._head, begin)[0]

    def count(self, item_bytes: int, what: str, most: int | None = None) -> int:
        """A number of items that have at least `item_bytes` each: at most what the file can hold."""
        number = int(self.scalar("<Q"))
        limit = (self._file.size - self.position) // item_bytes
        limit = limit if most is None else min(limit, most)
        if number > limit:
            raise value_error(f"{self._source}: number of {what}", f"at most {limit}", str(number))
        return number

    def name(self) -> str:
        """A key, or the name of a tensor."""
        return _decode(self.take(self.count(1, "bytes of a name", _MAX_NAME_BYTES)), self._source)

    def value(self, kind: int) -> Any:
        """A value of this type, or OMITTED."""
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            data = self.take(self.count(1, "bytes of a string"))
            return _decode(data, self._source) if len(data) <= _MAX_VALUE_BYTES else OMITTED
        if kind != _ARRAY:
            raise value_error(self._source, "a metadata type of 0 to 12", str(kind))
        return self._array(_MAX_NESTING)

    def _array(self, nesting: int) -> NDArray[Any] | Omitted:
        kind = self.scalar("<I")
        if kind in _SCALARS:
            dtype = np.dtype(_SCALARS[kind])
            count = self.count(dtype.itemsize, "elements of an array")
            begin = self.pass_over(dtype.itemsize * count)
            if dtype.itemsize * count <= _MAX_VALUE_BYTES:
                return np.frombuffer(self._head[begin : self.position], dtype)
        elif kind == _STRING:
            for _ in range(self._items(8, "strings of an array")):
                self.pass_over(self.scalar("<Q"))
        elif kind == _ARRAY and nesting:
            for _ in range(self._items(12, "arrays of an array")):
                self._array(nesting - 1)
        else:
            raise value_error(self._source, "an array of scalars, strings or arrays", f"of type {kind}")
        return OMITTED

    def _items(self, item_bytes: int, what: str) -> int:
        """A number of items that are passed over one by one, so that the file may have so many in all."""
        number = self.count(item_bytes, what, self._items_left)
        self._items_left -= number
        return number


def _decode(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise value_error(source, "text in UTF-8", shorten(data)) from None
