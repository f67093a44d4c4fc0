"""What the documentation shows runs: docstrings, the README, the examples; and its links lead somewhere."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
from paths import ROOT
from shown_code import missing_libraries

import mxfp4moe as mx

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAGES = [
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "tests/**/*.md", "docs/**/*.md", "bench/*.md")
    for path in sorted(ROOT.glob(pattern))
]
# Their package needs JAX.
OF_JAX = [mx.jax] if find_spec("jax") else []
MODULES = [
    module.name
    for module in pkgutil.walk_packages(mx.__path__, "mxfp4moe.")
    if "__main__" not in module.name and (OF_JAX or not module.name.startswith("mxfp4moe.jax"))
]
# What needs no source: plain mathematics, and a change of form.
PLAIN = ("arrays_of", "sigmoid", "softmax")
PUBLIC_MODULES = (mx, mx.reference, mx.checkpoint, mx.mpi, mx.onnxruntime, *OF_JAX)
PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in PUBLIC_MODULES
    for name in module.__all__
    if inspect.isfunction(getattr(module, name)) or inspect.isclass(getattr(module, name))
}


@pytest.fixture(autouse=True)
def keep_process_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mxfp4moe.config._process_threads", None)


@pytest.mark.usefixtures("keep_model_types")
@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_of_a_module(name: str) -> None:
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, extraglobs={"mx": mx})
    assert failed == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_have_a_docstring_with_a_runnable_example(name: str) -> None:
    value = PUBLIC[name]
    text = inspect.getdoc(value) or ""
    examples = doctest.DocTestParser().get_examples(text)
    assert any(not example.options.get(doctest.SKIP) for example in examples)
    assert text.splitlines()[0].endswith(".")
    sections = re.findall(r"^(\w+)\n-+$", text, flags=re.MULTILINE)
    assert "Examples" in sections
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        assert "Parameters" in sections or not signature.parameters
        entries = re.findall(r"^(\w[\w, ]*?)(?: :.*)?$", text, flags=re.MULTILINE)
        documented = {word for entry in entries for word in entry.split(", ")}
        assert set(signature.parameters) <= documented
        assert {"Returns", "Yields"} & set(sections) or signature.return_annotation in ("None", None)
        # The reference does not check its arguments, as its docstring says.
        assert "Raises" in sections or not signature.parameters or name.startswith("mxfp4moe.reference.")
        computes = {"quantize", "routing", "reference", "fused"} & set(value.__module__.split("."))
        assert "References" in sections or not computes or value.__name__ in PLAIN


def methods_of(cls: type) -> Iterator[tuple[type, str, Callable[..., object]]]:
    """The public methods of a class that this package wrote, each with the class that defines it."""
    for name in dir(cls):
        owner = next(base for base in cls.__mro__ if name in vars(base))
        if owner.__module__.startswith("mxfp4moe.") and not name.startswith("_"):
            value = getattr(cls, name)
            if inspect.isroutine(value):
                yield owner, name, value


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if inspect.isclass(value)])
def test_public_methods_have_a_docstring_with_all_parts(name: str) -> None:
    """Their examples are their own or among those of their class."""
    for cls, method, value in methods_of(PUBLIC[name]):
        text = inspect.getdoc(value) or ""
        sections = re.findall(r"^(\w+)\n-+$", text, flags=re.MULTILINE)
        parameters = {*inspect.signature(value).parameters} - {"self"}
        assert text.splitlines()[0].endswith("."), method
        assert not parameters or {"Parameters", "Raises"} <= {*sections}, method
        assert "Returns" in sections or inspect.signature(value).return_annotation == "None", method
        assert "Examples" in sections or f".{method}(" in (cls.__doc__ or ""), method


@pytest.mark.parametrize("module", PUBLIC_MODULES, ids=lambda module: module.__name__)
def test_all_holds_public_names_only(module: ModuleType) -> None:
    names = list(module.__all__)
    assert names == sorted(set(names))
    assert not [name for name in names if name.startswith("_") or inspect.ismodule(getattr(module, name))]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_shown_and_print_what_they_say(example: Path) -> None:
    shown = [
        block
        for page in PAGES
        for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    ]
    assert example.read_text() in shown
    if missing := missing_libraries(example.read_text()):
        pytest.skip(f"not installed: {', '.join(missing)}")
    result = subprocess.run([sys.executable, example], capture_output=True, text=True, timeout=120)
    said = re.findall(r"^print\(.*\)  # (.*)$", example.read_text(), flags=re.MULTILINE)
    assert (result.returncode, result.stdout.splitlines(), result.stderr) == (0, said, "")


def test_readme_begins_with_an_example() -> None:
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert blocks == [(ROOT / "examples" / "quick_start.py").read_text()]


def test_plots_and_tables_show_the_same_figures(tmp_path: Path) -> None:
    script = ROOT / "bench" / "speed_plots.py"
    command = [sys.executable, script, tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == ["roofline.svg", "speed.svg"]
    for name in drawn:
        assert (tmp_path / name).read_text() == (ROOT / "docs" / "images" / name).read_text()
    page = (ROOT / "docs" / "performance.md").read_text()
    tables = result.stdout.strip().split("\n\n")
    assert len(tables) == 2
    assert all(f"|\n{table}\n\n" in page for table in tables)


@pytest.mark.nightly
def test_formats_page_shows_the_measured_errors() -> None:
    script = ROOT / "bench" / "quantization_error.py"
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=True)
    tables = result.stdout.strip().split("\n\n")
    page = (ROOT / "docs" / "formats.md").read_text()
    assert len(tables) == 2 and all(table in page for table in tables)


@pytest.mark.parametrize("page", PAGES)
def test_links_within_the_repository(page: str) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text())
    missing = [link for link in links if "://" not in link and not ((ROOT / page).parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_links_to_headings(page: str) -> None:
    missing = []
    for link, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", (ROOT / page).read_text()):
        if "://" not in link:
            target = (ROOT / page).parent / link if link else ROOT / page
            headings = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            missing += [] if anchor in anchors else [f"{link}#{anchor}"]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_files_that_pages_name_exist(page: str) -> None:
    names = re.findall(r"`((?:src|tests|docs|examples|\.ci)/[\w./]+)`", (ROOT / page).read_text())
    assert not [name for name in names if not (ROOT / name).exists()]


def test_version_is_that_of_the_changelog_and_the_build() -> None:
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert versions[0] == mx.__version__
    assert version("mxfp4moe") == mx.__version__
