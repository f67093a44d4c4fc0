"""Programs that tests compile and run: the examples of the C library."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import ROOT

EXAMPLES = ROOT / "examples" / "embedding"

needs_sources = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="needs the examples of the sources")


def compiler(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def run(*command: str | Path, **options: Any) -> str:
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def numbers(text: str) -> list[float]:
    return [float(np.float32(word)) for word in text.split()]
