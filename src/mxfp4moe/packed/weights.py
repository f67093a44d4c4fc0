"""Packed weights: a spec, which says what they are, and packed bytes; saved, mapped, pickled."""

from __future__ import annotations

import os
from pickle import PickleBuffer
from typing import Any, ClassVar, Generic, Literal, Protocol, Self, SupportsIndex, TypeVar

import numpy as np
from numpy.typing import NDArray

from mxfp4moe import _core
from mxfp4moe._arguments import check_bool, check_choice, message
from mxfp4moe._immutable import Immutable
from mxfp4moe._json import shorten
from mxfp4moe.config import resolve_num_threads
from mxfp4moe.errors import PackedFormatError
from mxfp4moe.formats import WeightFormat
from mxfp4moe.packed.container import PackedFile, Part, check_byte_order, write_packed_file
from mxfp4moe.packed.kinds import file_meta, open_packed_file

Resident = Literal["mapped", "local"]

_Storage = TypeVar("_Storage", bound=_core.PackedStorage, covariant=True)


class Spec(Protocol[_Storage]):
    """Everything that is to be known of packed weights but their bytes."""

    def make_storage(self, data: NDArray[np.uint8] | None = None) -> _Storage:
        """Memory to pack such weights into; or packed bytes that are there, which stay where they are."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them."""

    @classmethod
    def from_json(cls, fields: Any) -> Self:
        """Make one of what `to_json` returned, or raise a TypeError or ValueError that names a field."""


def is_resident_local(resident: Any) -> bool:
    """Whether the argument of this name asks for a copy in memory near the processors."""
    return check_choice("resident", resident, ("mapped", "local")) == "local"


_Spec = TypeVar("_Spec", bound=Spec[Any])
_Bytes = TypeVar("_Bytes", bound=_core.PackedStorage)


