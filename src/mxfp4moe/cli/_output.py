"""Where a subcommand writes: a folder that appears under its name only when it is complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mxfp4moe._files import atomic_folder, remove_abandoned
from mxfp4moe.packed.container import FOLDER_INDEX

_MODEL_FILES = ("config.json", FOLDER_INDEX)  # one of them shows that a folder holds a model


def check_destination(path: Path, source: Path, force: bool) -> None:
    """Raise unless `path` is free, or with `force` a folder that holds a model and not `source`."""
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent}: expected a folder, got {_kind(path.parent)}")
    remove_abandoned(Path(os.path.realpath(path)))
    if not path.exists() and not path.is_symlink():
        return
    if not force:
        raise ValueError(
            f"{path}: expected nothing at that path, got {_kind(path)} (--force replaces models)"
        )
    here, there = path.resolve(), source.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise ValueError(f"{path}: expected a folder apart from {source}, got one that shares files with it")
    if path.is_symlink() or not any((path / name).is_file() for name in _MODEL_FILES):
        raise ValueError(f"{path}: expected a folder with {' or '.join(_MODEL_FILES)}, got {_kind(path)}")


def check_free_space(path: Path, num_bytes: int) -> None:
    """Raise if the file system of `path` has no room for `num_bytes`."""
    free = shutil.disk_usage(path.parent).free
    if num_bytes + (1 << 20) > free:
        raise ValueError(
            f"{path.parent}: expected {num_bytes / 1e6:.1f} MB of free space, got {free / 1e6:.1f} MB"
        )


@contextmanager
def model_folder(path: Path, source: Path, force: bool) -> Iterator[Path]:
    """Make a folder for a model from `source` that gets the name `path` at the end; an error leaves nothing.

    What the block does last, when all is written, decides whether the folder gets its name.
    """
    with atomic_folder(path, replace=force) as folder:
        yield folder
        check_destination(path, source, force)  # again: what is there now might have come in the meantime


def _kind(path: Path) -> str:
    if path.is_symlink():
        return "a symbolic link"
    if path.is_dir():
        return "a folder"
    return "a file" if path.exists() else "nothing at that path"
