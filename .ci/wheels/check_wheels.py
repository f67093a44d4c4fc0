"""Check an sdist and wheels without running them: sizes, symbols, hardening, what they hold.

Usage: check_wheels.py FOLDER. Prints a table, and what auditwheel says of each wheel.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from check_objects import missing_of, output_of

MAX_WHEEL, MAX_SDIST = 2_000_000, 1_500_000
MAX_GLIBC = 28  # 2.28
BIN = Path(sys.executable).parent


def problems_of(wheel: Path, extension: Path) -> Iterator[str]:
    """What is wrong with a wheel whose extension is unpacked at `extension`."""
    if wheel.stat().st_size >= MAX_WHEEL:
        yield f"{wheel.stat().st_size} bytes, expected less than {MAX_WHEEL}"
    glibc = re.search(r"[-.]manylinux_2_(\d+)_\w+\.whl$", wheel.name)
    if not glibc or int(glibc[1]) > MAX_GLIBC:
        yield f"expected a tag of manylinux_2_{MAX_GLIBC} or older"
    yield from missing_of(extension)
    dynamic = output_of("readelf", "-W", "-d", extension)
    if re.search(r"\(R(?:UN)?PATH\)", dynamic):
        yield "has a path of libraries"
    if re.search(r"NEEDED.*libstdc\+\+", dynamic):
        yield "needs a libstdc++"
    if ".symtab" in output_of("readelf", "-W", "-S", extension):
        yield "is not stripped"
    exported = [line.split()[-1] for line in output_of("nm", "-D", "--defined-only", extension).splitlines()]
    if exported != ["PyInit__core"]:
        yield f"exports {exported}"
    if b"/build/" in extension.read_bytes():
        yield "holds the path of its build"
    if "-abi3-" in wheel.name:
        audit = subprocess.run(
            [BIN / "abi3audit", "--strict", wheel], capture_output=True, text=True, check=False
        )
        if audit.returncode:
            yield f"abi3audit: {audit.stdout}{audit.stderr}"


def main() -> int:
    """Check everything in the folder that is given."""
    folder = Path(sys.argv[1])
    failed = False
    for sdist in sorted(folder.glob("*.tar.gz")):
        with tarfile.open(sdist) as archive:
            data = [name for name in archive.getnames() if "/tests/data/" in name]
        problems = ["holds data of tests"] if data else []
        if sdist.stat().st_size >= MAX_SDIST:
            problems.append(f"{sdist.stat().st_size} bytes, expected less than {MAX_SDIST}")
        failed |= bool(problems)
        print(f"{sdist.name}: {sdist.stat().st_size} bytes, {'; '.join(problems) or 'ok'}")
    wheels = sorted(folder.glob("*.whl"))
    for wheel in wheels:
        with tempfile.TemporaryDirectory() as unpacked:
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if re.fullmatch(r"mxfp4moe/_core\..*so", name)]
                extensions = [Path(archive.extract(name, unpacked)) for name in names]
            problems = [text for extension in extensions for text in problems_of(wheel, extension)]
            size = sum(extension.stat().st_size for extension in extensions)
        if len(extensions) != 1:
            problems.append(f"holds {len(extensions)} extensions")
        failed |= bool(problems)
        print(
            f"{wheel.name}: {wheel.stat().st_size} bytes, the extension {size}, {'; '.join(problems) or 'ok'}"
        )
        print(output_of(BIN / "auditwheel", "show", wheel).strip())
    if not wheels:
        print(f"no wheel in {folder}")
    return int(failed or not wheels)


if __name__ == "__main__":
    sys.exit(main())
