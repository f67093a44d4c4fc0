"""Extras: what an error or a page suggests to install is there, and brings what is missing."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import sys
from pathlib import Path

import pytest
from paths import ROOT

import mxfp4moe
from mxfp4moe.cli._bench import plot
from mxfp4moe.cli._bench.contenders import PEERS
from mxfp4moe.cli._generate import texts

PACKAGE = Path(mxfp4moe.__file__).parent
METADATA = importlib.metadata.metadata("mxfp4moe")
EXTRAS = set(METADATA.get_all("Provides-Extra", []))

# Compiled for each machine by its own build, and no part of an extra: errors and pages say so.
APART = {"llama_cpp": "llama-cpp-python"}


def requirements(extra: str | None) -> set[str]:
    """The packages that the extra brings, or that come without any, by the names of their modules."""
    found = set()
    for line in importlib.metadata.requires("mxfp4moe") or []:
        wanted = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if (wanted[1] if wanted else None) == extra:
            found.add(re.match(r"[\w.-]+", line)[0].replace("-", "_").lower())  # type: ignore[index]
    return found


def loaded_modules(path: Path) -> set[str]:
    """The first names of all modules that a file imports, or looks for, at any time."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "find_spec")):
            names |= {str(each.value) for each in node.args if isinstance(each, ast.Constant)}
    return {name.partition(".")[0] for name in names}


def test_each_extra_that_a_text_names_exists() -> None:
    texts = [*PACKAGE.rglob("*.py"), *ROOT.glob("*.md"), *ROOT.glob("*/**/*.md"), *ROOT.glob(".ci/*.sh")]
    named = {
        (extra, str(path))
        for path in texts
        if "build" not in path.parts and ".venv" not in path.as_posix()
        for group in re.findall(r"(?:mxfp4moe|['\"]\.)\[([a-z][\w, -]*)\]", path.read_text())
        for extra in re.split(r",\s*", group)
    }
    assert {extra for extra, _ in named} >= {"bench", "test"}
    assert not {(extra, path) for extra, path in named if extra not in EXTRAS}


def test_each_package_that_is_loaded_can_be_had() -> None:
    known = {*sys.stdlib_module_names, "mxfp4moe", *requirements(None), *APART}
    # Only the commands that measure and that make texts, JAX and several ranks need more than the package.
    needs = {PACKAGE / "cli" / f"_{extra}": requirements(extra) for extra in ("bench", "generate")}
    needs |= {PACKAGE / extra: requirements(extra) for extra in ("jax", "mpi", "onnxruntime")}
    for path in PACKAGE.rglob("*.py"):
        allowed = [extra for folder, extra in needs.items() if path.is_relative_to(folder)]
        assert loaded_modules(path) - known <= set().union(*allowed), path


def test_an_error_about_a_missing_package_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    messages = [plot.unusable("a.png"), *(peer.missing() for peer in PEERS.values())]
    messages += [texts.missing(package) for package in requirements("generate")]
    messages = [message for message in messages if message]
    assert len(messages) >= 5
    for message in messages:
        found = re.fullmatch(
            r"the package ([\w-]+) is not installed \(pip install '?([\w\[\]-]+)'?\)", message
        )
        assert found, message
        package, suggested = found[1], found[2]
        extra = re.fullmatch(r"mxfp4moe\[(\w+)\]", suggested)
        assert package in requirements(extra[1]) if extra else suggested == package in APART.values()
