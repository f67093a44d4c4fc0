"""Fixtures of the whole suite.

`MXFP4MOE_SEED` changes the random problems. `MXFP4MOE_REQUIRE_ISAS`, a comma-separated list, fails the tests
that would otherwise be left out because the machine cannot run one of these kernel tables. With
`MXFP4MOE_ISA` the tests run on the kernel tables of that instruction set alone.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

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

# The others have no tests: test_config.py skips each of them once and gives the reason.
RUNNABLE = [name for name, table in TABLES.items() if table.supported or name in REQUIRED_ISAS]


PREFERRED = config._TABLES[config.active_kernels()].name

# What is computed by code of a kernel table; what is in the other folders calls it.
OF_TABLES = {"kernels", "linear", "attention", "quantize", "routing"}
# The models of tiles share the rest with another table.
OF_MODELS = {"kernels", "linear"}


def pytest_itemcollected(item: pytest.Item) -> None:
    fixtures = getattr(item, "fixturenames", ())
    if "isa" not in fixtures:
        return
    item.add_marker("every_table")
    table = item.callspec.params["isa"]  # type: ignore[attr-defined]
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    if table != PREFERRED and folder not in (OF_MODELS if "model" in table else OF_TABLES):
        item.add_marker("nightly")
    # Plain C++ takes ten times as long as vectors, where a machine has them.
    if "native_isa" in fixtures and table == "portable" != config.active_isa():
        item.add_marker("nightly")
    # Before other fixtures prepare anything for it.
    if "native_isa" in fixtures and "model" in table:
        item.add_marker(pytest.mark.skip(f"{table} is a scalar model, too slow for real sizes"))


def pytest_report_header() -> str:
    lacking = [name for name in TABLES if name not in RUNNABLE]
    tables = f"kernel tables {', '.join(RUNNABLE)}; not on this machine: {', '.join(lacking) or 'none'}"
    return f"mxfp4moe: MXFP4MOE_SEED={SEED}, {tables}"


@pytest.fixture(params=RUNNABLE)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each kernel table in turn: the name of the one that computes during the test."""
    name = request.param
    request.node.user_properties.append(("kernels", name))  # counted by .ci/isa_matrix.py
    if not TABLES[name].supported:
        pytest.fail(f"this machine cannot run the {name} kernels, which MXFP4MOE_REQUIRE_ISAS lists")
    with config._use_kernels(name):
        yield name


@pytest.fixture
def native_isa(isa: str) -> str:
    """`isa` without the scalar models of tile instructions, which are too slow for real sizes."""
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
