"""What the forge reads: workflows that only call the scripts of .ci, and issue templates."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from paths import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
FORMS = [path for path in TEMPLATES if path.name != "config.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_do_nothing_that_the_scripts_do_not(path: Path) -> None:
    text = path.read_text()
    commands = re.findall(r"^\s+(?:- )?run: (.*)$", text, flags=re.MULTILINE)
    assert commands
    for command in commands:
        words = command.split()
        assert words[:2] == ["bash", ".ci/run"], command
        for stage in words[2:]:
            assert stage == "nightly" or (ROOT / ".ci" / f"{stage}.sh").is_file(), command
    used = set(re.findall(r"uses: ([\w/-]+)@", text))
    assert used <= {"actions/checkout", "actions/upload-artifact"}


def test_both_tiers_and_the_recipe_of_wheels_run() -> None:
    text = "".join(path.read_text() for path in WORKFLOWS)
    assert "run: bash .ci/run\n" in text
    assert "run: bash .ci/run nightly\n" in text
    assert "run: bash .ci/run setup aarch64 wheels\n" in text


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_issue_templates_ask_for_the_configuration(path: Path) -> None:
    text = path.read_text()
    assert "label: The output of `mxfp4moe info`" in text
    assert text.startswith("name: ")


def test_security_says_how_to_report() -> None:
    assert "## How to report\n" in (ROOT / "SECURITY.md").read_text()
