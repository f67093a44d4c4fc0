"""``mxfp4moe selftest``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mxfp4moe as mx
from mxfp4moe import config
from mxfp4moe.cli import _selftest, main


def test_every_table_is_named_and_those_that_run_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for table in config._TABLES:
        (line,) = (line for line in lines if line.split()[0] == table.name)
        assert ("passed" if table.supported else "skipped: ") in line
    assert lines[-1].endswith(" 0 failed")
    assert mx.__version__ in lines[0]
    assert np.__version__ in lines[0]


@pytest.mark.parametrize("seed", [1, pytest.param(20260101, marks=pytest.mark.nightly)])
def test_other_seeds_pass(isa: str, seed: int) -> None:
    assert [case.problem() for case in _selftest.cases(seed) if case.problem()] == []


@pytest.mark.parametrize(
    "name", ["fused_experts", "quantize_nvfp4", "dequantize_mxfp8", "topk_softmax", "attention", "rms_norm"]
)
def test_a_wrong_bit_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(mx, name)

    def wrong(*args: Any, **options: Any) -> Any:
        results = right(*args, **options)
        first = results[0] if isinstance(results, tuple) else results
        first.view(np.uint8).reshape(-1)[-1] ^= 1
        return results

    monkeypatch.setattr(mx, name, wrong)
    problems = list(filter(None, (case.problem() for case in _selftest.cases(0))))
    assert problems
    assert all(name in problem and "values differ, the first at" in problem for problem in problems)


def test_a_call_that_fails_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*args: Any, **options: Any) -> Any:
        raise MemoryError("no memory")

    monkeypatch.setattr(mx.MoELayer, "router_logits", fails)
    assert main(["selftest"]) == 1
    out = capsys.readouterr().out
    assert "FAILED" in out
    assert "router_logits: MemoryError: no memory" in out
