"""The script that writes a version and cuts the changelog."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

if not (ROOT / ".ci").is_dir():
    pytest.skip("needs a clone", allow_module_level=True)

CHANGELOG = """# Changelog

## [Unreleased]

### Added

- A thing.

## [0.1.0] - 2025-01-31

### Added

- All.
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "src/mxfp4moe").mkdir(parents=True)
    (tmp_path / "src/mxfp4moe/__init__.py").write_text('"""Package."""\n\n__version__ = "0.1.0"\nx = 1\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    return tmp_path


def cut(tree: Path, version: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / ".ci/cut_release.py", tree, version]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def contents(tree: Path) -> list[str]:
    return [(tree / name).read_text() for name in ("src/mxfp4moe/__init__.py", "CHANGELOG.md")]


@pytest.mark.parametrize("version", ["0.2.0", "1.0.0rc1"])
def test_a_release_is_cut_once(tree: Path, version: str) -> None:
    result = cut(tree, version)
    assert (result.returncode, result.stderr) == (0, "")
    date = result.stdout.strip()
    package, changelog = contents(tree)
    assert package == f'"""Package."""\n\n__version__ = "{version}"\nx = 1\n'
    heading = "## [Unreleased]\n"
    assert changelog == CHANGELOG.replace(heading, f"{heading}\n## [{version}] - {date}\n")
    assert cut(tree, version).stdout.strip() == date
    assert contents(tree) == [package, changelog]


def test_the_section_in_preparation_becomes_the_release(tree: Path) -> None:
    (tree / "CHANGELOG.md").write_text(CHANGELOG.replace("0.1.0] - 2025-01-31", "0.1.0] - in preparation"))
    date = cut(tree, "0.1.0").stdout.strip()
    _, changelog = contents(tree)
    assert changelog.count("## [") == 2
    assert f"## [Unreleased]\n\n## [0.1.0] - {date}\n\n### Added\n\n- A thing.\n" in changelog
    assert "- All.\n" in changelog


@pytest.mark.parametrize(
    ("version", "changelog", "message"),
    [
        ("v0.2.0", CHANGELOG, "expected a number like"),
        ("0.2", CHANGELOG, "expected a number like"),
        ("0.2.0", CHANGELOG.replace("- A thing.\n", ""), "expected changes under"),
        ("0.2.0", CHANGELOG.replace("[Unreleased]", "Soon"), "expected a section"),
        ("0.2.0", CHANGELOG.replace("[0.1.0]", "[0.2.0]"), "expected version 0.2.0"),
    ],
)
def test_nothing_is_written_for_a_wrong_release(
    tree: Path, version: str, changelog: str, message: str
) -> None:
    (tree / "CHANGELOG.md").write_text(changelog)
    before = contents(tree)
    result = cut(tree, version)
    assert result.returncode == 1
    assert message in result.stderr
    assert contents(tree) == before
