"""``mxfp4moe quantize``: the right bytes, everything else unchanged, and nothing half-written."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bfloat16_models import EXPERTS, HIDDEN, INTERMEDIATE, LAYERS, Tensors, write_json, write_model

import mxfp4moe as mx
from mxfp4moe._progress import ProgressBar
from mxfp4moe.checkpoint.safetensors import SafetensorsFile, save_file
from mxfp4moe.cli import main

INDEX = "model.safetensors.index.json"


def read_folder(folder: Path) -> Tensors:
    """All tensors, each in the file that the index names."""
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    files = {name: SafetensorsFile(folder / name) for name in set(weight_map.values())}
    assert sum(map(len, files.values())) == len(weight_map)
    return {tensor: files[name][tensor] for tensor, name in weight_map.items()}


def published(name: str, is_mixtral: bool) -> str:
    return name.replace(".mlp.", ".block_sparse_moe.") if is_mixtral else name


def matrices(source: Tensors, is_mixtral: bool = False) -> dict[str, np.ndarray]:
    """Each expert's matrices by the name that the compressed-tensors layout gives them.

    Mixtral has those that are published, also where the source has fused tensors.
    """
    result: dict[str, np.ndarray] = {}
    for name, array in source.items():
        if ".experts." not in name:
            continue
        gate, up, down = ("w1", "w3", "w2") if is_mixtral else ("gate_proj", "up_proj", "down_proj")
        if name.endswith("gate_up_proj"):
            prefix = published(name.removesuffix("gate_up_proj"), is_mixtral)
            for expert in range(EXPERTS):
                result[f"{prefix}{expert}.{gate}"] = array[expert, :INTERMEDIATE]
                result[f"{prefix}{expert}.{up}"] = array[expert, INTERMEDIATE:]
        elif array.ndim == 3:
            prefix = published(name.removesuffix("down_proj"), is_mixtral)
            result |= {f"{prefix}{expert}.{down}": array[expert] for expert in range(EXPERTS)}
        else:
            result[name.removesuffix(".weight")] = array
    return result


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    assert got.tobytes() == expected.tobytes()


def assert_rest_unchanged(source: Tensors, result: Tensors, is_mixtral: bool = False) -> None:
    rest = {n for n in source if ".experts." not in n or n.endswith("_bias")}
    assert len(rest) >= 3 * LAYERS + 4
    for name in rest:
        assert_same(result.pop(published(name, is_mixtral)), source[name])


@pytest.mark.parametrize("scale_rule", ["floor", "rceil"])
@pytest.mark.parametrize(
    ("model_type", "fused"),
    [("qwen3_moe", False), ("qwen3_moe", True), ("mixtral", False), ("mixtral", True)],
)
def test_mxfp4(
    tmp_path: Path, rng: np.random.Generator, model_type: str, fused: bool, scale_rule: str
) -> None:
    (tmp_path / "a").mkdir()
    source = write_model(tmp_path / "a", rng, model_type, fused)
    command = ["quantize", str(tmp_path / "a"), str(tmp_path / "b"), "--scale-rule", scale_rule]
    assert main(command) == 0
    result, is_mixtral = read_folder(tmp_path / "b"), model_type == "mixtral"
    assert_rest_unchanged(source, result, is_mixtral)
    expected = matrices(source, is_mixtral)
    assert len(expected) == 3 * EXPERTS * LAYERS
    for name, w in expected.items():
        blocks, scales = mx.quantize_mxfp4(w, scale_rule=scale_rule)
        assert_same(result.pop(f"{name}.weight_packed"), blocks)
        assert_same(result.pop(f"{name}.weight_scale"), scales.view(np.uint8))
    assert result == {}
    if scale_rule == "floor":
        read, quantized = mx.load_layers(tmp_path / "b"), mx.load_layers(tmp_path / "a", quantize="mxfp4")
        assert [layer.experts.format for layer in read] == ["mxfp4"] * LAYERS
        x = rng.standard_normal((5, HIDDEN), np.float32)
        assert all(np.array_equal(a(x), b(x)) for a, b in zip(read, quantized, strict=True))


@pytest.mark.parametrize(("model_type", "fused"), [("qwen3_moe", True), ("mixtral", False)])
def test_fp8_block(tmp_path: Path, rng: np.random.Generator, model_type: str, fused: bool) -> None:
    (tmp_path / "a").mkdir()
    source = write_model(tmp_path / "a", rng, model_type, fused)
    assert main(["quantize", str(tmp_path / "a"), str(tmp_path / "b"), "--format", "fp8_block"]) == 0
    result, is_mixtral = read_folder(tmp_path / "b"), model_type == "mixtral"
    assert_rest_unchanged(source, result, is_mixtral)
    for name, w in matrices(source, is_mixtral).items():
        values, scales = mx.quantize_fp8_block(w, block_shape=(128, 128))
        assert_same(result.pop(f"{name}.weight"), values)
        assert_same(result.pop(f"{name}.weight_scale_inv"), scales)
    assert result == {}
    config = json.loads((tmp_path / "b" / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["weight_block_size"]) == ("fp8", [128, 128])
    assert [layer.experts.format for layer in mx.load_layers(tmp_path / "b")] == ["fp8_block"] * LAYERS


def test_mxfp4_of_gpt_oss(tmp_path: Path, rng: np.random.Generator) -> None:
    (tmp_path / "a").mkdir()
    source = write_model(tmp_path / "a", rng, "gpt_oss")
    assert main(["quantize", str(tmp_path / "a"), str(tmp_path / "b"), "--layout", "gpt-oss"]) == 0
    result = read_folder(tmp_path / "b")
    assert_rest_unchanged(source, result)
    for layer in range(LAYERS):
        for name in ("gate_up_proj", "down_proj"):
            tensor = f"model.layers.{layer}.mlp.experts.{name}"
            blocks, scales = mx.quantize_mxfp4(source[tensor].transpose(0, 2, 1))
            assert_same(result.pop(f"{tensor}_blocks"), blocks.reshape(*scales.shape, 16))
            assert_same(result.pop(f"{tensor}_scales"), scales.view(np.uint8))
    assert result == {}
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "mxfp4"
    assert "lm_head" in config["quantization_config"]["modules_to_not_convert"]
    layer = mx.MoELayer.from_checkpoint(tmp_path / "b", 1)
    assert (layer.activation, layer.experts.has_w13_bias) == ("swigluoai", True)


def test_everything_else_is_copied(tmp_path: Path, rng: np.random.Generator) -> None:
    (tmp_path / "a").mkdir()
    write_model(tmp_path / "a", rng, "qwen3_moe")
    assert main(["quantize", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    a, b = tmp_path / "a", tmp_path / "b"
    assert sorted(p.name for p in b.iterdir()) == sorted(
        p.name for p in a.iterdir() if p.name not in ("merges.bin", "original")
    )
    assert (b / "tokenizer.json").read_bytes() == (a / "tokenizer.json").read_bytes()
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (a, b))
    quantization = after.pop("quantization_config")
    assert after == before
    assert quantization["quant_method"] == "compressed-tensors"
    assert quantization["format"] == "mxfp4-pack-quantized"
    assert quantization["ignore"] == [
        "lm_head",
        "model.embed_tokens",
        *(f"model.layers.{n}.{m}" for n in range(LAYERS) for m in ("mlp.gate", "self_attn.q_proj")),
    ]
    total = sum(array.nbytes for array in read_folder(b).values())
    assert json.loads((b / INDEX).read_text())["metadata"] == {"total_size": total}
    for path in b.glob("*.safetensors"):
        assert SafetensorsFile(path).metadata == {"format": "pt"}


def test_single_file_stays_single(tmp_path: Path, rng: np.random.Generator) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    source = write_model(a, rng, "mixtral")
    for path in [*a.glob("*.safetensors"), a / INDEX]:
        path.unlink()
    save_file(a / "model.safetensors", source)
    assert main(["quantize", str(a), str(b)]) == 0
    assert not (b / INDEX).exists()
    assert len(SafetensorsFile(b / "model.safetensors")) == len(source) + 3 * EXPERTS * LAYERS


def test_summary(tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    source = write_model(tmp_path / "a", rng, "mixtral")
    assert main(["quantize", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert summary["num_quantized"] == 3 * EXPERTS * LAYERS
    assert summary["source_bytes"] == sum(array.nbytes for array in source.values())
    assert summary["bytes"] == sum(path.stat().st_size for path in (tmp_path / "b").glob("*.safetensors"))
    assert "100 %" in err
    assert main(["quantize", str(tmp_path / "a"), str(tmp_path / "c")]) == 0
    assert f"{tmp_path / 'c'}: 18 tensors quantized to mxfp4, " in capsys.readouterr().out


# --- refusals -----------------------------------------------------------------------------------------------


def break_config(folder: Path, **fields: Any) -> None:
    write_json(folder / "config.json", json.loads((folder / "config.json").read_text()) | fields)


def replace_tensor(folder: Path, edit: Any) -> None:
    path = folder / "model-00001-of-00003.safetensors"
    tensors = {name: array.copy() for name, array in SafetensorsFile(path).items()}
    name = next(name for name in tensors if ".experts.1." in name)
    tensors[name] = edit(tensors[name])
    path.unlink()
    save_file(path, tensors)


BROKEN: dict[str, tuple[Any, list[str], str]] = {
    "quantized already": (
        lambda a: break_config(a, quantization_config={"quant_method": "fp8"}),
        [],
        "config.json: quantization_config: expected none: a checkpoint in bfloat16, got one",
    ),
    "layout of another model": (
        lambda a: None,
        ["--layout", "gpt-oss"],
        "config.json: model_type: expected one of layout gpt-oss and format mxfp4, got 'qwen3_moe', which",
    ),
    "no experts": (
        lambda a: break_config(a, mlp_only_layers=list(range(LAYERS))),
        [],
        "a: expected layers that have experts, got none",
    ),
    "no files of experts": (
        lambda a: [path.unlink() for path in a.glob("model-0000[12]*")] and (a / INDEX).unlink(),
        [],
        "a: expected a tensor model.layers.0.mlp.experts.0.gate_proj.weight, got none among 4",
    ),
    "no file": (
        lambda a: (a / "model-00002-of-00003.safetensors").unlink(),
        [],
        "model-00002-of-00003.safetensors: expected a file, got nothing at that path",
    ),
    "missing tensor": (
        lambda a: save_file(a / "model-00003-of-00003.safetensors", {"x": np.zeros(1, np.uint8)}),
        [],
        "model-00003-of-00003.safetensors: expected a tensor ",
    ),
    "rows of another size": (
        lambda a: replace_tensor(a, lambda w: np.ascontiguousarray(w[:, :48])),
        [],
        "experts.1.gate_proj.weight: expected BF16 or F16 or F32 [32, 64], got BF16 [32, 48]",
    ),
    "not finite": (
        lambda a: replace_tensor(a, lambda w: np.where(np.eye(32, 64) > 0, np.inf, w).astype(w.dtype)),
        [],
        "experts.1.gate_proj.weight: w: expected finite",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_quantized_is_refused(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    edit, options, message = BROKEN[case]
    (tmp_path / "a").mkdir()
    write_model(tmp_path / "a", rng, "qwen3_moe")
    edit(tmp_path / "a")
    assert main(["quantize", str(tmp_path / "a"), str(tmp_path / "b"), *options]) == 1
    err = capsys.readouterr().err
    last = err.splitlines()[-1]
    assert last.startswith("mxfp4moe: error: ")
    assert message in last
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_destination_is_protected(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    b.mkdir()
    write_model(a, rng, "qwen3_moe")
    (b / "letter.txt").write_text("dear")

    def refused(destination: Path, *options: str) -> str:
        assert main(["quantize", str(a), str(destination), *options]) == 1
        return capsys.readouterr().err

    assert "expected nothing at that path, got a folder (--force replaces models)" in refused(b)
    assert "expected a folder with config.json or packed_layers.json, got a folder" in refused(b, "--force")
    assert "expected a folder apart from" in refused(a, "--force")
    assert "expected a folder apart from" in refused(tmp_path, "--force")
    assert "expected a folder with config.json" in refused(b / "letter.txt", "--force")
    assert "x: expected a folder, got nothing at that path" in refused(tmp_path / "x" / "y")
    (b / "config.json").write_text("{}")
    assert main(["quantize", str(a), str(b), "--force"]) == 0
    assert not (b / "letter.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()]
)
@pytest.mark.parametrize("replaces", [False, True])
def test_failure_midway_leaves_nothing(
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    replaces: bool,
) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    write_model(a, rng, "qwen3_moe")
    if replaces:
        b.mkdir()
        (b / "config.json").write_text("{}")
    calls = []

    def fail(self: Any, num_bytes: int) -> None:
        calls.append(num_bytes)
        if len(calls) == 20:
            raise error

    monkeypatch.setattr(ProgressBar, "advance", fail)
    status = main(["quantize", str(a), str(b), "--force"])
    assert status == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert len(calls) == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"][: 1 + replaces]
    assert not replaces or [path.name for path in b.iterdir()] == ["config.json"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_midway_leaves_nothing(
    tmp_path: Path, rng: np.random.Generator, number: signal.Signals, status: int
) -> None:
    (tmp_path / "a").mkdir()
    write_model(tmp_path / "a", rng, "qwen3_moe")
    code = (
        "import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from mxfp4moe.cli import main; from mxfp4moe._progress import ProgressBar\n"
        "ProgressBar.advance = lambda self, n: (print('working', flush=True), time.sleep(0.2))\n"
        "sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "quantize", str(tmp_path / "a"), str(tmp_path / "b")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        assert len(list(tmp_path.iterdir())) == 2
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_full_disk_is_noticed_before_writing(
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from mxfp4moe.cli import _output

    (tmp_path / "a").mkdir()
    write_model(tmp_path / "a", rng, "qwen3_moe")
    monkeypatch.setattr(_output.shutil, "disk_usage", lambda path: type("usage", (), {"free": 1000}))
    assert main(["quantize", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert "MB of free space, got 0.0 MB" in capsys.readouterr().err
