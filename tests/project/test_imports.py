"""Imports of the package point downward: none of a room above its own, and none in a circle."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from mxfp4moe import _core
from mxfp4moe.experts import quantizing
from mxfp4moe.experts.activation import Activation
from mxfp4moe.formats import FORMATS, Format
from mxfp4moe.quantize._common import ScaleRule

ROOMS = (
    ("errors", "_core", "_embedding", "_immutable", "_startup", "_unix"),
    ("_dlpack",),
    (
        "_arguments",
        "_json",
        "_dtypes",
        "_files",
        "_file_bytes",
        "_placeholders",
        "_progress",
        "formats",
        "config",
    ),
    ("reference", "quantize", "routing", "packed"),
    ("experts", "linear", "self_attention"),
    (
        "_nonfinite",
        "layer_chooser",
        "layer_values",
        "layer_texts",
        "layer_description",
        "layer_file",
        "layer_ahead",
        "layer_load",
        "layer_routing",
        "layer_sum",
    ),
    ("checkpoint",),
    ("layer", "loading"),
    ("jax", "model", "mpi", "onnxruntime"),
    ("cli", "__main__"),
)
"""The floors from the ground up: a module imports from its own floor and from those below."""

_spec = find_spec("mxfp4moe")
assert _spec is not None
assert _spec.origin is not None
PACKAGE = Path(_spec.origin).parent


def modules() -> dict[str, Path]:
    """Every module of the package by its name, without ``mxfp4moe.``; a package is its __init__."""
    result = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            result[name] = path
    return result


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports, lazily or for types too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or path.name == "__init__.py" or path.parent.name == "reference", path
            base = node.module or ""
            if node.level:
                package = ".".join(path.relative_to(PACKAGE).parent.parts)
                base = f"mxfp4moe.{package}.{base}".rstrip(".")
            names |= {f"{base}.{alias.name}" for alias in node.names} | {base}
    inside = {name.removeprefix("mxfp4moe.") for name in names if name.startswith("mxfp4moe.")}
    return inside & known.keys()


def room_of(module: str) -> int:
    first = module.split(".")[0]
    return next(floor for floor, rooms in enumerate(ROOMS) if first in rooms)


def test_every_module_has_a_room() -> None:
    assert {name.split(".")[0] for name in modules()} <= {name for rooms in ROOMS for name in rooms}


def test_what_unix_alone_has_is_in_one_module() -> None:
    """So that what another system needs can be seen in one place."""
    for name, path in modules().items():
        text = path.read_text()
        found = re.findall(r"import (?:fcntl|resource|termios|pwd|grp)\b|\bSIGHUP\b", text)
        assert name == "_unix" or not found, path


def test_no_import_points_upward() -> None:
    known = modules()
    upward = [
        f"{module} imports {other}"
        for module, path in known.items()
        for other in imports(path, known)
        if room_of(other) > room_of(module)
    ]
    assert not upward


def test_nothing_below_the_commands_imports_the_package_itself() -> None:
    """It imports almost all modules, so that such an arrow would point upward."""
    parts = {name.split(".")[0] for name in modules()} | {"_core"}
    for module, path in modules().items():
        if module.split(".")[0] in ROOMS[-1]:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert "mxfp4moe" not in {alias.name for alias in node.names}, path
            elif isinstance(node, ast.ImportFrom) and node.module == "mxfp4moe" and not node.level:
                assert {alias.name for alias in node.names} <= parts, path


def test_no_import_goes_in_a_circle() -> None:
    known = modules()
    # Importing a module runs the packages that it lies in; a package's own modules are what it is made of.
    graph = {}
    for module, path in known.items():
        wanted = imports(path, known)
        packages = {
            ".".join(name.split(".")[:end]) for name in wanted for end in range(1, name.count(".") + 1)
        }
        graph[module] = {name for name in wanted | packages if not module.startswith(f"{name}.")} - {module}
    list(TopologicalSorter(graph).static_order())  # a CycleError names the circle


def test_the_package_imports_readers_and_models_when_they_are_asked_for() -> None:
    """They take longer to import than all else together."""
    code = "import sys, mxfp4moe; print([name for name in sys.modules if name.startswith('mxfp4moe')])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    late = [
        name for name in ("checkpoint", "model", "reference", "cli") if f"'mxfp4moe.{name}" in result.stdout
    ]
    assert not late


def test_the_package_imports_without_docstrings() -> None:
    subprocess.run([sys.executable, "-OO", "-c", "import mxfp4moe"], check=True)


def test_names_of_types_are_those_of_the_enumerations() -> None:
    """Type checkers need the names in Literal; the C++ library's enumerations have the numbers."""
    literals = {Activation: _core.ACTIVATIONS, Format: FORMATS, ScaleRule: _core.SCALE_RULES}
    literals[quantizing.QuantizeFormat] = quantizing._QUANTIZERS
    for literal, names in literals.items():
        assert set(get_args(literal)) == set(names)
