"""The model of bench/scaling.py, in cases that can be counted by hand."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from paths import ROOT

K, BYTES, PRODUCTS = 32, 3 * 32 * 64 * 4.25 / 8, 3 * 32 * 64


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    spec = spec_from_file_location("scaling", ROOT / "bench" / "scaling.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["scaling"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_call_is_the_sum_of_its_steps(scaling: ModuleType) -> None:
    shape, rates = scaling.Shape(K, 64, 4, 2), scaling.Rates(1.0, 8.0, 2.0, 4.0, 0.5)
    # Rank 0 has experts 0 and 1. Its token needs 1 and 2, so rank 1 gets it and returns one term; the two
    # tokens of rank 1 need its own experts alone.
    ids = [np.array([[1, 2]], np.int32), np.array([[2, 3], [3, 2]], np.int32)]
    call = scaling.predict(shape, rates, [[0, 1], [2, 3]], ids)
    assert call.computing == 0.5 + 2 * BYTES / 2 + 5 * PRODUCTS / 4
    assert call.exchanging == (1 + (2 * K + 16) / 8) + (1 + 4 * K / 8)
    assert call.agreeing == 3
    assert call.imbalance == 5 / 3
    assert call.token_bytes == (2 * K + 16 + 4 * K) / 3
    assert call.seconds == call.computing + call.exchanging + call.agreeing
    assert scaling.alone(shape, rates, ids) == 0.5 + 2 * BYTES / 2 + 4 * PRODUCTS / 4


def test_one_rank_sends_nothing(scaling: ModuleType) -> None:
    shape, rates = scaling.Shape(K, 64, 4, 2), scaling.Rates(1.0, 8.0, 2.0, 4.0, 0.5)
    ids = [np.array([[1, 2]], np.int32)]
    call = scaling.predict(shape, rates, [[0, 1, 2, 3]], ids)
    assert call[1:] == (0, 0, 1, 0)
    assert call.computing == scaling.alone(shape, rates, ids)


def test_experts_that_are_cut(scaling: ModuleType) -> None:
    shape, rates = scaling.Shape(K, 64, 4, 2), scaling.Rates(1.0, 8.0, 2.0, 4.0, 0.5)
    ids = [np.array([[1, 2]], np.int32), np.array([[2, 3], [3, 2]], np.int32)]
    call = scaling.predict_cut(shape, rates, ids)
    assert call.computing == 0.5 + 3 * BYTES / 2 / 2 + 6 * PRODUCTS / 2 / 4
    # Rank 1 sends two tokens; both send half of all intermediates; rank 0 sends back half of two rows.
    there, between, back = 2 * (2 * K + 8 * 2), 6 * 64 * 2 / 2, 2 * 4 * K / 2
    assert call.exchanging == (1 + there / 8) + (1 + between / 8) + (1 + back / 8)
    assert call.token_bytes == (1.5 * there + 2 * between + 1.5 * back) / 3
    alone = scaling.predict_cut(shape, rates, ids[:1])
    assert alone.token_bytes == alone.exchanging == 0
    assert alone.computing == scaling.alone(shape, rates, ids[:1])


def test_routings(scaling: ModuleType, tmp_path: Path, rng: np.random.Generator) -> None:
    np.save(tmp_path / "loads.npy", [0, 300, 100, 0])
    loads = scaling.popularity(str(tmp_path / "loads.npy"), 4)
    assert np.allclose(loads, [0, 0.75, 0.25, 0], atol=1e-9)
    with pytest.raises(SystemExit, match="--routing: expected 5 counts"):
        scaling.popularity(str(tmp_path / "loads.npy"), 5)
    for chances in (loads, scaling.popularity("zipf", 4), scaling.popularity("uniform", 4)):
        assert chances.sum() == pytest.approx(1)
        ids = scaling.draw(rng, chances, 50, 2)
        assert (ids[:, 0] != ids[:, 1]).all()
        for name in ("by_load", "contiguous", "round_robin"):
            for ranks in (1, 3):
                placement = scaling.place(name, chances, ranks)
                assert {expert for part in placement for expert in part} == set(range(4))
    assert set(scaling.draw(rng, loads, 50, 2).ravel()) == {1, 2}
