"""Run mypy --strict and pyright on tests/typing.

In accepted.py they find no error, in refused.py one in each marked line and no other.
Usage: check_types.py PYTHON, the interpreter of the environment in which the package is installed.
"""

import re
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path("tests/typing")


def lines_with_errors(command: list[str]) -> dict[str, set[int]]:
    """The numbers of the lines of each script that a type checker finds fault with."""
    # Outside the clone: its sources must not be found in place of what is installed.
    result = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPTS, check=False)
    print("+", *command, f"\n{result.stdout}{result.stderr}", flush=True)
    if result.returncode not in (0, 1):
        sys.exit(result.returncode)
    found: dict[str, set[int]] = {path.name: set() for path in SCRIPTS.glob("*.py")}
    for name, line in re.findall(r"(\w+\.py):(\d+)(?::\d+)?(?: -)?:? error", result.stdout):
        found[name].add(int(line))
    return found


def main() -> int:
    tools, python = Path(sys.executable).parent, sys.argv[1]
    scripts = sorted(path.name for path in SCRIPTS.glob("*.py"))
    expected = {
        path.name: {n for n, line in enumerate(path.read_text().splitlines(), 1) if "# error" in line}
        for path in SCRIPTS.glob("*.py")
    }
    commands = [
        [f"{tools}/mypy", "--strict", "--config-file=", f"--python-executable={python}", *scripts],
        [f"{tools}/pyright", "--pythonpath", python, *scripts],
    ]
    status = 0
    for command in commands:
        found = lines_with_errors(command)
        for name in scripts:
            if found[name] != expected[name]:
                print(f"{name}: expected errors in lines {sorted(expected[name])}, got {sorted(found[name])}")
                status = 1
    return status


sys.exit(main())
