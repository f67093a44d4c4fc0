"""Memory that DLPack hands over: taken as it is, given back once, and refused where it is damaged."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from ctypes import POINTER, c_int64
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from dlpack import CODES, COPIED, PADDED, READ_ONLY, Exporter, Tensor
from problems import assert_same_bits

from mxfp4moe import _core
from mxfp4moe._arguments import as_array, as_output

VERSIONS = ((0, 8), (1, 0), (1, 3))
FLOAT32 = (np.float32,)


def floats(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def taken(exporter: Any, dtype: Any = np.float32) -> np.ndarray:
    return as_array("w", exporter, (dtype,))


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize("dtype", CODES, ids=lambda dtype: dtype.__name__)
def test_every_dtype_is_taken_without_a_copy(dtype: Any, version: tuple[int, int]) -> None:
    given = (np.arange(12) % 4).astype(dtype).reshape(3, 4)
    small = CODES[dtype][1] < 8
    exporter = Exporter(given, version=version, flags=PADDED if small else 0)
    if small and version[0] < 1:  # It cannot say that an element takes a whole byte.
        with pytest.raises(
            TypeError, match=r"w: expected an array, got .*Exporter \(elements of DLPack's type 17 "
        ):
            taken(exporter, dtype)
        return
    got = taken(exporter, dtype)
    assert_same_bits(got.view(f"u{given.itemsize}"), given.view(f"u{given.itemsize}"))
    assert got.dtype == given.dtype
    assert np.shares_memory(got, given)


def test_pairs_of_four_bits_are_bytes() -> None:
    def pairs(tensor: Tensor) -> None:
        tensor.code, tensor.bits, tensor.lanes = 17, 4, 2

    given = np.arange(8, dtype=np.uint8)
    assert taken(Exporter(given, change=pairs), np.uint8).tolist() == given.tolist()
    with pytest.raises(TypeError, match="w: expected an array, got .*4 bits and 2 lanes"):
        taken(Exporter(given, change=pairs, flags=PADDED), np.uint8)


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize(
    "view",
    [
        lambda a: a,
        lambda a: a[::2, 1:],
        lambda a: a[::-1, ::-3],
        lambda a: a.T,
        lambda a: np.broadcast_to(a[:1], (5, 6)),
        lambda a: a[2, 3, ...],
        lambda a: a[:, :0],
        lambda a: a[:1, None, 2:3],
    ],
    ids=["whole", "part", "backwards", "transposed", "repeated", "scalar", "empty", "ones"],
)
def test_strides_are_kept(view: Callable[[np.ndarray], Any], version: tuple[int, int]) -> None:
    given = view(floats(4, 6))
    got = taken(Exporter(given, version=version))
    assert got.shape == given.shape
    assert np.array_equal(got, given)
    assert given.size == 0 or np.shares_memory(got, given)


def test_missing_strides_are_those_of_c_order_and_one_that_is_not_used_may_be_anything() -> None:
    def no_strides(tensor: Tensor) -> None:
        tensor.strides = POINTER(c_int64)()

    def wild_stride(tensor: Tensor) -> None:
        tensor.strides[1] = -(2**63)

    assert np.array_equal(taken(Exporter(floats(2, 3, 4), change=no_strides)), floats(2, 3, 4))
    assert np.array_equal(taken(Exporter(floats(2, 1, 4), change=wild_stride)), floats(2, 1, 4))


def test_offset_counts_bytes_and_what_is_not_aligned_is_copied() -> None:
    def shift(by: int) -> Callable[[Tensor], None]:
        def change(tensor: Tensor) -> None:
            tensor.data, tensor.byte_offset = tensor.data - 64, 64 + by

        return change

    memory = floats(8)
    assert np.array_equal(taken(Exporter(memory[:5], change=shift(8))), memory[2:7])
    got = taken(Exporter(memory[:5], change=shift(1)))
    assert got.flags.aligned
    assert got.tobytes() == memory.tobytes()[1:21]


@pytest.mark.parametrize(
    "version, flags, writeable",
    [
        ((0, 8), 0, False),  # It cannot say.
        ((1, 0), 0, True),
        ((1, 0), READ_ONLY, False),
        ((1, 0), COPIED, False),  # What is written there would be lost.
        ((1, 0), PADDED | 1 << 40, True),
    ],
)
def test_memory_is_written_only_if_its_owner_says_so(version: Any, flags: int, writeable: bool) -> None:
    given = floats(3)
    got = as_output("out", Exporter(given, version=version, flags=flags))
    assert got.flags.writeable == writeable
    if writeable:
        got[...] = 7
        assert given.tolist() == [7, 7, 7]


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_memory_is_given_back_once_when_the_last_view_is_gone(version: tuple[int, int]) -> None:
    exporter = Exporter(floats(4, 6), version=version)
    part = taken(exporter)[1:, ::2].reshape(-1)[1:]
    rows = taken(exporter).T[2:]
    assert (exporter.exported, exporter.deleted) == (2, 0)
    del part
    assert exporter.deleted == 1
    assert rows[0, 0] == 2
    del rows
    assert exporter.deleted == 2


def change_of(**values: Any) -> Callable[[Tensor], None]:
    def change(tensor: Tensor) -> None:
        for name, value in values.items():
            setattr(tensor, name, value)

    return change


def axis(number: int, size: int) -> Callable[[Tensor], None]:
    def change(tensor: Tensor) -> None:
        tensor.shape[number] = size

    return change


def stride(number: int, elements: int) -> Callable[[Tensor], None]:
    def change(tensor: Tensor) -> None:
        tensor.strides[number] = elements

    return change


DAMAGES = {
    "no_lanes": (change_of(lanes=0), TypeError, "32 bits and 0 lanes"),
    "two_lanes": (change_of(lanes=2), TypeError, "32 bits and 2 lanes"),
    "bits_of_no_float": (change_of(bits=24), TypeError, "type 2 with 24 bits"),
    "no_bits": (change_of(bits=0), TypeError, "type 2 with 0 bits"),
    "unknown_code": (change_of(code=200), TypeError, "type 200 with 32 bits"),
    "opaque": (change_of(code=3, bits=64), TypeError, "type 3 with 64 bits"),
    "complex": (change_of(code=5, bits=64), TypeError, "type 5 with 64 bits"),
    "null_data": (change_of(data=None), ValueError, "a null pointer"),
    "null_data_and_offset": (change_of(data=None, byte_offset=64), ValueError, "a null pointer"),
    "null_shape": (change_of(shape=POINTER(c_int64)()), ValueError, "no shape"),
    "negative_axes": (change_of(ndim=-1), ValueError, "a shape of -1 axes"),
    "too_many_axes": (change_of(ndim=65), ValueError, "a shape of 65 axes"),
    "negative_size": (axis(0, -1), ValueError, "an axis of size -1"),
    "least_size": (axis(1, -(2**63)), ValueError, f"an axis of size {-(2**63)}"),
    "large_size": (axis(1, 2**62), ValueError, f"an axis of size {2**62}"),
    "large_product": (axis(0, 2**60), ValueError, f"an axis of size {2**60}"),
    "large_stride": (stride(0, 2**61), ValueError, f"a stride of {2**61} elements"),
    "least_stride": (stride(1, -(2**63)), ValueError, f"a stride of {-(2**63)} elements"),
    "before_memory": (stride(0, -(2**46)), ValueError, "elements beyond the ends of memory"),
    "large_offset": (change_of(byte_offset=2**64 - 1), ValueError, f"an offset of {2**64 - 1} bytes"),
    "last_address": (change_of(data=2**64 - 8), ValueError, "elements beyond the ends of memory"),
    "other_device": (change_of(device_type=2, device_id=3), TypeError, "on CUDA 3, not in the CPU's memory"),
}  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_capsules_are_refused_and_given_back(name: str, version: tuple[int, int]) -> None:
    change, error, message = DAMAGES[name]
    exporter = Exporter(floats(3, 4), version=version, change=change)
    for take in (taken, lambda value: as_output("w", value)):
        with pytest.raises(error, match=f"w: expected an array, got an object of type Exporter .*{message}"):
            take(exporter)
    assert exporter.exported == exporter.deleted > 0


def test_an_empty_array_needs_no_memory_but_a_shape() -> None:
    empty = np.zeros((3, 0, 5), np.float32)
    assert taken(Exporter(empty, change=change_of(data=None))).shape == (3, 0, 5)
    with pytest.raises(ValueError, match="an axis of size -5"):
        taken(Exporter(empty, change=axis(2, -5)))
    with pytest.raises(ValueError, match=f"an axis of size {2**62}"):
        taken(Exporter(empty, change=axis(0, 2**62)))


@pytest.mark.parametrize("version", [(2, 0), (2**32 - 1, 0)])
def test_newer_layouts_of_the_struct_are_refused_and_given_back(version: tuple[int, int]) -> None:
    exporter = Exporter(floats(3), version=version)
    with pytest.raises(ValueError, match=f"w: expected an array, got .*version {version[0]} of DLPack"):
        taken(exporter)
    assert exporter.exported == exporter.deleted == 1


class Wrong:
    """Its method returns `result`, whatever that is."""

    def __init__(self, result: Any, device: Any = (1, 0)) -> None:
        self.result, self.device = result, device

    def __dlpack_device__(self) -> Any:
        return self.device

    def __dlpack__(self, **_: Any) -> Any:
        return self.result


@pytest.mark.parametrize("result", [None, 3, "dltensor", floats(2), (1, 2)], ids=repr)
def test_what_is_no_capsule_is_refused(result: Any) -> None:
    with pytest.raises(TypeError, match="w: expected an array, got .*instead of a new DLPack capsule"):
        taken(Wrong(result))


@pytest.mark.parametrize("name", [b"used_dltensor", b"used_dltensor_versioned", b"dltensor_", b"x"])
def test_capsules_of_other_names_are_refused(name: bytes) -> None:
    with pytest.raises(TypeError, match="w: expected an array, got .*instead of a new DLPack capsule"):
        taken(Wrong(Exporter(floats(2)).capsule(name)))


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_a_capsule_is_taken_once(version: tuple[int, int]) -> None:
    exporter = Exporter(floats(2), version=version)
    again = Wrong(exporter.capsule())
    assert taken(again).tolist() == [0, 1]
    with pytest.raises(TypeError, match="instead of a new DLPack capsule"):
        taken(again)
    assert exporter.deleted == 1


@pytest.mark.parametrize(
    "device, name",
    [((2, 0), "CUDA 0"), ((8, 1), "Metal 1"), ((10, 0), "ROCm 0"), ((99, 0), "device type 99 0")],
)
def test_other_devices_are_refused_by_name_before_they_are_asked_for_memory(device: Any, name: str) -> None:
    exporter = Exporter(floats(2), device=device)
    with pytest.raises(TypeError, match=f"w: expected an array, got .*on {name}, not in the CPU's memory"):
        taken(exporter)
    assert exporter.exported == 0


@pytest.mark.parametrize("device", [None, 1, (), (1,), (1, 0, 0), ("cpu", 0)], ids=repr)
def test_a_device_that_is_none_is_refused(device: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="w: expected an array, got an object of type Wrong"):
        taken(Wrong(None, device))


class Refusing:
    """Its DLPack raises `error`; what it has of NumPy's protocol raises too, or gives an array."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **_: Any) -> Any:
        raise self.error


