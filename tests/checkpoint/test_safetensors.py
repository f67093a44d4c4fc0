"""The safetensors format: what is valid is read right, everything else is refused by name."""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mxfp4moe._dtypes import DTYPES
from mxfp4moe.checkpoint.safetensors import SafetensorsFile, SafetensorsWriter, save_file


def safetensors_bytes(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: Any = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


# --- safetensors, valid -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_comes_back_as_itself(tmp_path: Path, rng: np.random.Generator, name: str) -> None:
    dtype = DTYPES[name]
    values = rng.integers(0, 2 if name == "BOOL" else 100, size=(3, 5)).astype(np.float32).astype(dtype)
    save_file(tmp_path / "a.safetensors", {"x": values}, {"made": "by a test"})
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert file.infos["x"].dtype == name
    assert file["x"].dtype == dtype
    assert file["x"].shape == (3, 5)
    assert file["x"].tobytes() == values.tobytes()
    assert not file["x"].flags.writeable
    assert file.metadata == {"made": "by a test"}


def test_tensors_are_views_of_the_mapping(tmp_path: Path) -> None:
    save_file(tmp_path / "a.safetensors", {"x": np.arange(6.0), "y": np.arange(4, dtype=np.uint8)})
    file = SafetensorsFile(tmp_path / "a.safetensors")
    for name in file:
        assert np.shares_memory(file[name], file[name])


def test_mapping_interface(tmp_path: Path) -> None:
    save_file(tmp_path / "a.safetensors", {"x": np.zeros(2, np.uint8), "y": np.zeros((0, 3), np.float32)})
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert list(file) == ["x", "y"]
    assert len(file) == 2
    assert "x" in file
    assert "z" not in file
    assert file["y"].shape == (0, 3)
    assert "2 tensors" in repr(file)
    with pytest.raises(KeyError):
        file["z"]


def test_header_of_another_writer(tmp_path: Path) -> None:
    # Data at odd offsets, tensors in another order than their data, trailing spaces, a scalar, packed FP4.
    header = {
        "b": entry("F32", [], [1, 5]),
        "a": entry("U8", [1], [0, 1]),
        "c": entry("F4", [2, 4], [5, 9]),
    }
    data = b"\x07" + struct.pack("<f", 1.5) + b"\x10\x32\x54\x76"
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes(json.dumps(header).encode() + b"   ", data))
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert file["a"].tolist() == [7]
    assert file["b"].tolist() == 1.5
    assert file["b"].flags.aligned
    assert not file["b"].flags.writeable
    assert file["c"].tolist() == [[0x10, 0x32], [0x54, 0x76]]


def test_unknown_dtype_matters_only_when_asked_for(tmp_path: Path) -> None:
    header = {"new": entry("F6_E2M3", [4], [0, 3]), "old": entry("U8", [2], [3, 5])}
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes(header, b"12345"))
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert file["old"].tobytes() == b"45"
    with pytest.raises(ValueError, match=r"tensor 'new': expected a dtype of BOOL, U8, .*, got 'F6_E2M3'"):
        file["new"]


def test_arrays_outlive_the_file_object_and_its_name(tmp_path: Path) -> None:
    save_file(tmp_path / "a.safetensors", {"x": np.arange(1000)})
    array = SafetensorsFile(tmp_path / "a.safetensors")["x"]
    (tmp_path / "a.safetensors").unlink()
    assert np.array_equal(array, np.arange(1000))


# --- safetensors, corrupt -----------------------------------------------------------------------------------

GOOD = safetensors_bytes({"x": entry()}, b"1234")

