"""What the subcommands share to declare their arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def integer(minimum: int) -> Callable[[str], int]:
    """The type of an argument that is an integer of at least `minimum`."""

    def integer(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"expected an integer of at least {minimum}, got {value}")
        return value

    return integer


def flag(option: str) -> str:
    """The flag of the argument whose attribute is `option`."""
    return "--" + option.replace("_", "-")
