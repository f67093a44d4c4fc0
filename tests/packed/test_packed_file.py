"""The container of packed files: arrays come back as they were, and nothing damaged is taken for whole."""

from __future__ import annotations

import json
import os
import re
import resource
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from packed_bytes import with_header, with_table

from mxfp4moe import PackedFormatError
from mxfp4moe.packed.container import PackedFile, Part, is_packed_file, write_packed_file

META = {"kind": "test", "limit": 1.5, "nothing": None}


def make_parts(rng: np.random.Generator) -> list[Part]:
    return [
        Part("a/w", rng.integers(0, 256, (3, 5000), np.uint8), by_row=True),
        Part("a/scales", rng.standard_normal((2, 7)).astype(ml_dtypes.bfloat16)),
        Part("empty", np.zeros((0, 4), np.float32), by_row=True),
        Part("one", np.float32(3.5).reshape(())),
        Part("ids", rng.integers(-5, 5, 9)),
    ]


@pytest.fixture
def path(tmp_path: Path, rng: np.random.Generator) -> Path:
    write_packed_file(tmp_path / "a.packed", META, make_parts(rng))
    return tmp_path / "a.packed"


# --- valid files --------------------------------------------------------------------------------------------


def test_arrays_and_meta_come_back(path: Path, rng: np.random.Generator) -> None:
    file = PackedFile(path)
    parts = make_parts(rng)
    assert file.meta == META
    assert list(file) == [part.name for part in parts]
    assert len(file) == 5
    assert "ids" in file
    assert "x" not in file
    for part in parts:
        array = file[part.name]
        assert array.dtype == part.array.dtype
        assert array.shape == part.array.shape
        assert not array.flags.writeable
        assert file.parts[part.name].begin % 4096 == 0
        assert array.ctypes.data % 4096 == 0 or array.size == 0
    assert file.nbytes == path.stat().st_size
    assert file.nbytes % 4096 == 0
    file.verify()


def test_bytes_are_those_that_were_written(tmp_path: Path, rng: np.random.Generator) -> None:
    parts = make_parts(rng)
    write_packed_file(tmp_path / "a", META, parts)
    file = PackedFile(tmp_path / "a")
    for part in parts:
        assert file[part.name].tobytes() == part.array.tobytes()


def test_format_byte_by_byte(tmp_path: Path) -> None:
    """What docs/packed-files.md says, read without the module."""
    w = np.arange(8, dtype=np.uint8).reshape(2, 4)
    write_packed_file(tmp_path / "a", {"x": 1}, [Part("w", w, by_row=True), Part("v", w.view("<u2"))])
    content = (tmp_path / "a").read_bytes()
    assert content[:8] == b"\x8aMOE\r\n\x1a\n"
    version, table_crc, table_bytes, size = struct.unpack_from("<IIQQ", content, 8)
    assert (version, size) == (1, len(content)) == (1, 3 * 4096)
    assert content[32:60] == bytes(28)
    assert struct.unpack_from("<I", content, 60)[0] == zlib.crc32(content[:60])
    table = content[64 : 64 + table_bytes]
    assert table_crc == zlib.crc32(table)
    assert json.loads(table) == {
        "meta": {"x": 1},
        "parts": [
            {"name": "w", "dtype": "U8", "shape": [2, 4], "crc32": [zlib.crc32(row) for row in w]},
            {"name": "v", "dtype": "U16", "shape": [2, 2], "crc32": [zlib.crc32(w)]},
        ],
    }
    assert content[4096:] == (w.tobytes() + bytes(4088)) * 2


def test_span_is_the_parts_with_their_padding(path: Path) -> None:
    file = PackedFile(path)
    span = file.span(["a/w", "a/scales"])
    assert span.size == 5 * 4096
    assert span[:15000].tobytes() == file["a/w"].tobytes()
    assert not span[15000 : 4 * 4096].any()
    for wrong in (["a/scales", "a/w"], ["a/w", "one"], ["x"], []):
        with pytest.raises(PackedFormatError, match=r"a\.packed: expected parts \[.*\] in this order, got "):
            file.span(wrong)


def test_large_parts_are_checked_by_threads(tmp_path: Path, rng: np.random.Generator) -> None:
    data = rng.integers(0, 256, (6, 3 << 20), np.uint8)
    write_packed_file(tmp_path / "a", {}, [Part("w", data, by_row=True)])
    done: list[int] = []
    PackedFile(tmp_path / "a").verify(done.append)
    assert done == [3 << 20] * 6
    with (tmp_path / "a").open("r+b") as file:
        file.seek(4096 + 4 * data[0].nbytes + 77)
        file.write(bytes([data[4, 77] ^ 1]))
    with pytest.raises(PackedFormatError, match="checksum 0x.{8} of part 'w', row 4, got 0x.{8}: .* damaged"):
        PackedFile(tmp_path / "a").verify()


