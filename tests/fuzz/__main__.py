"""``python -m fuzz calls --cases 1000`` runs cases of one kind, ``--case N`` one of them, in this process."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from fuzz.cases import run_all, run_one

CAMPAIGNS = {
    "activations": "ACTIVATIONS",
    "calls": "CALLS",
    "files": "FILES",
    "kills": "KILLS",
    "limits": "LIMITED",
    "routes": "ROUTES",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz")
    parser.add_argument("name", choices=CAMPAIGNS)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--cases", type=int, help="run so many")
    which.add_argument("--case", type=int, help="run this one alone")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    campaign = getattr(importlib.import_module(f"fuzz.{args.name}"), CAMPAIGNS[args.name])
    if args.case is not None:
        run_one(campaign, args.case)
        return 0
    return 0 if run_all(campaign, args.cases, args.workers) else 1


if __name__ == "__main__":
    sys.exit(main())
