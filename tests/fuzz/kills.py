"""Kills at random moments while a name is written to: it leads to the old content or the new one, always."""

from __future__ import annotations

from pathlib import Path

import kills
import numpy as np
from bfloat16_models import write_model
from packed_examples import make_experts, make_layer

from fuzz.cases import Campaign, Case, Rng

BATCH = 10  # kills of one case
SETUP = """
import os, sys
import mxfp4moe as mx
from mxfp4moe.cli import main
sys.stderr = open(os.devnull, "w")
"""
COMMANDS = ("pack", "quantize", "save layer", "save experts")


def _prepare(folder: Path) -> Case:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir()
        write_model(folder / name, rng, "qwen3_moe")
        make_layer(rng, "minimax").save(folder / f"layer-{name}")
        make_experts(rng, "mxfp8 e4m3", num_experts=8).save(folder / f"experts-{name}")
    (folder / "out").mkdir()

    def case(rng: Rng) -> str:
        command = COMMANDS[rng.integers(len(COMMANDS))]
        path = folder / "out" / command
        codes = _code(command, folder, path, "a"), _code(command, folder, path, "b")
        # Before any operation on files, and at any time, also in the middle of a write.
        events, shares = rng.integers(1000, size=BATCH // 2), rng.random(BATCH // 2)
        with kills.Killer(SETUP) as killer:
            num_killed = kills.check_kills(killer, path, codes, map(int, events), map(float, shares))
        assert num_killed >= BATCH // 2
        return f"{command}, {BATCH} kills"

    return case


def _code(command: str, folder: Path, path: Path, name: str) -> str:
    if command.startswith("save"):
        kind, number = ("MoELayer", "layer") if command.endswith("layer") else ("PackedExperts", "experts")
        return f"mx.{kind}.open({str(folder / f'{number}-{name}')!r}).save({str(path)!r})"
    return f"assert main([{command!r}, {str(folder / name)!r}, {str(path)!r}, '--force']) == 0"


KILLS = Campaign("kills", _prepare)