def test_is_packed_file(path: Path, tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"")
    assert is_packed_file(path)
    assert not is_packed_file(tmp_path / "b")
    assert not is_packed_file(tmp_path)
    assert not is_packed_file(tmp_path / "nothing")


# --- writing ------------------------------------------------------------------------------------------------


def test_failure_leaves_the_former_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_packed_file(path, {}, [])
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_json_cannot_hold_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_packed_file(tmp_path / "a", {"limit": float("inf")}, [])
    assert list(tmp_path.iterdir()) == []


def test_a_mapped_file_may_be_replaced(path: Path) -> None:
    file = PackedFile(path)
    before = file["a/w"].copy()
    write_packed_file(path, {}, [])
    assert np.array_equal(file["a/w"], before)
    assert len(PackedFile(path)) == 0


# --- damaged files ------------------------------------------------------------------------------------------


def entry(name: Any = "w", dtype: Any = "U8", shape: Any = (4096,), crc32: Any = (0,)) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": shape, "crc32": crc32}


def parts_of(*entries: Any) -> Callable[[bytes], bytes]:
    return lambda content: with_table(content, lambda table: {"meta": {}, "parts": list(entries)})


DAMAGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda c: b"", "expected a packed file, got an empty file"),
    "foreign": (
        lambda c: b"GGUF" + c[4:],
        r"expected a packed file, which starts with b'\\x8aMOE.*GGUF",
    ),
    "line ends changed": (lambda c: c.replace(b"\r\n", b"\n"), "expected a packed file, which starts with"),
    "header cut off": (lambda c: c[:63], "expected a header of 64 bytes, got a file of 63 bytes"),
    "header changed": (lambda c: c[:40] + b"\1" + c[41:], "expected an intact header, got one that its"),
    "future version": (lambda c: with_header(c, version=2), "of version 1, got version 2: read it with"),
    "table changed": (lambda c: c[:70] + b"x" + c[71:], "expected an intact table of contents, got one"),
    "last page missing": (lambda c: c[:-4096], r"expected a file of \d+ bytes, got \d+: it is not complete"),
    "last byte missing": (lambda c: c[:-1], r"expected a file of \d+ bytes, got \d+"),
    "one byte more": (lambda c: c + b"\0", r"expected a file of \d+ bytes, got \d+"),
    "one page more": (
        lambda c: with_header(c + bytes(4096), size=len(c) + 4096),
        r"expected a file of \d+ bytes, as its parts need, got",
    ),
    "table of 0 bytes": (lambda c: with_header(c, length=0), "expected a table of contents of 2 to .* got 0"),
    "table of 2^64 - 1 bytes": (
        lambda c: with_header(c, length=2**64 - 1),
        "expected a table of contents of 2",
    ),
    "table longer than the file": (
        lambda c: with_header(c, length=len(c)),
        "expected a table of contents of",
    ),
    "no JSON": (lambda c: with_table(c, lambda t: b"{..."), "table of contents: expected a JSON object"),
    "nested deeply": (
        lambda c: with_table(c, lambda t: b"[" * 200_000),
        "a JSON object, got .*deeply",
    ),
    "no UTF-8": (lambda c: with_table(c, lambda t: b'{"\xff":1}'), "expected a JSON object, got .*utf-8"),
    "key twice": (lambda c: with_table(c, lambda t: b'{"meta":1,"meta":1}'), "got key 'meta' twice"),
    "a list": (lambda c: with_table(c, lambda t: b"[1]"), r"expected a JSON object, got \[1\]"),
    "no parts": (lambda c: with_table(c, lambda t: {"meta": {}}), "with an object meta and parts, got"),
    "meta a list": (lambda c: with_table(c, lambda t: {"meta": [], "parts": []}), "with an object meta and"),
    "parts an object": (
        lambda c: with_table(c, lambda t: {"meta": {}, "parts": {}}),
        "expected a list of parts",
    ),
    "part a number": (parts_of(3), "expected a part with name, dtype, shape and crc32, got 3"),
    "part without dtype": (parts_of({"name": "w"}), "expected a part with name, dtype, shape and crc32"),
    "name a number": (parts_of(entry(name=3)), "expected a part with a name and a known dtype, got"),
    "dtype unknown": (parts_of(entry(dtype="U9")), "expected a part with a name and a known dtype, got"),
    "dtype BOOL": (parts_of(entry(dtype="BOOL")), "expected a part with a name and a known dtype, got"),
    "dtype a list": (parts_of(entry(dtype=[])), "expected a part with a name and a known dtype, got"),
    "shape a number": (parts_of(entry(shape=4)), "expected the shape of part 'w', got 4"),
    "size negative": (parts_of(entry(shape=[-1])), r"expected the shape of part 'w', got \[-1\]"),
    "size a float": (parts_of(entry(shape=[4.0])), "expected the shape of part 'w'"),
    "size a bool": (parts_of(entry(shape=[True])), "expected the shape of part 'w'"),
    "size 2^63": (parts_of(entry(shape=[2**63])), "expected the shape of part 'w'"),
    "size of 4000 digits": (parts_of(entry(shape=[10**4000])), "expected the shape of part 'w'"),
    "product that wraps": (parts_of(entry(shape=[2**33 + 2, 2**31, 2])), "expected the shape of part 'w'"),
    "empty but too large": (parts_of(entry(shape=[0, 2**62, 2**62])), "expected the shape of part 'w'"),
    "65 axes": (parts_of(entry(shape=[1] * 65)), "expected the shape of part 'w'"),
    "larger than the file": (parts_of(entry(shape=[2**40])), "expected part 'w' inside the file, got 10995"),
    "beyond the end": (
        parts_of(entry(), entry(name="v", shape=[10**6])),
        "part 'v' inside the file",
    ),
    "too many checksums": (parts_of(entry(crc32=[0, 0])), r"expected 1 or \[4096\] checksums of part 'w'"),
    "checksum of 33 bits": (parts_of(entry(crc32=[2**32])), r"expected 1 or \[4096\] checksums of part 'w'"),
    "checksum a string": (parts_of(entry(crc32=["0"])), r"expected 1 or \[4096\] checksums of part 'w'"),
    "name twice": (parts_of(entry(), entry()), "expected parts of different names, got 'w' twice"),
    "parts too small": (parts_of(entry()), r"expected a file of 8192 bytes, as its parts need, got \d+"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_file_is_refused(path: Path, case: str) -> None:
    damage, message = DAMAGED[case]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(PackedFormatError, match=re.escape(str(path)) + ".*" + message):
        PackedFile(path)


def test_damage_to_the_data_shows_when_it_is_verified(path: Path) -> None:
    content = path.read_bytes()
    parts = PackedFile(path).parts
    for offset, message in (
        (parts["a/w"].begin + 5003, "of part 'a/w', row 1, got"),
        (parts["ids"].begin, "of part 'ids', got"),
        (parts["ids"].end, r"expected zeros after byte \d+, up to the next page, got other bytes"),
        (parts["a/w"].begin - 1, "expected zeros after byte"),
        (len(content) - 1, "expected zeros after byte"),
    ):
        path.write_bytes(content[:offset] + bytes([content[offset] ^ 16]) + content[offset + 1 :])
        file = PackedFile(path)
        with pytest.raises(PackedFormatError, match=re.escape(str(path)) + ".*" + message):
            file.verify()


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match="missing: expected a file, got nothing at that path"):
        PackedFile(tmp_path / "missing")
    with pytest.raises(PackedFormatError, match="expected a file, got a directory"):
        PackedFile(tmp_path)
    with pytest.raises(PackedFormatError, match="expected a file, got a special file"):
        PackedFile(tmp_path / "pipe")