class PackedWeights(Immutable, Generic[_Spec, _Bytes]):
    """What packed experts and packed matrices have in common. Immutable."""

    __slots__ = ("__weakref__", "_place", "_storage", "spec")

    _kind: ClassVar[str]
    """The kind of file that holds such weights."""
    _spec_type: ClassVar[type[Spec[Any]]]
    _made_by: ClassVar[str]

    spec: _Spec
    _storage: _Bytes
    _place: str | None
    """Where the packed bytes come from, for errors."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        name = type(self).__name__
        raise TypeError(f"{name}: expected to be made by {self._made_by}(), got a direct call")

    @classmethod
    def _make(cls, spec: _Spec, storage: _Bytes, place: str | None = None) -> Self:
        self = object.__new__(cls)
        self.spec, self._storage, self._place = spec, storage, place
        return self

    @classmethod
    def _from_json(cls, fields: Any, data: NDArray[np.uint8], place: str) -> Self:
        """Weights as `to_json` of a spec describes them, of packed bytes; `place` names both in errors."""
        try:
            spec: Any = cls._spec_type.from_json(fields)
            return cls._make(spec, spec.make_storage(data), place)
        except (TypeError, ValueError) as error:
            raise PackedFormatError(f"{place}: {error}") from None

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        # With protocol 5 the packed bytes are a buffer of their own.
        data = PickleBuffer(self.data) if int(protocol) >= 5 else bytes(self.data)
        return self._unpickle, (_core.layout_version(), self.spec.to_json(), data)

    @classmethod
    def _unpickle(cls, layout_version: int, fields: Any, data: Any) -> Self:
        check_byte_order("pickle")
        if layout_version != _core.layout_version():
            expected = f"packed layout {_core.layout_version()}"
            raise PackedFormatError(f"pickle: expected {expected}, got layout {shorten(layout_version)}")
        return cls._from_json(fields, np.frombuffer(data, np.uint8), "pickle")

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same bytes in the same format, sizes and layout."""
        if not isinstance(other, type(self)):
            return NotImplemented
        if self is other:
            return True
        return self.spec == other.spec and np.array_equal(np.asarray(self.data), np.asarray(other.data))

    def __hash__(self) -> int:
        return hash(self.spec)

    @property
    def nbytes(self) -> int:
        return self._storage.nbytes

    @property
    def data(self) -> memoryview:
        return memoryview(self._storage)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the packed weights to a file at `path`, from which `open` maps them.

        The file appears under its name when it is complete and on the disk, with the permissions of one that
        it replaces, and is the same on every machine.

        Parameters
        ----------
        path : str or os.PathLike

        Raises
        ------
        OSError
            It says why the file cannot be written.

        Examples
        --------
        >>> experts.save("experts.packed")  # doctest: +SKIP
        >>> experts = mx.PackedExperts.open("experts.packed")  # doctest: +SKIP
        """
        kind = self._kind
        write_packed_file(path, file_meta(kind, {}) | {kind: self.spec.to_json()}, self._file_parts(kind))

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, verify: bool = False, resident: Resident = "mapped"
    ) -> Self:
        """Open packed weights that `save` wrote.

        They are memory-mapped read-only: this takes milliseconds, weights are read when they are used, and
        processes that open the same file share one copy. The file must not be shortened while it is in use.

        Parameters
        ----------
        path : str or os.PathLike
        verify : bool, default False
            Read the whole file and compare its checksums.
        resident : {"mapped", "local"}
            "local": the weights are copied into memory of this process, on huge pages, each part by threads
            of the NUMA node that computes with it later. It takes as long as reading the file.

        Returns
        -------
        PackedExperts or PackedLinear
            Of the class that is asked to open it.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        PackedFormatError
            It is no file of such weights, of another version, or damaged.

        Examples
        --------
        >>> import tempfile
        >>> import numpy as np
        >>> import mxfp4moe as mx
        >>> w = np.ones((2, 64, 32), np.float32)
        >>> experts = mx.pack_experts(w, None, np.ones((2, 32, 32), np.float32), None, format="bf16")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     experts.save(f"{folder}/layer.packed")
        ...     mx.PackedExperts.open(f"{folder}/layer.packed") == experts
        True
        """
        is_local = is_resident_local(resident)
        file = open_packed_file(path, cls._kind, check_bool("verify", verify))
        weights = cls._from_file(file, cls._kind)
        return weights._local() if is_local else weights

    def _local(self) -> Self:
        """The same weights in new memory, each part near the processors that compute with it."""
        storage = self.spec.make_storage()
        self._storage.copy_to(storage, resolve_num_threads(None))
        return self._make(self.spec, storage, self._place)

    @property
    def _num_file_rows(self) -> int:
        """How many rows of equal size, each with a checksum, a part of a packed file has."""
        return 1

    def _file_parts(self, prefix: str) -> list[Part]:
        """The parts of a packed file that hold the packed bytes, in their order."""
        data, count = np.asarray(self.data), self._num_file_rows
        return [
            Part(f"{prefix}/{name}", data[begin : begin + count * size].reshape(count, size), by_row=True)
            for name, begin, size in self._storage.parts()
        ]

    @classmethod
    def _from_file(cls, file: PackedFile, prefix: str, fields: Any = None) -> Self:
        """Weights whose packed bytes are those of the mapped file; the inverse of `_file_parts`.

        Their spec is what the file has under `prefix`, unless its `fields` are given.
        """
        names = [part.name for part in file.parts_under(prefix)]
        data = file.span(names) if names else np.empty(0, np.uint8)
        fields = file.meta.get(prefix) if fields is None else fields
        weights = cls._from_json(fields, data, f"{file.path}: {prefix}")
        sizes = {name: (weights._num_file_rows, size) for name, _, size in weights._storage.parts()}
        expected = [(f"{prefix}/{name}", "U8", shape) for name, shape in sizes.items()]
        found = [(part.name, part.dtype, part.shape) for part in map(file.parts.__getitem__, names)]
        if found != expected:
            raise file.error(f"parts {shorten(expected)}", shorten(found))
        return weights

    def _unpack_error(self, matrix: str, expected: str, got: str) -> PackedFormatError:
        """The error of packed bytes of a matrix that hold something else than they are said to hold."""
        place = f"packed {matrix}"
        return PackedFormatError(message(f"{self._place}: {place}" if self._place else place, expected, got))

    def _zero_points(
        self, matrix: str, format: WeightFormat, block_bytes: NDArray[np.uint8], num_groups: int
    ) -> NDArray[Any] | None:
        """The zero points of the groups of a matrix, of which each K-block has a copy; None without any."""
        if format.zero_points is None:
            return None
        by_group = block_bytes.reshape(*block_bytes.shape[:-1], num_groups, -1)
        if (by_group != by_group[..., :1]).any():
            raise self._unpack_error(matrix, "one zero point for each group", "several")
        zeros = np.ascontiguousarray(by_group[..., 0]).view(format.zero_points.dtype)
        if zeros.max() > format.zero_points.maximum:
            expected = f"zero points of at most {format.zero_points.maximum}"
            raise self._unpack_error(matrix, expected, str(zeros.max()))
        return zeros