class Converting(Refusing):
    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return floats(3)


class RefusingBoth(Refusing):
    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise RuntimeError("no array either")


@pytest.mark.parametrize("error", [BufferError, RuntimeError, TypeError, ValueError])
def test_where_dlpack_is_refused_numpys_protocol_is_asked(error: type[Exception]) -> None:
    reason = error("needs .detach() first")
    assert taken(Converting(reason)).tolist() == [0, 1, 2]
    for kind in (Refusing, RefusingBoth):
        with pytest.raises(
            TypeError, match=rf"w: expected an array, got .*{kind.__name__} \(needs .detach\(\) first"
        ):
            taken(kind(reason))
    with pytest.raises(TypeError, match=r"out: expected an array, got .*\(needs .detach\(\) first"):
        as_output("out", Converting(reason))  # It would be written to a copy.


def test_the_buffer_is_guarded() -> None:
    memory = _core.DLPackMemory(Exporter(floats(4), flags=READ_ONLY).capsule())
    with pytest.raises(BufferError):
        memoryview(memory)  # Nothing has been checked yet.
    memory.export(4)
    assert memoryview(memory).readonly
    with pytest.raises(BufferError):
        zlib.crc32(memory)  # It asks for bytes that follow each other.
    with pytest.raises((BufferError, TypeError)):
        io.BytesIO(bytes(16)).readinto(memory)  # It asks for memory to write to.