def test_big_endian_machines_refuse(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(PackedFormatError, match="expected a little-endian machine, got a big-endian one"):
        PackedFile(path)
    with pytest.raises(PackedFormatError, match="expected a little-endian machine"):
        write_packed_file(path, {}, [])


# --- where it is written ------------------------------------------------------------------------------------


def write_part(path: Path) -> None:
    write_packed_file(path, {"kind": "x"}, [Part("a", np.arange(3000, dtype=np.float32))])


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "folder" / "target"
    target.parent.mkdir()
    target.write_bytes(b"former")
    link.symlink_to(target)
    write_part(link)
    assert link.is_symlink()
    assert PackedFile(target).meta == {"kind": "x"}
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "link", "target"]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="Not a regular file.*pipe"):
        write_part(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError):
        write_part(tmp_path)
    with pytest.raises(FileNotFoundError, match="No such folder"):
        write_part(tmp_path / "nothing" / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    assert (tmp_path / "pipe").is_fifo()


def test_names_may_be_as_long_as_the_system_allows(tmp_path: Path) -> None:
    write_part(tmp_path / ("ä" * 127))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_write_that_fails_leaves_the_former_file(tmp_path: Path) -> None:
    write_part(tmp_path / "a")
    former = (tmp_path / "a").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_part(tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == former
