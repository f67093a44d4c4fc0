"""Layers on real ranks: a few random cases, errors and time-outs, each as a run of mpiexec."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import whole_models

import mxfp4moe as mx

MPIEXEC = shlex.split(os.environ.get("MXFP4MOE_MPIEXEC", ""))
SCRIPT = Path(__file__).with_name("random_cases.py")

pytestmark = pytest.mark.skipif(
    not MPIEXEC or find_spec("mpi4py") is None,
    reason="MXFP4MOE_MPIEXEC names no mpiexec (with its options), or mpi4py is not installed",
)


def run(num_ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    words = [*MPIEXEC, "-n", str(num_ranks), sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 7])
def test_random_cases(num_ranks: int) -> None:
    cases = os.environ.get("MXFP4MOE_MPI_CASES", "10")
    result = run(num_ranks, "--cases", cases, "--seed", str(num_ranks))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "the same bits" in result.stdout


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_errors_of_one_rank_are_those_of_all(num_ranks: int) -> None:
    result = run(num_ranks, "--faults")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "errors on all" in result.stdout


def test_nobody_waits_for_ever() -> None:
    result = run(3, "--timeout")
    assert result.returncode != 0
    for rank in range(3):
        assert f"rank {rank} has ended in time" in result.stdout, result.stdout + result.stderr


def test_the_next_layer_is_read_ahead(tmp_path: Path) -> None:
    result = run(3, "--ahead", str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 ranks have read ahead" in result.stdout


# --- whole models -------------------------------------------------------------------------------------------


def generate(path: Path, num_ranks: int, *options: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "mxfp4moe", "generate", "--checkpoint", str(path)]
    words += ["--ids", "3", "1", "4", "--max-new-tokens", "6", "--stop", "99999", "--json", *options]
    started = words if num_ranks == 1 else [*MPIEXEC, "-n", str(num_ranks), *words]
    return subprocess.run(started, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("name", ["gpt_oss", "glm4_moe"])
def test_a_model_gives_the_text_of_one_process(tmp_path: Path, name: str, is_packed: bool) -> None:
    path = whole_models.load(name).write(tmp_path / "model")
    if is_packed:
        mx.CausalLM.from_checkpoint(path).save(tmp_path / "packed")
        path = tmp_path / "packed"
    alone, together = generate(path, 1), generate(path, 3)
    assert together.returncode == alone.returncode == 0, together.stderr
    assert json.loads(together.stdout)["ids"] == json.loads(alone.stdout)["ids"]


def test_each_rank_may_have_a_limit_of_memory(tmp_path: Path) -> None:
    path = whole_models.load("gpt_oss").write(tmp_path / "model")
    mx.CausalLM.from_checkpoint(path).save(tmp_path / "packed")
    too_little = generate(tmp_path / "packed", 2, "--memory-limit", "1")
    assert too_little.returncode != 0
    least = re.search(r"memory_limit: expected at least (\d+) bytes", too_little.stderr)
    assert least is not None
    limited = generate(tmp_path / "packed", 2, "--memory-limit", least[1])
    assert limited.returncode == 0, limited.stderr
    assert json.loads(limited.stdout)["ids"] == json.loads(generate(path, 1).stdout)["ids"]
    assert json.loads(limited.stdout)["bytes_read"] > 0


def test_a_model_that_is_not_there_is_an_error_of_all(tmp_path: Path) -> None:
    result = generate(tmp_path / "nothing", 3)
    assert result.returncode == 1
    assert "expected a model folder, got nothing at that path" in result.stderr
