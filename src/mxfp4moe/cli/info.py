"""``mxfp4moe info``: what was built, what this machine runs."""

from __future__ import annotations

import argparse
from typing import Any

from mxfp4moe.cli._arguments import add_threads


def add_parser(subparsers: Any) -> None:
    """Add this subcommand."""
    parser = subparsers.add_parser(
        "info",
        help="print the configuration: version, instruction sets, threads",
        description="Prints what this package was built with, which instruction sets this machine supports, "
        "and which instruction set and number of threads are used, with the reason.",
    )
    add_threads(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print `mxfp4moe.show_config`."""
    from mxfp4moe import show_config

    show_config()
    return 0
