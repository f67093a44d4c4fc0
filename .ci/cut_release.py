"""Write a version into the package and cut the changelog. Usage: cut_release.py ROOT VERSION.

Prints the date of the release. Does nothing else if that version has been cut already, so that a
release can be made again from its commit.
"""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from pathlib import Path

VERSION = re.compile(r"(?m)^__version__ = \"(.*)\"$")
UNRELEASED = "## [Unreleased]\n"


def cut(root: Path, version: str, today: str) -> str:
    """Write `version`, dated `today`, into the files under `root`; return its date."""
    if not re.fullmatch(r"\d+\.\d+\.\d+(?:rc\d+)?", version):
        raise ValueError(f"VERSION: expected a number like 0.2.0 or 0.2.0rc1, got {version!r}")
    package, changelog = root / "src/mxfp4moe/__init__.py", root / "CHANGELOG.md"
    source, text = package.read_text(), changelog.read_text()
    current = VERSION.findall(source)
    if len(current) != 1:
        raise ValueError(f"{package}: expected one line that sets __version__, got {len(current)}")
    before, heading, rest = text.partition(UNRELEASED)
    if not heading:
        raise ValueError(f"{changelog}: expected a section [Unreleased]")
    done = re.search(rf"(?m)^## \[{re.escape(version)}\] - (\d{{4}}-\d\d-\d\d)$", text)
    if done:
        if current != [version]:
            raise ValueError(
                f"{package}: expected version {version}, which {changelog.name} has, got {current[0]}"
            )
        return done[1]
    # The first release was kept apart while it was in preparation.
    rest = rest.replace(f"\n## [{version}] - in preparation\n", "", 1)
    entries = re.split(r"(?m)^## \[", rest, maxsplit=1)[0]
    if not re.search(r"(?m)^- ", entries):
        raise ValueError(f"{changelog}: expected changes under [Unreleased], got none")
    changelog.write_text(f"{before}{UNRELEASED}\n## [{version}] - {today}\n{rest}")
    package.write_text(VERSION.sub(f'__version__ = "{version}"', source))
    return today


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: cut_release.py ROOT VERSION")
    try:
        print(cut(Path(sys.argv[1]), sys.argv[2], datetime.now(UTC).strftime("%Y-%m-%d")))
    except ValueError as error:
        sys.exit(str(error))
