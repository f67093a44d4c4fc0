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

C_INTERFACE = 150_000  # what the objects of src/cpp/capi take when they are stripped and compressed
MAX_WHEEL, MAX_SDIST = 2_000_000 + C_INTERFACE, 1_500_000
MAX_GLIBC = 28  # 2.28
BIN = Path(sys.executable).parent


def problems_of_binary(binary: Path) -> Iterator[str]:
    """What is wrong with the extension or the library of a wheel."""
    yield from missing_of(binary)
    if re.search(r"NEEDED.*libstdc\+\+", output_of("readelf", "-W", "-d", binary)):
        yield "needs a libstdc++"
    if ".symtab" in output_of("readelf", "-W", "-S", binary):
        yield "is not stripped"
    if b"/build/" in binary.read_bytes():
        yield "holds the path of its build"


def problems_of(wheel: Path) -> Iterator[str]:
    """What is wrong with a wheel as a whole."""
    if wheel.stat().st_size >= MAX_WHEEL:
        yield f"{wheel.stat().st_size} bytes, expected less than {MAX_WHEEL}"
    glibc = re.search(r"[-.]manylinux_2_(\d+)_\w+\.whl$", wheel.name)
    if not glibc or int(glibc[1]) > MAX_GLIBC:
        yield f"expected a tag of manylinux_2_{MAX_GLIBC} or older"
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
                names = [name for name in archive.namelist() if re.search(r"\.so\b", name)]
                binaries = [Path(archive.extract(name, unpacked)) for name in names]
            problems = list(problems_of(wheel))
            problems += [f"{path.name} {text}" for path in binaries for text in problems_of_binary(path)]
            sizes = ", ".join(f"{path.name} {path.stat().st_size}" for path in binaries)
        kinds = sorted(name.split(".")[0] for name in names)
        if kinds != ["mxfp4moe/_core", "mxfp4moe/lib/libmxfp4moe"]:
            problems.append(f"holds {names}")
        failed |= bool(problems)
        print(f"{wheel.name}: {wheel.stat().st_size} bytes, {sizes}: {'; '.join(problems) or 'ok'}")
        print(output_of(BIN / "auditwheel", "show", wheel).strip())
    if not wheels:
        print(f"no wheel in {folder}")
    return int(failed or not wheels)


if __name__ == "__main__":
    sys.exit(main())
