"""Code that pages show."""

from __future__ import annotations

import ast
from importlib.util import find_spec


def missing_libraries(code: str) -> list[str]:
    """The libraries that `code` imports and that are not installed here."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return sorted(name for name in names if find_spec(name) is None)
