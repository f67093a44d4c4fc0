"""Files made to take long, much memory or a terminal: refused within the bounds of docs/checkpoints.md."""

from __future__ import annotations

import itertools
import json
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from bfloat16_models import write_model
from gguf_bytes import entry, gguf_bytes, header, info, string

import mxfp4moe as mx
from mxfp4moe import _json, checkpoint
from mxfp4moe._arguments import printable, value_error
from mxfp4moe._json import parse_object, shorten
from mxfp4moe.checkpoint._near import none_among
from mxfp4moe.checkpoint.gguf import file as gguf_file
from mxfp4moe.checkpoint.gguf.file import GgufFile
from mxfp4moe.checkpoint.safetensors import SafetensorsFile, save_file

# --- JSON ---------------------------------------------------------------------------------------------------

# Each with as many commas, colons and opening brackets as the number, or one more.
SMALL_VALUES: dict[str, Callable[[int], str]] = {
    "lists": lambda n: '{"a":[' + ",".join(["[]"] * ((n - 2) // 2)) + "]}",
    "objects": lambda n: '{"a":[' + ",".join(["{}"] * ((n - 2) // 2)) + "]}",
    "numbers": lambda n: '{"a":[' + ",".join(["0"] * (n - 2)) + "]}",
    "keys": lambda n: "{" + ",".join(f'"{i}":0' for i in range(n // 2)) + "}",
}


@pytest.mark.parametrize("kind", SMALL_VALUES)
def test_json_of_many_small_values(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A value takes a few bytes in a file, and some fifty in memory."""
    monkeypatch.setattr(_json, "_MAX_ITEMS", 1000)
    assert parse_object(SMALL_VALUES[kind](990).encode(), "x")
    with pytest.raises(ValueError, match="x: expected at most 1000 commas, colons and brackets, got 1[01]"):
        parse_object(SMALL_VALUES[kind](1010).encode(), "x")


def test_json_above_the_real_bound_is_not_even_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_json.json, "loads", lambda *_, **__: pytest.fail("parsed"))
    with pytest.raises(ValueError, match="at most 2000000 commas"):
        parse_object(SMALL_VALUES["lists"](2_000_100).encode(), "x")


@pytest.mark.parametrize("open_close", ["[]", "{}"])
def test_nesting(open_close: str) -> None:
    """64 levels are read, the object itself included, whatever the recursion limit of Python is."""

    def nested(levels: int) -> bytes:
        if open_close == "[]":
            return b'{"a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"
        return b'{"a":' * (levels - 1) + b"{}" + b"}" * (levels - 1)

    assert parse_object(nested(64), "x")
    for levels in (65, 300, 20_000):
        with pytest.raises(ValueError, match="x: expected a JSON object, got one nested too deeply"):
            parse_object(nested(levels), "x")


def test_brackets_in_strings_are_no_nesting() -> None:
    text = {"a": "[{" * 500, "b": '"]}\\' * 500}
    assert parse_object(json.dumps(text).encode(), "x") == text


def test_a_recursion_error_is_a_value_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python raises it differs from version to version."""

    def fail(*_: Any, **__: Any) -> None:
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr(_json.json, "loads", fail)
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_object(b"{}", "x")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "packed_layers.json"])
def test_bounds_hold_for_every_json_file(tmp_path: Path, rng: np.random.Generator, name: str) -> None:
    write_model(tmp_path, rng, "mixtral")
    (tmp_path / name).write_bytes(b'{"a":' + b"[" * 100 + b"]" * 100 + b"}")
    with pytest.raises(ValueError, match=f"{name}: expected a JSON object, got one nested too deeply"):
        mx.MoELayer.from_checkpoint(tmp_path)
    with (tmp_path / name).open("wb") as file:
        file.truncate(100_000_001)  # sparse
    with pytest.raises(ValueError, match=f"{name}: expected at most 100000000 bytes of JSON, got 100000001"):
        mx.MoELayer.from_checkpoint(tmp_path)


# --- GGUF ---------------------------------------------------------------------------------------------------


def array(kind: int, count: int, items: bytes) -> bytes:
    """A metadata value: an array."""
    return struct.pack("<IIQ", 9, kind, count) + items


def test_gguf_of_many_strings_or_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in arrays are passed over one by one; all arrays of a file together are bounded."""
    monkeypatch.setattr(gguf_file, "_MAX_ITEMS", 100)
    strings, arrays = array(8, 50, string("x") * 50), array(9, 50, struct.pack("<IQ", 0, 0) * 50)
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_bytes({"a": strings, "b": arrays, "n": 3}, {}))
    assert GgufFile(path).metadata == {"n": 3}
    for more in (array(8, 1, string("")), array(9, 1, struct.pack("<IQ", 8, 0))):
        path.write_bytes(gguf_bytes({"a": strings, "b": arrays, "c": more}, {}))
        with pytest.raises(ValueError, match=r"a\.gguf: number of .* of an array: expected at most 0, got 1"):
            GgufFile(path)


def test_gguf_of_many_keys_or_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "_MAX_ENTRIES", 100)
    path, one = tmp_path / "a.gguf", np.ones(8, np.float32)
    keys: dict[str, int | str | bytes] = {f"key.{i}": i for i in range(101)}
    tensors: dict[str | bytes, np.ndarray] = {f"t{i}": one for i in range(101)}
    path.write_bytes(gguf_bytes(dict(itertools.islice(keys.items(), 100)), {}))
    assert len(GgufFile(path).metadata) == 100
    path.write_bytes(gguf_bytes(keys, {}))
    with pytest.raises(ValueError, match=r"a\.gguf: number of metadata keys: expected at most 100, got 101"):
        GgufFile(path)
    path.write_bytes(gguf_bytes({}, tensors))
    with pytest.raises(ValueError, match=r"a\.gguf: number of tensors: expected at most 100, got 101"):
        GgufFile(path)


def test_gguf_metadata_without_an_end(tmp_path: Path) -> None:
    """Sizes that lie within a huge file are not believed either."""
    path = tmp_path / "a.gguf"
    with path.open("wb") as file:
        file.write(header(0, 1) + string("key") + struct.pack("<IQ", 8, 1 << 30))
        file.truncate(2 << 30)  # sparse
    with pytest.raises(ValueError, match=r"a\.gguf: expected 1073741824 bytes at .* of a header of at most"):
        GgufFile(path)


def test_long_names_and_strings_of_gguf(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    keys = {"k" * 65_535: 1, "short": "x" * 65_535, "long": "x" * 65_536}
    path.write_bytes(gguf_bytes(keys, {}))
    assert GgufFile(path).metadata == {"k" * 65_535: 1, "short": "x" * 65_535}
    for content in (
        gguf_bytes({"k" * 65_536: 1}, {}),
        gguf_bytes({}, {"t" * 65_536: np.ones(8, np.float32)}),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.gguf: .* bytes of a name: expected at most 65535"):
            GgufFile(path)


def test_a_header_longer_than_what_is_read_first(tmp_path: Path) -> None:
    """As the vocabulary of a model makes it."""
    vocabulary = array(8, 100_000, b"".join(string(f"token {i}") for i in range(100_000)))
    scores = array(6, 100_000, bytes(400_000))
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    keys = {"tokens": vocabulary, "scores": scores, "last": "here"}
    (tmp_path / "a.gguf").write_bytes(gguf_bytes(keys, {"a": values, "b": -values}))
    file = GgufFile(tmp_path / "a.gguf")
    assert file.metadata == {"last": "here"}
    assert np.array_equal(file["a"], values)
    assert np.array_equal(file["b"], -values)


# --- messages -----------------------------------------------------------------------------------------------

ESCAPES = "\x1b]0;title\x07\x1b[2J\u202e\n\r\t\ud800"
TEXTS = {"escapes": ESCAPES, "long": "x" * 1_000_000, "both": (ESCAPES + "ä") * 50_000}


def check_message(error: BaseException, path: Path) -> None:
    """It names the file, is short, and does nothing to a terminal."""
    text = str(error)
    assert str(path) in text
    assert text.isprintable()
    assert len(text) < 1000


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    "make",
    [
        lambda t: {t: 3},
        lambda t: {"a": {t: t}},
        lambda t: {"a": {"dtype": t, "shape": [3, t], "data_offsets": [0, 0]}},
        lambda t: {"a": {"dtype": [t], "shape": [0], "data_offsets": [0, 0]}},
        lambda t: {t: {"dtype": "U8", "shape": [1], "data_offsets": [0, 0]}},
        lambda t: {t: {"dtype": "U8", "shape": [0], "data_offsets": [5, 5]}},
        lambda t: {"__metadata__": [t]},
        lambda t: [[[t]]],
    ],
)
def test_messages_about_safetensors(tmp_path: Path, text: str, make: Callable[[str], Any]) -> None:
    data = json.dumps(make(TEXTS[text])).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(data).to_bytes(8, "little") + data)
    with pytest.raises(ValueError, match=r"a\.safetensors: ") as caught:
        SafetensorsFile(path)
    check_message(caught.value, path)


@pytest.mark.parametrize("text", TEXTS)
def test_messages_about_a_tensor_of_an_unknown_dtype(tmp_path: Path, text: str) -> None:
    name = "model.layers.0.block_sparse_moe.gate.weight"
    data = json.dumps({name: {"dtype": TEXTS[text], "shape": [3], "data_offsets": [0, 0]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(data).to_bytes(8, "little") + data)
    with pytest.raises(ValueError, match="expected a dtype of") as caught:
        SafetensorsFile(path)[name]
    check_message(caught.value, path)


@pytest.mark.parametrize("text", TEXTS)
def test_messages_about_configurations_and_indexes(
    tmp_path: Path, rng: np.random.Generator, text: str
) -> None:
    value = TEXTS[text]
    write_model(tmp_path, rng, "mixtral")
    good = json.loads((tmp_path / "config.json").read_text())
    path = tmp_path / "config.json"
    for key in ("model_type", "hidden_size", "num_local_experts", "hidden_act", "quantization_config"):
        for wrong in (value, [value], {value: value}):
            path.write_text(json.dumps(good | {key: wrong}))
            with pytest.raises(ValueError, match=r"config\.json: ") as caught:
                mx.MoELayer.from_checkpoint(tmp_path)
            check_message(caught.value, path)
    path.write_text(json.dumps(good))
    path = tmp_path / "model.safetensors.index.json"
    gate = "model.layers.0.block_sparse_moe.gate.weight"
    for wrong in (
        {gate: value},
        {gate: value + ".safetensors"},
        {value: 3},
        [value],
        {value: "a.safetensors"},
    ):
        path.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(ValueError, match=str(tmp_path)) as caught:
            mx.MoELayer.from_checkpoint(tmp_path)
        check_message(caught.value, tmp_path)


@pytest.mark.parametrize("text", [name for name in TEXTS if name != "long"])
def test_messages_about_gguf(tmp_path: Path, text: str) -> None:
    value = TEXTS[text][:60_000].replace("\ud800", "").encode()[:60_000].decode(errors="ignore")
    one, path = np.ones(8, np.float32), tmp_path / "a.gguf"
    two = header(2, 0) + info(value, one, 0)
    for content in (
        gguf_bytes({"general.architecture": value}, {}),
        gguf_bytes({"general.alignment": value}, {}),
        gguf_bytes({"split.count": value}, {}),
        gguf_bytes({"general.architecture": b"\x08\0\0\0" + string(value.encode() + b"\xff")}, {}),
        header(0, 2) + entry(value, 1) + entry(value, 1),
        two + info(value, one, 32) + bytes(100),
        two + info("b", one, 1) + bytes(100),
        two + info("b", one, 0) + bytes(100),
        gguf_bytes({}, {value: np.ones((2, 0), np.float32)}),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.gguf: ") as caught:
            checkpoint.open(path)
        check_message(caught.value, path)


def test_every_error_of_this_package_is_one_short_line() -> None:
    text = str(value_error("a\x1b" * 9000, "b\n" * 9000, "c\u2028" * 9000))
    assert text.isprintable()
    assert len(text) < 8000
    assert printable("a\x1b[31m\nb") == "a\\x1b[31m\\nb"
    assert printable("über 漢字") == "über 漢字"
    assert printable("abcdefghij", 9) == "abc...hij"


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, (2,), ()], "b": None},
        [],
        {},
        (1,),
        [[[]], {}],
        "it's",
        b"\xff",
        1.5,
        -7,
        True,
        {1: {2: [3]}},
    ],
)
def test_what_is_short_is_shown_as_python_does(value: object) -> None:
    assert shorten(value) == repr(value)


def test_no_more_of_a_value_is_shown_than_there_is_room_for() -> None:
    class Loud:
        def __repr__(self) -> str:
            pytest.fail("made into text")

    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    assert shorten(["x" * 90, Loud()]) == "['" + "x" * 75 + "..."
    assert shorten(nested) == "[" * 77 + "..."
    assert shorten({"a": 10**10_000}) == "{'a': an integer of more than 256 bits}"


# --- names and numbers --------------------------------------------------------------------------------------


def test_names_like_a_missing_one() -> None:
    there = [f"model.layers.{i}.mlp.{part}.weight" for i in range(500) for part in ("gate", "up", "down")]
    assert none_among("model.layers.7.mlp.gat.weight", there).startswith(
        "none among 1500; near: 'model.layers.7.mlp.gate.weight', "
    )
    prefixed = "language_model.model.layers.3.mlp.up.weight"
    assert none_among("model.layers.3.mlp.up.weight", [prefixed, "x"]) == f"none among 2; near: '{prefixed}'"
    assert none_among("model.norm.weight", ["x", "y"]) == "none among 2"
    assert none_among("a", []) == "none among 0"
    long = none_among("x" * 500_000, ["x" * 1_000_000 + str(i) for i in range(20)])
    assert len(long) < 300


def test_a_missing_tensor_is_named_with_those_like_it(tmp_path: Path, rng: np.random.Generator) -> None:
    write_model(tmp_path, rng, "mixtral")
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = "model.layers.0.block_sparse_moe.experts.1.w2.weight"
    index["weight_map"][f"{name}s"] = index["weight_map"].pop(name)
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"expected a tensor {name}, got none among .* near: '{name}s', "):
        mx.MoELayer.from_checkpoint(tmp_path)


PAYLOADS = {
    "float32": (np.uint32, [0x7F800001, 0xFFA00000, 0x7FC00001, 0xFFFFFFFF]),
    "float16": (np.uint16, [0x7C01, 0xFE00, 0x7D00, 0xFFFF]),
    "bfloat16": (np.uint16, [0x7F81, 0xFFA0, 0x7FC1, 0xFFFF]),
}


def nan_payloads(dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """NaNs of both kinds."""
    bits, values = PAYLOADS[dtype]
    names: dict[str, Any] = {"bfloat16": ml_dtypes.bfloat16}
    return np.resize(np.array(values, bits), shape).view(names.get(dtype, dtype))


@pytest.mark.parametrize("dtype", PAYLOADS)
@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss"])
def test_nan_payloads_cause_no_warning(
    tmp_path: Path, rng: np.random.Generator, dtype: str, model_type: str
) -> None:
    tensors = write_model(tmp_path, rng, model_type)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    (tmp_path / "model.safetensors.index.json").unlink()
    poisoned = {name: nan_payloads(dtype, array.shape) for name, array in tensors.items()}
    save_file(tmp_path / "model.safetensors", poisoned)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = mx.MoELayer.from_checkpoint(tmp_path)
        assert np.isnan(np.asarray(layer.experts.unpack().w2[0], np.float32)).all()
        assert np.isnan(layer.router_weight).all()


@pytest.mark.parametrize("dtype", PAYLOADS)
def test_nan_payloads_of_gguf_cause_no_warning(tmp_path: Path, dtype: str) -> None:
    experts, hidden, intermediate = 2, 64, 32
    shapes = {
        "ffn_gate_inp.weight": (experts, hidden),
        "ffn_gate_inp.bias": (experts,),
        "ffn_gate_exps.weight": (experts, intermediate, hidden),
        "ffn_up_exps.weight": (experts, intermediate, hidden),
        "ffn_down_exps.weight": (experts, hidden, intermediate),
        "ffn_gate_exps.bias": (experts, intermediate),
        "ffn_up_exps.bias": (experts, intermediate),
        "ffn_down_exps.bias": (experts, hidden),
    }
    keys = {
        "general.architecture": "gpt-oss",
        "gpt-oss.expert_count": experts,
        "gpt-oss.expert_used_count": 1,
    }
    tensors: dict[str | bytes, np.ndarray] = {
        f"blk.0.{name}": nan_payloads(dtype, shape) for name, shape in shapes.items()
    }
    (tmp_path / "a.gguf").write_bytes(gguf_bytes(keys, tensors))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = mx.MoELayer.from_checkpoint(tmp_path / "a.gguf")
        assert np.isnan(np.asarray(layer.experts.unpack().w2[0], np.float32)).all()