CORRUPT: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "expected a header length of 8 bytes, got a file of 0 bytes"),
    "shorter than the length": (GOOD[:7], "expected a header length of 8 bytes, got a file of 7 bytes"),
    "length alone": (GOOD[:8], r"expected a header of 2 to 0 bytes, got \d+"),
    "header cut off": (GOOD[:20], r"expected a header of 2 to 12 bytes, got \d+"),
    "data cut off": (GOOD[:-1], r"tensor 'x': expected data_offsets .* <= end <= 3, got \[0, 4\]"),
    "length 0": (struct.pack("<Q", 0) + GOOD[8:], "expected a header of 2 to .* bytes, got 0"),
    "length 2^63": (struct.pack("<Q", 2**63) + GOOD[8:], f"expected a header of .*, got {2**63}"),
    "length 2^64 - 1": (b"\xff" * 8 + GOOD[8:], f"expected a header of .*, got {2**64 - 1}"),
    "no UTF-8": (safetensors_bytes(b'{"\xff": 1}'), "header: expected a JSON object, got .*utf-8"),
    "no JSON": (safetensors_bytes(b"{...}"), "header: expected a JSON object, got "),
    "a list": (safetensors_bytes([1, 2]), r"header: expected a JSON object, got \[1, 2\]"),
    "a number": (safetensors_bytes(b"17"), "header: expected a JSON object, got 17"),
    "nested deeply": (safetensors_bytes(b"[" * 100_000), "header: expected a JSON object, got .*deeply"),
    "a number of many digits": (safetensors_bytes(b"1" * 5000), "header: expected a JSON object, got "),
    "duplicate tensor": (
        safetensors_bytes(b'{"x":%b,"x":%b}' % ((json.dumps(entry()).encode(),) * 2), b"1234"),
        "header: expected a JSON object, got key 'x' twice",
    ),
    "metadata no object": (
        safetensors_bytes({"__metadata__": 3}),
        "__metadata__: expected strings by name, got 3",
    ),
    "metadata no strings": (safetensors_bytes({"__metadata__": {"a": 1}}), "__metadata__: expected strings"),
    "entry no object": (safetensors_bytes({"x": None}), "tensor 'x': expected an object of dtype, shape"),
    "entry without shape": (
        safetensors_bytes({"x": {"dtype": "U8", "data_offsets": [0, 0]}}),
        "tensor 'x': expected an object of dtype, shape and data_offsets, got",
    ),
    "entry with more": (safetensors_bytes({"x": entry() | {"y": 1}}, b"1234"), "expected an object of dtype"),
    "dtype no string": (
        safetensors_bytes({"x": entry(dtype=8)}, b"1234"),
        "expected a string as dtype, got 8",
    ),
    "shape no list": (safetensors_bytes({"x": entry(shape=4)}, b"1234"), "expected a shape of .*, got 4"),
    "size negative": (
        safetensors_bytes({"x": entry(shape=[-4])}, b"1234"),
        r"expected a shape of .*, got \[-4\]",
    ),
    "size a float": (safetensors_bytes({"x": entry(shape=[4.0])}, b"1234"), "expected a shape of .*, got"),
    "size a bool": (
        safetensors_bytes({"x": entry("U8", [True], [0, 1])}, b"1"),
        "expected a shape of .*, got",
    ),
    "size 2^63": (safetensors_bytes({"x": entry(shape=[2**63])}, b"1234"), "expected a shape of .*, got"),
    "size of 4000 digits": (
        safetensors_bytes({"x": entry(shape=[10**4000])}, b"1234"),
        "expected a shape of",
    ),
    "product above 2^64": (
        safetensors_bytes({"x": entry(shape=[2**32, 2**32])}, b"1234"),
        "expected a shape that can be addressed, got",
    ),
    "product that wraps to 4": (
        safetensors_bytes({"x": entry(shape=[2**33 + 2, 2**31, 2])}, b"1234"),
        "expected a shape that can be addressed, got",
    ),
    "empty but too large": (
        safetensors_bytes({"x": entry("U8", [0, 2**62, 2**62], [0, 0])}),
        "expected a shape that can be addressed, got",
    ),
    "65 axes": (safetensors_bytes({"x": entry("U8", [1] * 65, [0, 1])}, b"1"), "shape of at most 64 sizes"),
    "one offset": (
        safetensors_bytes({"x": entry(offsets=[4])}, b"1234"),
        r"expected data_offsets .*, got \[4\]",
    ),
    "offsets reversed": (safetensors_bytes({"x": entry(offsets=[4, 0])}, b"1234"), "expected data_offsets"),
    "offset negative": (safetensors_bytes({"x": entry(offsets=[-4, 0])}, b"1234"), "expected data_offsets"),
    "offset beyond the end": (
        safetensors_bytes({"x": entry(offsets=[4, 8])}, b"1234"),
        "expected data_offsets",
    ),
    "offset 2^64": (
        safetensors_bytes({"x": entry(offsets=[2**64, 2**64 + 4])}, b"1234"),
        "expected data_offsets",
    ),
    "too few bytes": (
        safetensors_bytes({"x": entry("F32", [4], [0, 4])}, b"1234"),
        r"tensor 'x': expected 16 bytes for F32 \[4\], got 4 bytes",
    ),
    "too many bytes": (
        safetensors_bytes({"x": entry("U8", [3], [0, 4])}, b"1234"),
        r"tensor 'x': expected 3 bytes for U8 \[3\], got 4 bytes",
    ),
    "half a byte of FP4": (
        safetensors_bytes({"x": entry("F4", [7], [0, 4])}, b"1234"),
        "expected 4 bytes for F4",
    ),
    "overlap": (
        safetensors_bytes({"x": entry(), "y": entry(offsets=[2, 6])}, b"123456"),
        r"tensor 'y': expected data that begins at 4, got 2 \(overlap or hole\)",
    ),
    "hole": (
        safetensors_bytes({"x": entry(), "y": entry(offsets=[5, 9])}, b"123456789"),
        r"tensor 'y': expected data that begins at 4, got 5 \(overlap or hole\)",
    ),
    "data after the last tensor": (GOOD + b"5", "expected 4 bytes of tensors after the header, got 5"),
}


