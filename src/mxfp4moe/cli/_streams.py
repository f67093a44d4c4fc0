"""Standard streams that are closed, or whose other end has gone."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO


def open_closed_streams() -> None:
    """Put the null device in the place of standard streams that are closed.

    Python has None there: printing to a closed stderr would go to stdout, and the next file that is opened
    would get the number of the stream.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def is_null(stream: TextIO) -> bool:
    """Whether `stream` was closed when the command began."""
    return getattr(stream, "name", None) == os.devnull


def complain(message: str) -> None:
    """Print a line to stderr, if it can be written to."""
    with suppress(OSError):
        print(f"mxfp4moe: {message}", file=sys.stderr, flush=True)


def drop_unwritable_output() -> None:
    """Forget what cannot be written to stdout, so that the interpreter does not try again when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
