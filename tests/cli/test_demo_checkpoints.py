"""``mxfp4moe demo --checkpoint``: every model that from_checkpoint takes is computed and found correct."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bfloat16_models import LAYERS, write_model
from checkpoints import MODELS
from model_folders import NAMES, load
from packed_examples import ROUTINGS, make_experts, make_layer

import mxfp4moe as mx
from mxfp4moe import cli


def demo(path: Path, *options: str) -> int:
    sizes = ("--tokens", "3", "--steps", "2", "--threads", "1")
    return cli.main(["demo", "--checkpoint", str(path), *sizes, *options])


@pytest.mark.parametrize("model", MODELS)
def test_model_is_correct(tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str) -> None:
    written = MODELS[model]()
    folder = written.write(tmp_path)
    assert demo(folder, "--layer", str(written.layer)) == 0
    out, err = capsys.readouterr()
    assert re.search(
        r"Check of 4 tokens against the float64 reference: .*: correct\n", out.replace("\n  ", " ")
    )
    assert err == ""


@pytest.mark.parametrize("name", NAMES)
def test_every_model_type_is_correct(tmp_path: Path, name: str) -> None:
    model = load(name)
    assert demo(model.write(tmp_path), "--layer", str(model.layer)) == 0


@pytest.mark.parametrize("kind", ROUTINGS)
def test_packed_layer_is_correct(tmp_path: Path, rng: np.random.Generator, kind: str) -> None:
    make_layer(rng, kind).save(tmp_path / "layer")
    assert demo(tmp_path / "layer") == 0


def test_first_layer_with_experts_is_taken(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path, rng, "qwen3_moe")
    packed = tmp_path.with_name(f"{tmp_path.name}-packed")
    assert cli.main(["pack", str(tmp_path), str(packed)]) == 0
    for path in (tmp_path, packed):
        capsys.readouterr()
        assert demo(path) == 0
        assert "layer=0," in capsys.readouterr().out
        assert demo(path, "--layer", str(LAYERS - 1)) == 0
        assert f"layer={LAYERS - 1}," in capsys.readouterr().out
        assert demo(path, "--layer", str(LAYERS)) == 1
        assert "layer: expected an integer in " in capsys.readouterr().err


def test_gguf_file_is_correct(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the gguf package, which writes the file, is not installed")
    import golden_gguf as gguf

    for number, (model, kind) in enumerate(
        ((gguf.mixtral, "MXFP4"), (gguf.qwen3, "BF16"), (gguf.gpt_oss, "MXFP4"))
    ):
        path = gguf.write(tmp_path / f"{number}.gguf", *model(kind)[:3])
        assert demo(path) == 0


def test_wrong_results_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shared expert that is left out, a factor, another token id: each is noticed."""
    written = MODELS["deepseek-v4"]()
    folder = written.write(tmp_path)
    compute = mx.MoELayer.__call__

    def wrong(self: mx.MoELayer, x: Any, input_ids: Any = None, **how: Any) -> Any:
        return compute(self, x, None if input_ids is None else input_ids[::-1], **how) * x.dtype.type(
            1.0 + 2.0**-5
        )

    monkeypatch.setattr(mx.MoELayer, "__call__", wrong)
    assert demo(folder, "--layer", str(written.layer)) == 1
    assert "WRONG" in capsys.readouterr().out


def test_experts_without_a_router_are_an_error(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    make_experts(rng, "mxfp4").save(tmp_path / "experts")
    assert demo(tmp_path / "experts") == 1
    err = capsys.readouterr().err
    assert str(tmp_path / "experts") in err
    assert err.count("\n") == 1