@pytest.mark.parametrize("case", CORRUPT)
def test_corrupt_file_is_refused(tmp_path: Path, case: str) -> None:
    content, message = CORRUPT[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*" + message):
        SafetensorsFile(path)


def test_header_above_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(200_000_000)  # sparse
    with pytest.raises(ValueError, match="expected a header of 2 to 100000000 bytes, got 100000001"):
        SafetensorsFile(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a file, got nothing"):
        SafetensorsFile(tmp_path / "missing.safetensors")
    with pytest.raises(ValueError, match="expected a file, got a directory"):
        SafetensorsFile(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="expected a file, got a special file"):
        SafetensorsFile(tmp_path / "pipe")


def test_bools_that_are_neither_0_nor_1_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes({"x": entry("BOOL")}, b"\0\1\2\0"))
    file = SafetensorsFile(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="tensor 'x': expected BOOL bytes of 0 or 1, got 2"):
        file["x"]


def test_odd_rows_of_fp4_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes({"x": entry("F4", [2, 3], [0, 3])}, b"123"))
    file = SafetensorsFile(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"tensor 'x': expected an even last axis for F4, got \[2, 3\]"):
        file["x"]


# --- the writer ---------------------------------------------------------------------------------------------


def test_writer_takes_a_tensor_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    specs = {"x": (np.float32, (4, 3)), "empty": (np.float64, (0,)), "y": (ml_dtypes.bfloat16, (2,))}
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    with SafetensorsWriter(path, specs) as writer:
        writer.write("x", x[:1])
        writer.write("x", x[1:])
        assert not path.exists()
        writer.write("y", np.ones(2, ml_dtypes.bfloat16))
    file = SafetensorsFile(path)
    assert np.array_equal(file["x"], x)
    assert file["empty"].shape == (0,)
    assert path.stat().st_size == writer.nbytes
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_writer_leaves_nothing_behind_on_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    x = np.zeros(4, np.float32)
    specs = {"x": (np.float32, (4,)), "y": (np.float32, (4,))}
    with (
        pytest.raises(ValueError, match="expected all tensors, got no complete y"),
        SafetensorsWriter(path, specs) as w,
    ):
        w.write("x", x)
    with pytest.raises(ValueError, match="name: expected x .*, got y"), SafetensorsWriter(path, specs) as w:
        w.write("y", x)
    with (
        pytest.raises(TypeError, match="array: expected dtype float32 for x, got int8"),
        SafetensorsWriter(path, specs) as w,
    ):
        w.write("x", np.zeros(4, np.int8))
    with (
        pytest.raises(ValueError, match="expected at most 16 more bytes for x, got 32"),
        SafetensorsWriter(path, specs) as w,
    ):
        w.write("x", np.zeros(8, np.float32))
    with pytest.raises(KeyboardInterrupt), SafetensorsWriter(path, specs) as w:
        w.write("x", x)
        raise KeyboardInterrupt
    with pytest.raises(TypeError, match=r"tensors\['z'\]: expected a dtype of BOOL.*, got complex128"):
        SafetensorsWriter(path, {"z": (np.complex128, (1,))})
    assert list(tmp_path.iterdir()) == []
