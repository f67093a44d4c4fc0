"""The folders of the C++ sources include only folders below them."""

from __future__ import annotations

import re

import pytest
from paths import ROOT

SOURCES = ROOT / "src" / "cpp"

# From the ground up: a folder may include itself and what stands before it.
FOLDERS = (
    "platform",
    "common",
    "cpu",
    "formats",
    "memory",
    "threads",
    "files",
    "packing",
    "kernels",
    "measure",
    "quantize",
    "routing",
    "linear",
    "attention",
    "decoder",
    "moe",
    "capi",
    "jax",
    "onnxruntime",
)


def test_every_folder_has_its_place() -> None:
    assert sorted(path.name for path in SOURCES.iterdir() if path.is_dir()) == sorted(FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS)
def test_includes_point_down(folder: str) -> None:
    below = FOLDERS[: FOLDERS.index(folder) + 1]
    count = 0
    for path in sorted((SOURCES / folder).rglob("*.*")):
        for included in re.findall(r'^\s*#\s*include "(\w+)/', path.read_text(), re.MULTILINE):
            assert included in below, f"{path.relative_to(SOURCES)} includes {included}/"
            count += 1
    assert count > 0 or folder in ("common",), "nothing was read"
