"""The command ``mxfp4moe``, one file for each subcommand.

To add a subcommand: write a module with ``add_parser(subparsers)``, which sets the default `run` to a
function from the parsed arguments to the exit status, and name it in `_COMMANDS`.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from mxfp4moe import __version__
from mxfp4moe import config as settings
from mxfp4moe.cli import bench, chat, config, demo, generate, info, inspect, pack, quantize, run, selftest
from mxfp4moe.cli._signals import interrupted_once
from mxfp4moe.cli._streams import complain, drop_unwritable_output, open_closed_streams

_COMMANDS = (info, selftest, demo, bench, inspect, quantize, pack, run, generate, chat, config)

_EPILOG = """\
The exit status is 0 if all is well, 1 after an error or a check that failed, 2 for wrong arguments, and 130
after Ctrl-C. `mxfp4moe COMMAND --help` describes the options of a command.
"""


class _HelpFormatter(argparse.HelpFormatter):
    """Breaks lines at spaces alone, so that the names of models stay whole."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


class _Parser(argparse.ArgumentParser):
    """The parser of the command, and of each subcommand."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_HelpFormatter, **options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (of the process by default) and return the exit status."""
    open_closed_streams()
    try:
        with interrupted_once():
            status = _run(argv)
            sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except BrokenPipeError:  # The reader of our output has gone: nobody is left to tell.
        return 1
    except (ValueError, OSError, MemoryError) as error:
        complain(f"error: {' '.join(str(error).split()) or type(error).__name__}")
        return 1
    finally:
        drop_unwritable_output()


def _run(argv: Sequence[str] | None) -> int:
    try:
        args = _parser().parse_args(argv)
    except SystemExit:
        sys.stdout.flush()  # of help and version, which may be impossible
        raise
    with nullcontext() if args.threads is None else settings.num_threads(args.threads):
        status: int = args.run(args)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mxfp4moe",
        description="Fused mixture-of-experts from 4-bit and 8-bit weights on CPUs.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"mxfp4moe {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(subparsers)
    return parser
