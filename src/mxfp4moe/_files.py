"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def temporary_sibling(path: Path) -> Path:
    """A hidden name beside `path`, so that renaming it to `path` is atomic."""
    return path.with_name(f".{path.name[:50]}.{os.urandom(4).hex()}.tmp")  # names are 255 bytes at most


def name_file(error: OSError, path: Path) -> None:
    """Let `error` name its file, which the system does not when a write fails."""
    error.filename = error.filename or str(path)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` at the end; on an error nothing is left behind.

    Of a symbolic link, what it points to is replaced. Devices and pipes are not: an OSError.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "Not a regular file", str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "No such folder", str(path.parent))
    temporary = temporary_sibling(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # the name must not reach the disk before the content
        temporary.replace(path)
    except OSError as error:
        name_file(error, path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
