"""What the subcommands share to declare their arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from mxfp4moe.config import MAX_THREADS


def integer(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """The type of an argument that is an integer of at least `minimum` and at most `maximum`."""
    expected = f"of at least {minimum}" if maximum is None else f"in [{minimum}, {maximum}]"

    def integer(text: str) -> int:
        value = int(text)
        if value < minimum or (maximum is not None and value > maximum):
            raise argparse.ArgumentTypeError(f"expected an integer {expected}, got {value}")
        return value

    return integer


def add_threads(parser: argparse.ArgumentParser, name: str = "--threads") -> None:
    """Add the number of threads, by default None."""
    parser.add_argument(name, type=integer(1, MAX_THREADS), metavar="N", help="all cores that are allowed")


def flag(option: str) -> str:
    """The flag of the argument whose attribute is `option`."""
    return "--" + option.replace("_", "-")
