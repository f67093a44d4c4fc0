"""Tests that compare what the C library computes with what Python does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import mxfp4moe as mx


@pytest.fixture(autouse=True)
def best_isa(request: pytest.FixtureRequest) -> Iterator[None]:
    """Without options the library takes the best instruction set, also where MXFP4MOE_ISA names another."""
    if "isa" in request.fixturenames:
        yield
    else:
        with mx.use_isa(mx.supported_isas()[-1]):
            yield
