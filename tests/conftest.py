"""Fixtures of the whole suite.

`MXFP4MOE_SEED` changes the random problems. `MXFP4MOE_REQUIRE_ISAS`, a comma-separated list, fails the tests
that would otherwise be skipped because the machine cannot run one of these instruction sets. With
`MXFP4MOE_ISA` the tests run on the kernel tables of that instruction set alone.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from mxfp4moe import config
from mxfp4moe.checkpoint import models

SEED = int(os.environ.get("MXFP4MOE_SEED", "0"))
REQUIRED_ISAS = [name for name in os.environ.get("MXFP4MOE_REQUIRE_ISAS", "").split(",") if name]
FORCED_ISA = os.environ.get("MXFP4MOE_ISA", "")
TABLES = {table.name: table for table in config._TABLES if FORCED_ISA in ("", table.isa)}

# Fixtures hold no state that an example could change; the machine may be busy.
settings.register_profile(
    "mxfp4moe",
    deadline=None,
    derandomize="MXFP4MOE_SEED" not in os.environ,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("mxfp4moe")


def pytest_itemcollected(item: pytest.Item) -> None:
    if "isa" in getattr(item, "fixturenames", ()):
        item.add_marker("every_table")


def pytest_report_header() -> str:
    return f"mxfp4moe: MXFP4MOE_SEED={SEED}, kernel tables {', '.join(TABLES)}"


@pytest.fixture(params=TABLES)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each kernel table in turn: the name of the one that computes during the test."""
    name = request.param
    request.node.user_properties.append(("kernels", name))  # counted by .ci/isa_matrix.py
    if not TABLES[name].supported:
        report = pytest.fail if name in REQUIRED_ISAS else pytest.skip
        report(f"this machine cannot run the {name} kernels")
    with config._use_kernels(name):
        yield name


@pytest.fixture
def native_isa(isa: str) -> str:
    """`isa` without the scalar models of tile instructions, which are too slow for real sizes."""
    if "model" in isa:
        pytest.skip(f"{isa} is a scalar model, too slow for real sizes")
    return isa


@pytest.fixture
def keep_model_types() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    before = dict(models.MODELS)
    yield
    models.MODELS.clear()
    models.MODELS.update(before)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on the test and MXFP4MOE_SEED alone."""
    print(f"MXFP4MOE_SEED={SEED}")
    return np.random.default_rng([SEED, zlib.crc32(request.node.name.encode())])
