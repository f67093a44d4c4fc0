"""The page of all model types says what their rows say."""

from __future__ import annotations

from types import ModuleType

import model_table
import pytest

from mxfp4moe.checkpoint import models
from mxfp4moe.checkpoint.gguf.architectures import ARCHITECTURES

MODULES = [each for each in vars(models).values() if isinstance(each, ModuleType)]
ROWS = [row for module in MODULES for row in getattr(module, "MODEL_TYPES", ())]


@pytest.mark.parametrize("number", range(2))
def test_page_has_the_tables_of_the_rows(number: int) -> None:
    lines = model_table.tables()[number]
    assert model_table.table_in(model_table.PAGE.read_text(), lines[:1]) == lines


def test_every_type_is_in_the_table() -> None:
    """The rows of the package are all there; other tests of this process may have registered more types."""
    assert sorted(model_table.WORDS) == sorted(row.model_types[0] for row in ROWS)
    architectures = {name for _, names in model_table.WORDS.values() for name in names.split()}
    assert architectures <= ARCHITECTURES.keys()
