"""Folders for checkpoints that a command writes for itself."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mxfp4moe._files import temporary_folder


@contextmanager
def scratch_folder(purpose: str, num_bytes: int, *, keep: bool = False) -> Iterator[Path]:
    """Make a folder with room for `num_bytes`; remove it in the end, however that comes, or `keep` it."""
    parent = tempfile.gettempdir()
    free = shutil.disk_usage(parent).free
    if num_bytes + (1 << 20) > free:
        raise ValueError(
            f"{parent}: expected {num_bytes / 1e6:.1f} MB of free space, got {free / 1e6:.1f} MB "
            "(the environment variable TMPDIR names another folder)"
        )
    if not keep:
        with temporary_folder(Path(parent, f"mxfp4moe-{purpose}")) as folder:
            yield folder
        return
    folder = Path(tempfile.mkdtemp(prefix=f"mxfp4moe-{purpose}-"))
    try:
        yield folder
    finally:
        print(f"Kept {folder}")
