"""Packed folders of whole models: the same bits, mapped and shared, or refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import whole_models
from problems import rel_l2

import mxfp4moe as mx
from mxfp4moe import cli
from mxfp4moe.cli._synthetic import SyntheticCheckpoint
from mxfp4moe.cli._synthetic_model import GptOss
from mxfp4moe.errors import PackedFormatError
from mxfp4moe.packed.container import PackedFile


@pytest.mark.parametrize("name", whole_models.NAMES)
def test_saved_and_opened(isa: str, tmp_path: Path, name: str) -> None:
    source = whole_models.load(name).write(tmp_path / "source")
    lm, ids = mx.CausalLM.from_checkpoint(source), whole_models.input_ids(name)
    lm.save(tmp_path / "packed")
    opened = mx.CausalLM.open(tmp_path / "packed", verify=True)
    assert np.array_equal(opened(ids), lm(ids))
    assert np.array_equal(mx.CausalLM.from_checkpoint(tmp_path / "packed")(ids), lm(ids))
    assert opened.end_ids == lm.end_ids
    assert (tmp_path / "packed" / "config.json").read_bytes() == (source / "config.json").read_bytes()
    opened.save(tmp_path / "again")  # mapped weights may be saved, too
    for path in (tmp_path / "packed").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("name", ["gpt_oss", "glm4_moe"])
def test_the_command_writes_the_same(tmp_path: Path, name: str) -> None:
    source = whole_models.load(name).write(tmp_path / "source")
    whole_models.write_tokenizer(source)
    assert cli.main(["pack", str(source), str(tmp_path / "packed")]) == 0
    mx.CausalLM.from_checkpoint(source).save(tmp_path / "saved")
    files = {path.name for path in (tmp_path / "saved").iterdir()}
    assert files >= {"packed_layers.json", "decoder.packed", "decoder-00000.packed", "tokenizer.json"}
    assert files == {path.name for path in (tmp_path / "packed").iterdir()}
    for path in (tmp_path / "packed").iterdir():
        assert (tmp_path / "saved" / path.name).read_bytes() == path.read_bytes(), path.name
    layers = mx.load_layers(tmp_path / "packed")
    assert [layer.layer_number for layer in layers] == list(range(3))[-len(layers) :]


def test_packed_of_packed(tmp_path: Path) -> None:
    source = whole_models.load("mixtral").write(tmp_path / "source")
    assert cli.main(["pack", str(source), str(tmp_path / "packed")]) == 0
    assert cli.main(["pack", str(tmp_path / "packed"), str(tmp_path / "again")]) == 0
    ids = whole_models.input_ids("mixtral")
    assert np.array_equal(mx.CausalLM.open(tmp_path / "again")(ids), mx.CausalLM.from_checkpoint(source)(ids))


def test_experts_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be run as a whole is packed layer by layer, which is said if it was to be expected."""
    folder = whole_models.changed("mixtral", final_logit_softcapping=30.0)
    assert cli.main(["pack", str(folder.write(tmp_path / "a")), str(tmp_path / "b"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["whole_model"] is False
    assert "packed alone: " in err
    assert "final_logit_softcapping" in err
    with pytest.raises(
        PackedFormatError, match=r"expected a packed folder of a whole model, with decoder.pac"
    ):
        mx.CausalLM.open(tmp_path / "b")
    arguments = ["pack", str(tmp_path / "a"), str(tmp_path / "c"), "--quantize-dense", "mxfp8"]
    assert cli.main(arguments) == 1
    assert not (tmp_path / "c").exists()


def test_quantized(isa: str, tmp_path: Path) -> None:
    """Other formats are near; which bits they have does not depend on how they came."""
    source = whole_models.load("qwen3_moe").write(tmp_path / "source")
    ids, golden = whole_models.input_ids("qwen3_moe"), whole_models.load("qwen3_moe").golden["logits"]
    lm = mx.CausalLM.from_checkpoint(source, quantize="mxfp8", quantize_dense="mxfp8")
    plain = mx.CausalLM.from_checkpoint(source)
    assert lm.nbytes < 0.8 * plain.nbytes
    logits = lm(ids)
    assert 1e-3 < rel_l2(logits, golden) < 0.5
    arguments = ["--quantize", "mxfp8", "--quantize-dense", "mxfp8"]
    assert cli.main(["pack", str(source), str(tmp_path / "packed"), *arguments]) == 0
    opened = mx.CausalLM.open(tmp_path / "packed")
    assert np.array_equal(opened(ids), logits)
    cache = opened.new_cache()
    pieces = [opened(part, cache) for part in np.split(ids[0], [1, 5])]
    assert np.array_equal(np.concatenate(pieces), logits[0])


@pytest.mark.parametrize("dense", [None, "int8"])
def test_shared_experts_are_quantized_with_the_dense_part(tmp_path: Path, dense: Any) -> None:
    source = whole_models.load("qwen2_moe").write(tmp_path / "source")
    lm = mx.CausalLM.from_checkpoint(source, quantize="mxfp8", quantize_dense=dense)
    blocks = [layer.block for layer in lm._decoder.layers if isinstance(layer.block, mx.MoELayer)]
    formats = {(block.experts.format, getattr(block.shared_experts, "format", "")) for block in blocks}
    assert formats == {("mxfp8", dense or "bf16")}
    layer = mx.MoELayer.from_checkpoint(source, quantize="mxfp8")
    plain = mx.MoELayer.from_checkpoint(source)
    assert layer.shared_experts == plain.shared_experts
    assert layer.shared_experts is not None


def test_wrong_arguments(tmp_path: Path) -> None:
    source = whole_models.load("gpt_oss").write(tmp_path / "source")
    with pytest.raises(ValueError, match="quantize_dense: expected 'mxfp4', 'mxfp8'"):
        mx.CausalLM.from_checkpoint(source, quantize_dense="int3")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match="experts: quantize: expected None for a checkpoint in gpt-oss MXFP4"
    ):
        mx.CausalLM.from_checkpoint(source, quantize="mxfp8")
    lm = mx.CausalLM.from_checkpoint(source)
    lm.save(tmp_path / "packed")
    with pytest.raises(ValueError, match="packed: expected nothing at that path, got a folder"):
        lm.save(tmp_path / "packed")
    lm.save(tmp_path / "packed", replace=True)
    with pytest.raises(
        ValueError, match="source: expected a packed folder, with packed_layers.json, got a f"
    ):
        lm.save(source, replace=True)
    with pytest.raises(ValueError, match="quantize: expected None for a model that is packed, got 'mxfp4'"):
        mx.CausalLM.from_checkpoint(tmp_path / "packed", quantize="mxfp4")
    with pytest.raises(PackedFormatError, match="source: expected a packed folder, which mxfp4moe pack"):
        mx.CausalLM.open(source)
    with pytest.raises(FileNotFoundError):
        mx.CausalLM.open(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["decoder.packed", "decoder-00001.packed", "layer-00001.packed"])
def test_damage(tmp_path: Path, name: str) -> None:
    lm = mx.CausalLM.from_checkpoint(whole_models.load("mixtral").write(tmp_path / "source"))
    lm.save(tmp_path / "packed")
    path = tmp_path / "packed" / name
    content = path.read_bytes()
    path.write_bytes(content[:-4096])
    with pytest.raises(PackedFormatError, match=name):
        mx.CausalLM.open(tmp_path / "packed")
    flipped = bytearray(content)
    path.write_bytes(content)
    flipped[next(iter(PackedFile(path).parts.values())).begin + 7] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(PackedFormatError, match=f"{name}: expected the checksum"):
        mx.CausalLM.open(tmp_path / "packed", verify=True)
    path.unlink()
    error = PackedFormatError if name == "decoder.packed" else FileNotFoundError  # others are packed without
    with pytest.raises(error, match=name):
        mx.CausalLM.open(tmp_path / "packed")


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    for name in ("mixtral", "qwen3_moe"):
        lm = mx.CausalLM.from_checkpoint(whole_models.load(name).write(tmp_path / f"{name}-source"))
        lm.save(tmp_path / name)
    path = tmp_path / "mixtral"
    (path / "decoder-00001.packed").write_bytes((path / "decoder-00000.packed").read_bytes())
    with pytest.raises(PackedFormatError, match="decoder-00001.packed: expected layer 1, got layer 0"):
        mx.CausalLM.open(path)
    (path / "decoder-00001.packed").write_bytes((tmp_path / "qwen3_moe/decoder-00001.packed").read_bytes())
    with pytest.raises(PackedFormatError, match="decoder-00001.packed: expected no parts but"):
        mx.CausalLM.open(path)
    (path / "decoder.packed").write_bytes((tmp_path / "qwen3_moe/decoder.packed").read_bytes())
    with pytest.raises(
        PackedFormatError, match="decoder.packed: expected 2 layers, as packed_layers.json say"
    ):
        mx.CausalLM.open(path)


def test_weights_are_mapped(tmp_path: Path) -> None:
    """Opening reads no weights: they are backed by the files, which processes share."""
    lm = mx.CausalLM.from_checkpoint(whole_models.load("mixtral").write(tmp_path / "source"))
    lm.save(tmp_path / "packed")
    script = (
        "import sys, mxfp4moe as mx\n"
        "lm = mx.CausalLM.open(sys.argv[1])\n"
        "lm([1, 2, 3])\n"
        "maps = open('/proc/self/smaps').read().split('VmFlags')\n"
        "files = [each for each in maps if '.packed' in each]\n"
        "print(len({line for each in files for line in each.splitlines() if '.packed' in line}))\n"
        "print(sum(int(each.split('Private_Dirty:')[1].split()[0]) for each in files))\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "packed"], capture_output=True, text=True, check=True
    )
    num_files, dirty = map(int, output.stdout.split())
    assert num_files == 1 + 2 * 2
    assert dirty == 0


def test_memory_while_loading(tmp_path: Path) -> None:
    """At most the packed model and one layer are in memory, mapped files included."""
    model = GptOss(
        hidden_size=512, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=2, num_experts=32,
        moe_intermediate_size=512, vocab_size=3000,
    )  # fmt: skip
    SyntheticCheckpoint(model, 0).write(tmp_path, lambda num_bytes: None)
    script = (
        "import sys, re, mxfp4moe as mx\n"
        "def status(key):\n"
        "    return int(re.search(key + r':\\s+(\\d+)', open('/proc/self/status').read())[1]) << 10\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"  # the peak begins anew
        "before = status('VmRSS')\n"
        "lm = mx.CausalLM.from_checkpoint(sys.argv[1])\n"
        "print(status('VmHWM') - before, lm.nbytes)\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True
    ).stdout
    peak, packed = map(int, output.split())
    assert packed > 8 * model.layer_bytes
    # 32 MiB are what packing takes for itself.
    assert peak <= packed + max(model.layer_bytes, model.end_bytes) + (32 << 20)
