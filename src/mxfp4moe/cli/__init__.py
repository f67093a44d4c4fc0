"""The command ``mxfp4moe``, one file for each subcommand.

To add a subcommand: write a module with ``add_parser(subparsers)``, which sets the default `run` to a
function from the parsed arguments to the exit status, and name it in `_COMMANDS`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from mxfp4moe import __version__
from mxfp4moe.cli import bench, demo, info, inspect, pack, quantize, run
from mxfp4moe.cli._signals import interrupted_once

_COMMANDS = (info, demo, bench, inspect, quantize, pack, run)

_EPILOG = """\
exit status: 0 all is well; 1 an error, or a check that failed; 2 wrong arguments; 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (of the process by default) and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="mxfp4moe",
        description="Fused mixture-of-experts from 4-bit and 8-bit weights on CPUs.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"mxfp4moe {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(subparsers)
    args = parser.parse_args(argv)
    try:
        with interrupted_once():
            status: int = args.run(args)
            sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("mxfp4moe: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; the flush at exit must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, MemoryError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"mxfp4moe: error: {message}", file=sys.stderr)
        return 1
