"""``mxfp4moe selftest``: whether this build computes on this machine what the reference says."""

from __future__ import annotations

import argparse
import platform
from time import perf_counter
from typing import Any

from mxfp4moe.cli._arguments import add_seed, add_threads


def add_parser(subparsers: Any) -> None:
    """Add this subcommand."""
    parser = subparsers.add_parser(
        "selftest",
        help="check this installation on this machine, in seconds",
        description="Computes experts, quantization and routing on every kernel table that this machine can "
        "run and compares each result bit for bit with mxfp4moe.reference, which is plain NumPy. Nothing is "
        "written. The exit status is 1 if a result differs.",
    )
    add_seed(parser)
    add_threads(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a line for each kernel table, and how the results that differ do so."""
    import ml_dtypes
    import numpy as np

    from mxfp4moe import __version__, config, get_num_threads
    from mxfp4moe.cli import _selftest

    print(
        f"mxfp4moe {__version__}, Python {platform.python_version()}, NumPy {np.__version__}, "
        f"ml_dtypes {ml_dtypes.__version__}; seed {args.seed}, threads {get_num_threads()}"
    )
    cases = _selftest.cases(args.seed)
    passed = failed = 0
    for table in config._TABLES:
        if not table.supported:
            # The reason says why the CPU has no tiles, which models of tiles do not need.
            reason = config._why_unsupported(table.isa) if table.automatic else "the CPU cannot run it"
            print(f"{table.name:18} skipped: {reason}")
            continue
        begin = perf_counter()
        with config._use_kernels(table.name):
            problems = [text for case in cases if (text := case.problem())]
        good = len(cases) - len(problems)
        passed += good
        failed += len(problems)
        print(
            f"{table.name:18} {'FAILED' if problems else 'passed'}: "
            f"{good} of {len(cases)} checks in {perf_counter() - begin:.1f} s",
            *problems,
            sep="\n  ",
            flush=True,
        )
    for isa in config.ISAS:
        if isa not in config.available_isas():
            print(f"{isa:18} skipped: {config._why_unsupported(isa)}")
    print(f"{passed} passed, {failed} failed")
    return int(failed > 0)
