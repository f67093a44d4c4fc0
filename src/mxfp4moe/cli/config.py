"""``mxfp4moe config``: the options of a compiler for programs with the C library."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from mxfp4moe._embedding import get_include, library_dir


def add_parser(subparsers: Any) -> None:
    """Add this subcommand."""
    parser = subparsers.add_parser(
        "config",
        help="print the compiler options of programs that use the C library",
        description="Prints the options with which a compiler finds the header and the library of this "
        "installation.",
    )
    default = "Default: those of --cflags and --libs."
    parser.add_argument("--cflags", action="store_true", help=f"Print the options of compilation. {default}")
    parser.add_argument(
        "--libs",
        action="store_true",
        help=f"Print the options of linking, with the folder of the library as run path. {default}",
    )
    parser.add_argument(
        "--cmake-dir",
        action="store_true",
        help=f"Print the folder for the CMake variable mxfp4moe_DIR, and nothing else. {default}",
    )
    parser.set_defaults(run=_run, threads=None)


def _run(args: argparse.Namespace) -> int:
    folder = library_dir()
    if args.cmake_dir:
        print(f"{folder}/cmake/mxfp4moe")
        return 0
    both = not args.cflags and not args.libs
    options = [f"-I{get_include()}"] if args.cflags or both else []
    if args.libs or both:
        options += [f"-L{folder}", f"-Wl,-rpath,{folder}", "-lmxfp4moe"]
    print(shlex.join(options))
    return 0
