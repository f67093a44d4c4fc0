"""What the site and the package's description are made of: pages of the API, pictures, one URL, its links."""

from __future__ import annotations

import doctest
import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest
from paths import ROOT

import mxfp4moe as mx

API = sorted((ROOT / "docs" / "api").glob("*.md"))
TEXT_FILES = {".md", ".py", ".toml", ".sh", ".yml", ".yaml", ".txt", ".html", ".css", ".svg", ".json"}


@pytest.fixture(scope="module")
def project() -> ModuleType:
    """docs/_project.py, which both builds import."""
    spec = importlib.util.spec_from_file_location("_project", ROOT / "docs" / "_project.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_public_name_once() -> None:
    directives = [
        (kind, name)
        for page in API
        for kind, name in re.findall(
            r"^\.\. auto(\w+):: mxfp4moe\.(\w+)$", page.read_text(), flags=re.MULTILINE
        )
    ]
    # A module's page has all names of its __all__.
    modules = sorted(name for kind, name in directives if kind == "module")
    assert modules == sorted(mx._MODULES)
    names = sorted(name for kind, name in directives if kind != "module")
    assert names == sorted(mx.__all__)
    described = [
        name
        for page in API
        for name in re.findall(r"^\.\. py:data:: mxfp4moe\.([\w.]+)$", page.read_text(), flags=re.MULTILINE)
    ]
    data = [
        f"{module}.{name}"
        for module in mx._MODULES
        if module != "jax" or importlib.util.find_spec("jax")  # without which it is not imported
        for name in getattr(mx, module).__all__
        if not inspect.isroutine(value := getattr(getattr(mx, module), name)) and not inspect.isclass(value)
    ]
    assert sorted(described) == sorted(data)


@pytest.mark.parametrize("page", API, ids=lambda path: path.stem)
def test_examples_of_the_reference(page: Path) -> None:
    failed, _ = doctest.testfile(str(page), module_relative=False)
    assert failed == 0


def test_the_address_of_the_project_is_written_once(project: ModuleType) -> None:
    places = [
        path.relative_to(ROOT).as_posix()
        for folder in ("", "docs", "src", "tests", "bench", "examples", ".ci", ".github")
        for path in ((ROOT / folder).rglob("*") if folder else ROOT.glob("*"))
        if path.suffix in TEXT_FILES and project.project_url() in path.read_text(encoding="utf-8")
    ]
    assert places == ["pyproject.toml"]


def test_links_of_the_description_lead_there_from_anywhere(project: ModuleType) -> None:
    text = project.dynamic_metadata({}, {})["readme"]["text"]
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) == len(re.findall(r"\]\(", (ROOT / "README.md").read_text()))
    url = project.project_url()
    for link in links:
        path = re.sub(rf"^{re.escape(url)}/(blob|raw)/main/", "", link).partition("#")[0]
        assert path == "" or (link.startswith(f"{url}/") and (ROOT / path).is_file()), link
    assert f"{url}/raw/main/docs/images/speed.svg" in links


@pytest.mark.parametrize(
    ("link", "replaced"),
    [
        ("docs/a.md", "<docs/a.md>"),
        ("docs/a.md#b", "<docs/a.md#b>"),
        ("../a.md", "<../a.md>"),
        ("#b", "#b"),
        ("https://example.com/x", "https://example.com/x"),
        ("mailto:a@example.com", "mailto:a@example.com"),
    ],
)
def test_which_links_are_replaced(project: ModuleType, link: str, replaced: str) -> None:
    for before in ("[text]", "![text]", "[`code`]"):
        text = f"See {before}({link}), not (docs/a.md)."
        assert (
            project.replace_links(text, lambda found: f"<{found}>")
            == f"See {before}({replaced}), not (docs/a.md)."
        )


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "images").glob("*.svg")), ids=lambda path: path.name)
def test_pictures_are_shown_and_say_what_they_show(path: Path) -> None:
    text = path.read_text()
    assert "<title>" in text
    assert not re.search(r'(href|src)="|url\((?!#)', text), "nothing is loaded from elsewhere"
    pages = [page.read_text() for page in (ROOT / "docs").glob("*.md")]
    assert any(re.search(rf"!\[[^\]]{{30,}}\]\(images/{path.name}\)", page) for page in pages)
