"""Tests that compare what the C library computes with what Python does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c_library import ISAS, make
from packed_examples import ROUTINGS, make_layer

import mxfp4moe as mx
from mxfp4moe import config


@pytest.fixture(autouse=True)
def best_isa(request: pytest.FixtureRequest) -> Iterator[None]:
    """Without options the library takes the best instruction set, also where MXFP4MOE_ISA names another."""
    if "isa" in request.fixturenames:
        yield
    else:
        with mx.use_isa(mx.supported_isas()[-1]):
            yield


@pytest.fixture
def saved(rng: np.random.Generator, tmp_path: Path) -> tuple[Path, list[float]]:
    """A packed layer, and the numbers that the examples print."""
    layer = make_layer(rng, next(iter(ROUTINGS)))
    layer.save(tmp_path / "layer.packed")
    result = layer(np.ones(layer.hidden_size, np.float32))
    return tmp_path / "layer.packed", [float(result[0]), float(result[-1])]


@pytest.fixture
def options(isa: str) -> Any:
    """Options of the C library, with the instruction set for which it takes the kernel table of the test."""
    table = config._TABLES[config.active_kernels()]
    if not table.automatic:
        pytest.skip(f"{isa} is for tests of the package alone")
    with mx.use_isa(table.isa):
        preferred = config._TABLES[config.active_kernels()].name
    if preferred != isa:
        pytest.skip(f"{preferred} is what the C library takes for {table.isa}")
    return make("options", isa=ISAS[table.isa], num_threads=2)
