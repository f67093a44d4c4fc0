"""Print how many tests ran on each kernel table, from the JUnit reports of several runs.

The `isa` fixture of the tests notes the kernel table of each test as a property. The last line counts tests
without it, not all of which compute: they run on the instruction set that the package prefers or, in a report
`isa-<name>`, on the one of that name.
"""

from __future__ import annotations

import argparse
import sys
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from pathlib import Path

from mxfp4moe import config


def outcome(case: ET.Element) -> str:
    """What became of one test."""
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "passed" if case.find("skipped") is None else "skipped"


def count(path: Path) -> dict[str, Counter[str]]:
    """Outcomes by kernel table in one report, those of tests without a table of their own under ""."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for case in ET.parse(path).iter("testcase"):
        tables = [item.get("value", "") for item in case.iter("property") if item.get("name") == "kernels"]
        counts[tables[0] if tables else ""][outcome(case)] += 1
    return counts


def line(name: str, isa: str, outcomes: list[Counter[str]], reason: str = "") -> str:
    """One line of the matrix."""
    cells = [f"{o['passed']} ok" + (f", {o['failed']} bad" if o["failed"] else "") for o in outcomes]
    cells = [cell if o.total() else "-" for cell, o in zip(cells, outcomes, strict=True)]
    return f"{name:18}{isa:10}" + "".join(f"{cell:>14}" for cell in cells) + reason


def main() -> int:
    """One line for each kernel table of this build, one column for each report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="REPORT")
    parser.add_argument("-k", dest="text", default="", help="show the tables alone whose names contain this")
    args = parser.parse_args()
    paths: list[Path] = args.paths
    counts = [count(path) for path in paths]
    missing = False
    print(f"\n{'kernels':18}{'isa':10}" + "".join(f"{path.stem:>14}" for path in paths))
    for table in config._TABLES:
        if args.text not in table.name:
            continue
        outcomes = [report[table.name] for report in counts]
        ran = sum(o["passed"] + o["failed"] for o in outcomes)
        missing |= table.supported and not ran
        reason = "" if table.supported else f"   skipped: {config._why_unsupported(table.isa)}"
        print(line(table.name, table.isa, outcomes, reason))
    for isa in config.ISAS:
        if isa not in {table.isa for table in config._TABLES}:
            print(f"{'':18}{isa:10}   skipped: the compiler cannot build it")
    print(line("without a table", "", [report[""] for report in counts]))
    if missing:
        print("a kernel table that this machine supports did not run", file=sys.stderr)
    return int(missing)


if __name__ == "__main__":
    sys.exit(main())
