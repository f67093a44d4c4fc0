"""Runs that are killed: old or new content under the name at any moment, and nothing that stays behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bfloat16_models import write_model
from kills import Killer, Moment, check_kills, snapshot
from packed_examples import make_experts

SETUP = """
import os, sys
import numpy as np, mxfp4moe as mx
from mxfp4moe import _core, _files
from mxfp4moe.checkpoint.safetensors import save_file
from mxfp4moe.cli import main
sys.stderr = open(os.devnull, "w")
"""
EVENTS = (0, 1, 3, 8, 20, 33, -30, -12, -6, -4, -3, -2, -1)  # the exchange is near the end


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with Killer(SETUP) as process:
        yield process


@pytest.fixture
def commands(tmp_path: Path, rng: np.random.Generator, request: pytest.FixtureRequest) -> tuple[str, str]:
    """Two commands that write different models to `out`, in its folder alone."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_model(tmp_path / name, rng, "qwen3_moe")
    (tmp_path / "out").mkdir()
    out = str(tmp_path / "out" / "model")
    first, second = (
        f"assert main([{request.param!r}, {str(tmp_path / name)!r}, {out!r}, '--force']) == 0"
        for name in "ab"
    )
    return first, second


@pytest.mark.parametrize("commands", ["pack", "quantize"], indirect=True)
def test_a_killed_command_leaves_the_old_model_or_the_new_one(
    killer: Killer, tmp_path: Path, rng: np.random.Generator, commands: tuple[str, str]
) -> None:
    num_killed = check_kills(killer, tmp_path / "out" / "model", commands, EVENTS, rng.random(6))
    assert num_killed >= len(EVENTS)


@pytest.mark.parametrize("kind", ["experts", "tensors"])
def test_a_killed_save_leaves_the_old_file_or_the_new_one(
    killer: Killer, tmp_path: Path, rng: np.random.Generator, kind: str
) -> None:
    path = tmp_path / "out" / "file"
    path.parent.mkdir()
    if kind == "experts":
        for name in "ab":
            make_experts(rng, "mxfp4", num_experts=40).save(tmp_path / name)
        codes = tuple(f"mx.PackedExperts.open('{tmp_path}/{name}').save('{path}')" for name in "ab")
    else:
        codes = tuple(f"save_file('{path}', {{'x': np.full(1 << 20, {n}, np.uint8)}})" for n in (1, 2))
    first, second = codes
    num_events = killer.run(first).events
    num_killed = check_kills(killer, path, (first, second), range(num_events), rng.random(6))
    assert num_killed >= num_events


@pytest.mark.nightly
@pytest.mark.parametrize("commands", ["pack"], indirect=True)
def test_where_names_cannot_be_exchanged_the_next_run_finds_the_old_model(
    tmp_path: Path, commands: tuple[str, str]
) -> None:
    path = tmp_path / "out" / "model"
    with Killer(SETUP + "_core.exchange_names = lambda a, b: False") as killer:
        first, second = commands
        contents = []
        for code in commands:
            num_events = killer.run(code).events
            contents.append(snapshot(path))
        gaps = 0
        for event in range(num_events - 25, num_events):
            former = snapshot(path)
            code = second if former == contents[0] else first
            assert killer.run(code, Moment(event)).killed
            if not path.exists():
                gaps += 1
                killer.run(f"_files.remove_abandoned(_files.Path({str(path)!r}))")
                assert snapshot(path) == former
            assert snapshot(path) in contents
        assert gaps  # else this test would show nothing
        killer.run(first)
        assert [entry.name for entry in path.parent.iterdir()] == ["model"]