def test_bits_of_small_floats_are_refused_with_the_view_that_makes_them_numbers() -> None:
    for array in (np.zeros(3, np.uint16), np.zeros(3, np.int16), np.zeros(3, "V2")):
        with pytest.raises(TypeError, match=r"x: expected .*; if .*, pass x.view\(ml_dtypes.bfloat16\)$"):
            as_array("x", array, (np.float32, ml_dtypes.bfloat16))
    with pytest.raises(
        TypeError, match=r"pass x.view\(ml_dtypes.float8_e4m3fn\) or x.view\(ml_dtypes.float8_e5m2\)$"
    ):
        as_array("x", np.zeros(3, "V1"), (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, np.uint8))
    swapped = np.array([1, 2]).astype(">u2")
    with pytest.raises(TypeError, match=r"pass x.astype\(np.uint16\).view\(ml_dtypes.bfloat16\)$"):
        as_array("x", swapped, (ml_dtypes.bfloat16,))
    with pytest.raises(TypeError, match=r"pass np.asarray\(x\).view\(ml_dtypes.bfloat16\)$"):
        as_array("x", memoryview(np.zeros(3, np.uint16)), (ml_dtypes.bfloat16,))


def test_other_numbers_are_refused_with_the_conversion_that_is_left_to_the_caller() -> None:
    for array in (np.zeros(3), np.zeros(3, np.int64), np.zeros(3, ml_dtypes.float8_e5m2)):
        with pytest.raises(TypeError, match=r"x: expected .*; pass x.astype\(np.float32\)$"):
            as_array("x", array, (np.float32, ml_dtypes.bfloat16))
    for value in ([1.0, 2.0], [[1], [2]], (0.5,), Exporter(np.zeros(3))):
        with pytest.raises(TypeError, match=r"x: expected .*; pass np.asarray\(x\).astype\(np.float32\)$"):
            as_array("x", value, (np.float32, ml_dtypes.bfloat16))
    for array in (np.zeros(3, bool), np.zeros(3, "U1"), np.zeros(3, [("a", "f4")]), np.zeros(3, complex)):
        with pytest.raises(TypeError, match=r"x: expected .* and shape \(3,\)$"):
            as_array("x", array, (np.float32, ml_dtypes.bfloat16))
    with pytest.raises(
        TypeError, match=r"x: expected an array of uint8, got an array of float64 and shape \(1,\)$"
    ):
        as_array("x", [1.0], (np.uint8,))
