"""Packed experts and layers in files and pickles: equal, shared between processes, never taken unchecked."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_bytes import with_table
from packed_examples import (
    FORMATS,
    ROUTINGS,
    E,
    K,
    activation_of,
    assert_same_experts,
    make_experts,
    make_layer,
)

import mxfp4moe as mx
from mxfp4moe.packed.container import PackedFile


def run(experts: mx.PackedExperts, rng: np.random.Generator) -> np.ndarray:
    x = rng.standard_normal((7, K), np.float32)
    ids = rng.integers(0, E, (7, 2))
    return mx.fused_experts(x, experts, np.ones((7, 2), np.float32), ids, activation=activation_of(experts))


# --- experts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_experts_come_back_from_a_file(isa: str, tmp_path: Path, rng: np.random.Generator, name: str) -> None:
    experts = make_experts(rng, name)
    experts.save(tmp_path / "a.packed")
    for verify in (False, True):
        opened = mx.PackedExperts.open(str(tmp_path / "a.packed"), verify=verify)
        assert_same_experts(opened, experts)
        seeds = (np.random.default_rng(1), np.random.default_rng(1))
        assert np.array_equal(*(run(e, seed) for e, seed in zip((opened, experts), seeds, strict=True)))
    assert [path.name for path in tmp_path.iterdir()] == ["a.packed"]


def test_opened_experts_are_the_mapping(tmp_path: Path, rng: np.random.Generator) -> None:
    make_experts(rng, "mxfp4").save(tmp_path / "a")
    opened = mx.PackedExperts.open(tmp_path / "a")
    address = np.asarray(opened.data).ctypes.data
    assert address % 4096 == 0
    with open("/proc/self/maps") as maps:
        assert any(
            int(line.split("-")[0], 16) <= address < int(line.split("-")[1].split()[0], 16)
            for line in maps
            if line.rstrip().endswith(str(tmp_path / "a"))
        )
    (tmp_path / "a").unlink()
    assert_same_experts(opened, copy.copy(opened))


def test_each_expert_has_a_checksum(tmp_path: Path, rng: np.random.Generator) -> None:
    make_experts(rng, "mxfp4 of gpt-oss").save(tmp_path / "a")
    parts = PackedFile(tmp_path / "a").parts
    assert all(len(part.checksums) == E for part in parts.values())
    content = bytearray((tmp_path / "a").read_bytes())
    w2 = parts["experts/w2"]
    content[(w2.begin + 2 * w2.end) // 3 + 5] ^= 1
    (tmp_path / "a").write_bytes(content)
    mx.PackedExperts.open(tmp_path / "a")
    with pytest.raises(mx.PackedFormatError, match="a: .* of part 'experts/w2', row 2, got .* damaged"):
        mx.PackedExperts.open(tmp_path / "a", verify=True)


@pytest.mark.parametrize("verify", [1, None, "yes"])
def test_verify_is_a_bool(tmp_path: Path, rng: np.random.Generator, verify: Any) -> None:
    make_experts(rng, "bf16").save(tmp_path / "a")
    with pytest.raises(TypeError, match="verify: expected a bool, got"):
        mx.PackedExperts.open(tmp_path / "a", verify=verify)


# --- layers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("routing", ROUTINGS)
def test_layer_comes_back_from_a_file(tmp_path: Path, rng: np.random.Generator, routing: str) -> None:
    layer = make_layer(rng, routing)
    layer.save(tmp_path / "a")
    x, ids = rng.standard_normal((5, K), np.float32), rng.integers(0, 4, 5)
    for opened in (mx.MoELayer.open(tmp_path / "a", verify=True), pickle.loads(pickle.dumps(layer))):
        assert np.array_equal(opened(x, ids), layer(x, ids))
        assert opened.routing == layer.routing
        assert {n: np.asarray(v).tolist() for n, v in opened.routing_arguments.items()} == {
            n: np.asarray(v).tolist() for n, v in layer.routing_arguments.items()
        }
        for name in ("top_k", "activation", "alpha", "limit", "routed_scaling_factor", "shared_limit"):
            assert getattr(opened, name) == getattr(layer, name)
        assert repr(opened).split("activation")[1] == repr(layer).split("activation")[1]
    assert repr(str(tmp_path / "a")) in repr(mx.MoELayer.open(tmp_path / "a"))


def test_layer_with_a_function_of_ones_own_is_not_saved(tmp_path: Path, rng: np.random.Generator) -> None:
    def route(logits: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        return mx.topk_softmax(logits, top_k)

    weight = np.ones((E, K), np.float32)
    layer = mx.MoELayer(make_experts(rng, "bf16"), weight, top_k=1, routing=route)
    with pytest.raises(
        TypeError, match="routing: expected the name of a routing function, .* to be saved, got"
    ):
        layer.save(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_files_of_the_other_kind_are_refused_by_name(tmp_path: Path, rng: np.random.Generator) -> None:
    layer = make_layer(rng, "default")
    layer.save(tmp_path / "layer")
    layer.experts.save(tmp_path / "experts")
    with pytest.raises(
        mx.PackedFormatError, match="layer: expected packed experts, .* got a packed layer, which MoELayer"
    ):
        mx.PackedExperts.open(tmp_path / "layer")
    with pytest.raises(
        mx.PackedFormatError, match="experts: expected a packed layer, .* got packed experts, which"
    ):
        mx.MoELayer.open(tmp_path / "experts")


# --- wrong contents behind right checksums ------------------------------------------------------------------


def edited(path: Path, edit: Any) -> Path:
    path.write_bytes(with_table(path.read_bytes(), edit))
    return path


def setting(**fields: Any) -> Any:
    return lambda table: table["meta"]["experts"].update(fields)


def deleting(name: str) -> Any:
    return lambda table: table["meta"]["experts"].pop(name)


WRONG_EXPERTS: dict[str, tuple[Any, str]] = {
    "kind": (lambda t: t["meta"].update(kind="cake"), "expected packed experts, .*, got kind 'cake'"),
    "kind a list": (lambda t: t["meta"].update(kind=[]), r"expected packed experts, .*, got kind \[\]"),
    "layout": (
        lambda t: t["meta"].update(layout_version=99),
        "packed layout 1, got layout 99: use the mxfp4moe",
    ),
    "no fields": (lambda t: t["meta"].pop("experts"), "experts: fields: expected format, .*, got None"),
    "field missing": (deleting("format"), "experts: fields: expected format, num_experts"),
    "field unknown": (setting(colour="red"), "experts: fields: expected format, num_experts"),
    "format": (setting(format="int3"), "experts: format: expected 'mxfp4', .*, got 'int3'"),
    "format a list": (setting(format=[1]), "experts: format: expected 'mxfp4'"),
    "format of other sizes": (setting(format="nvfp4"), "experts: "),
    "more experts": (setting(num_experts=E + 1), "expected parts .*, got"),
    "no experts": (setting(num_experts=0), r"experts: num_experts: expected a multiple of 1 in \[1, "),
    "experts a float": (setting(num_experts=3.0), "experts: num_experts: expected"),
    "experts true": (setting(num_experts=True), "experts: num_experts: expected"),
    "2^63 experts": (setting(num_experts=2**63), "experts: num_experts: expected"),
    "experts of 4000 digits": (setting(num_experts=10**4000), "experts: num_experts: expected"),
    "sizes that overflow": (
        setting(num_experts=2**40, hidden_size=2**40, intermediate_size=2**40),
        "experts: ",
    ),
    "hidden_size odd": (setting(hidden_size=33), "experts: hidden_size: expected a multiple of 32"),
    "layout of gate and up": (
        setting(gate_up_layout="up"),
        "experts: gate_up_layout: expected 'concatenated'",
    ),
    "block_shape": (setting(block_shape=[16, 32]), "experts: block_shape: expected None with format 'mxfp4'"),
    "dtypes a string": (setting(w13_dtypes="uint8"), "experts: w13_dtypes: expected one each of"),
    "dtypes too few": (setting(w13_dtypes=["uint8", None]), "experts: w13_dtypes: expected one each of"),
    "dtype unknown": (
        setting(w2_dtypes=["uint9", "uint8", None]),
        "experts: w2_dtypes: expected one each of",
    ),
    "dtype a list": (setting(w2_dtypes=[[], "uint8", None]), "experts: w2_dtypes: expected one each of"),
    "scales missing": (setting(w2_dtypes=["uint8", None, None]), "experts: w2_dtypes: expected one each of"),
    "a bias more": (
        setting(w2_dtypes=["uint8", "uint8", "float32"]),
        r"experts: bytes: expected \d+, got \d+",
    ),
    "part renamed": (lambda t: t["parts"][0].update(name="experts/x"), "expected parts .*, got .*experts/x"),
    "part of another shape": (
        lambda t: t["parts"][0].update(shape=[1, E * t["parts"][0]["shape"][1]], crc32=[0]),
        "expected parts .*, got",
    ),
    "part of another dtype": (lambda t: t["parts"][0].update(dtype="I8"), "expected parts .*, got"),
    "parts exchanged": (lambda t: t["parts"].reverse(), "expected parts .*, got"),
    "parts of another name": (
        lambda t: [p.update(name="x" + p["name"]) for p in t["parts"]] and None,
        "got 0",
    ),
}


@pytest.mark.parametrize("case", WRONG_EXPERTS)
def test_wrong_experts_are_refused(tmp_path: Path, rng: np.random.Generator, case: str) -> None:
    edit, message = WRONG_EXPERTS[case]
    make_experts(rng, "mxfp4").save(tmp_path / "a")
    edited(tmp_path / "a", lambda table: edit(table) and None)
    with pytest.raises(
        mx.PackedFormatError, match=f"{tmp_path / 'a'}: .*{message}|{tmp_path / 'a'}: {message}"
    ):
        mx.PackedExperts.open(tmp_path / "a")


@pytest.mark.parametrize(
    ("block_shape", "message"),
    [
        (None, "block_shape: expected a list of two sizes or nulls, got None"),
        ([16], "block_shape: expected a pair of positive integers or None, got 1 values"),
        ([0, 32], r"block_shape\[0\]: expected an integer in .*, got 0"),
        ([16, 33], r"block_shape\[1\]: expected a multiple of 32 or None, got 33"),
        ([16.5, 32], r"block_shape\[0\]: expected an integer, got 16.5"),
        ([2**63, 32], r"block_shape\[0\]: expected an integer in .*, got 9223372036854775808"),
        ([4, 32], r"expected parts .*, got"),
    ],
)
def test_wrong_block_shape_is_refused(
    tmp_path: Path, rng: np.random.Generator, block_shape: Any, message: str
) -> None:
    make_experts(rng, "fp8_block").save(tmp_path / "a")
    edited(tmp_path / "a", lambda t: setting(block_shape=block_shape)(t))
    with pytest.raises(mx.PackedFormatError, match=f"a: (experts: )?{message}"):
        mx.PackedExperts.open(tmp_path / "a")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (setting(block_shape=[32, 32]), "packed w13: expected one scale for each block, got several"),
        (
            setting(w2_dtypes=["float8_e4m3fn", "float32", "bfloat16"]),
            "packed w2: expected a bias that bfloat16 can hold, got one of float32",
        ),
    ],
)
def test_bytes_of_another_kind_are_not_unpacked(
    tmp_path: Path, rng: np.random.Generator, edit: Any, message: str
) -> None:
    """They have the size that the file says, and hold what it does not say."""
    w13, w13_scales = mx.quantize_fp8_block(
        rng.standard_normal((2, 128, 64), np.float32), block_shape=(16, 32)
    )
    w2, w2_scales = mx.quantize_fp8_block(rng.standard_normal((2, 64, 64), np.float32), block_shape=(16, 32))
    bias = rng.standard_normal((2, 64), np.float32)
    options: Any = {"format": "fp8_block", "block_shape": (16, 32), "w2_bias": bias}
    experts = mx.pack_experts(w13, w13_scales, w2, w2_scales, **options)
    experts.save(tmp_path / "a")
    assert np.array_equal(np.asarray(experts.unpack().w2_bias), bias)
    edited(tmp_path / "a", edit)
    with pytest.raises(mx.PackedFormatError, match=f"a: experts: {message}"):
        mx.PackedExperts.open(tmp_path / "a").unpack()


WRONG_LAYERS: dict[str, tuple[Any, str]] = {
    "field missing": (lambda m: m.pop("top_k"), "expected fields activation, .*, got"),
    "field unknown": (lambda m: m.update(x=1), "expected fields activation, .*, got"),
    "top_k": (lambda m: m.update(top_k=E + 1), r"top_k: expected an integer in \[1, 3\], got 4"),
    "top_k a string": (lambda m: m.update(top_k="2"), "top_k: expected an integer, got '2'"),
    "routing": (lambda m: m.update(routing="nearest"), "routing: expected 'topk_softmax'"),
    "routing a number": (lambda m: m.update(routing=3), "expected a routing function by name"),
    "arguments a list": (lambda m: m.update(routing_arguments=[]), "expected a routing function by name"),
    "argument unknown": (
        lambda m: m.update(routing_arguments={"x": 1}),
        "a: .*unexpected keyword argument 'x'",
    ),
    "argument top_k": (lambda m: m.update(routing_arguments={"top_k": 1}), "a: .*multiple values"),
    "argument a list": (
        lambda m: m.update(routing_arguments={"renormalize": []}),
        "renormalize: expected a bool",
    ),
    "activation": (lambda m: m.update(activation="relu"), "activation: expected 'silu'"),
    "activation a list": (lambda m: m.update(activation=[]), "activation: expected 'silu'"),
    "alpha": (lambda m: m.update(alpha=1.5), "alpha: expected None"),
    "limit": (lambda m: m.update(limit=-1), "limit: expected"),
    "limit of 400 digits": (lambda m: m.update(limit=10**400), "limit: expected"),
    "factor": (lambda m: m.update(routed_scaling_factor=0), "routed_scaling_factor: expected"),
    "factor infinite": (lambda m: m.update(routed_scaling_factor="inf"), "routed_scaling_factor: expected"),
    "number": (lambda m: m.update(layer_number=-1), "expected a layer_number of at least 0, got -1"),
    "number a float": (
        lambda m: m.update(layer_number=1.0),
        "expected a layer_number of at least 0, got 1.0",
    ),
    "shared experts": (lambda m: m.update(shared_experts={}), "shared_experts: fields: expected format"),
    "shared experts without parts": (
        lambda m: m.update(shared_experts=m["experts"] | {"num_experts": 1}),
        r"shared_experts: bytes: expected \d+, got 0",
    ),
}


OPTIONAL = (
    "activation",
    "alpha",
    "layer_number",
    "limit",
    "routed_scaling_factor",
    "shared_experts",
    "shared_limit",
)


@pytest.mark.parametrize("names", [*((name,) for name in OPTIONAL), OPTIONAL], ids="+".join)
def test_field_that_a_file_lacks_is_the_default(
    tmp_path: Path, rng: np.random.Generator, names: tuple[str, ...]
) -> None:
    """A file of a version that did not know a field still opens, and computes as it did there."""
    layer = make_layer(rng, "default")
    layer.save(tmp_path / "a")

    def without(table: Any) -> None:
        for name in names:
            del table["meta"][name]

    edited(tmp_path / "a", without)
    opened = mx.MoELayer.open(tmp_path / "a")
    assert opened == layer
    assert opened.layer_number is None


@pytest.mark.parametrize("case", WRONG_LAYERS)
def test_wrong_layers_are_refused(tmp_path: Path, rng: np.random.Generator, case: str) -> None:
    edit, message = WRONG_LAYERS[case]
    make_layer(rng, "default").save(tmp_path / "a")
    edited(tmp_path / "a", lambda table: edit(table["meta"]) and None)
    with pytest.raises(mx.PackedFormatError, match=message) as info:
        mx.MoELayer.open(tmp_path / "a")
    assert str(info.value).startswith(f"{tmp_path / 'a'}: ")


@pytest.mark.parametrize(
    ("name", "part", "message"),
    [
        ("router_weight", {"name": "x"}, "expected a part router_weight, got"),
        ("router_weight", {"shape": [K, E], "crc32": [0]}, r"router_weight: expected shape \(3, 64\), got"),
        ("router_weight", {"dtype": "I32"}, "router_weight: expected an array of float32"),
        ("router_bias", {"dtype": "U32"}, "router_bias: expected an array of float32"),
    ],
)
def test_wrong_router_is_refused(
    tmp_path: Path, rng: np.random.Generator, name: str, part: dict[str, Any], message: str
) -> None:
    make_layer(rng, "gpt-oss").save(tmp_path / "a")
    edited(
        tmp_path / "a",
        lambda table: next(entry for entry in table["parts"] if entry["name"] == name).update(part),
    )
    with pytest.raises(mx.PackedFormatError, match=message):
        mx.MoELayer.open(tmp_path / "a")


# --- memory and time ----------------------------------------------------------------------------------------

_MAPPED = """
import sys, numpy as np, mxfp4moe as mx
experts = mx.PackedExperts.open(sys.argv[1])
total = int(np.asarray(experts.data).sum(dtype=np.int64))  # touches every page
print(total, flush=True)
sys.stdin.readline()
"""


def mapped_memory(process: int, path: Path) -> dict[str, int]:
    """Bytes of the mapping of `path` in a process, as the kernel counts them."""
    result: dict[str, int] = {}
    inside = False
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        name, _, rest = line.partition(":")
        if "-" in name.split(" ")[0]:
            inside = line.endswith(str(path))
        elif inside and rest.endswith(" kB"):
            result[name] = result.get(name, 0) + 1024 * int(rest.split()[0])
    return result


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc/<pid>/smaps")
def test_processes_share_the_memory(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "a.packed"
    w13, w2 = rng.random((8, 512, 512), np.float32), rng.random((8, 512, 256), np.float32)
    mx.pack_experts(w13, None, w2, None, format="bf16").save(path)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", _MAPPED, str(path)], **pipes) for _ in range(2)]
    try:
        totals = [process.stdout.readline() for process in processes]  # type: ignore[union-attr]
        memory = [mapped_memory(process.pid, path) for process in processes]
    finally:
        for process in processes:
            process.communicate("\n", timeout=60)
    assert totals[0] == totals[1]
    nbytes = mx.PackedExperts.open(path).nbytes
    for counts in memory:
        assert counts["Rss"] >= nbytes
        assert counts["Private_Dirty"] == 0
        assert counts["Private_Clean"] + counts["Shared_Clean"] == counts["Rss"]
        # Two processes map these pages, and each is charged half of them.
        assert counts["Shared_Clean"] >= nbytes
        assert counts["Pss"] <= counts["Rss"] / 2 + 4096


def test_opening_reads_no_weights(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "a.packed"
    w13, w2 = np.ones((16, 1024, 1024), np.float32), np.ones((16, 1024, 512), np.float32)
    mx.pack_experts(w13, None, w2, None, format="bf16").save(path)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        opened = mx.PackedExperts.open(path)
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.02
    assert mapped_memory(os.getpid(), path)["Rss"] < opened.nbytes / 4


def test_files_are_the_same_for_every_instruction_set(tmp_path: Path) -> None:
    contents = []
    for isa in mx.supported_isas():
        with mx.use_isa(isa):
            make_experts(np.random.default_rng(3), "mxfp4").save(tmp_path / isa)
        contents.append((tmp_path / isa).read_bytes())
    assert len(set(contents)) == 1
