"""Pieces of code that are killed at chosen moments, in forks of a process that has imported the package.

`check_kills` is what tests and longer runs share: whatever the moment, the name that is written to leads to
the whole of the old content or the whole of the new one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

# Operations on files and folders that Python reports before it does them.
_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.chown", "fcntl.flock"}


class Moment(NamedTuple):
    """When to kill: before the operation on files of number `event`, or after `seconds`."""

    event: int | None = None
    seconds: float | None = None


NEVER = Moment()


class Outcome(NamedTuple):
    """How a piece of code ended: whether it was killed, how long it took, how many operations there were."""

    killed: bool
    seconds: float
    events: int


class Killer:
    """A process that runs code in forks of itself; `setup` is run before, once. A context manager."""

    def __init__(self, setup: str = "") -> None:
        command = [sys.executable, __file__, setup]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def run(self, code: str, moment: Moment = NEVER) -> Outcome:
        """Run `code` and kill it at `moment`; an error if it fails by itself."""
        self._process.stdin.write(json.dumps([code, *moment]) + "\n")
        self._process.stdin.flush()
        status, seconds, events = json.loads(self._process.stdout.readline())
        assert status in (0, -signal.SIGKILL), f"{code} ended with status {status}"
        return Outcome(status != 0, seconds, events)


def snapshot(path: Path) -> dict[str, bytes] | None:
    """What `path` leads to: the bytes of the file, or of every file in the folder."""
    if path.is_dir():
        return {
            str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if not file.is_dir()
        }
    return {"": path.read_bytes()} if path.exists() else None


def check_kills(
    killer: Killer, path: Path, codes: tuple[str, str], events: Iterable[int], shares: Iterable[float]
) -> int:
    """Write to `path` by two pieces of code in turn, killed before `events` and after `shares` of their time.

    A negative event counts from the last. Returns how many runs were killed before they had ended.
    """
    contents, runs = [], []
    for code in codes:
        runs.append(killer.run(code))
        contents.append(snapshot(path))
    assert None not in contents and contents[0] != contents[1]
    names = sorted(path.parent.iterdir())
    moments = [Moment(event=event % runs[1].events) for event in events]
    moments += [Moment(seconds=share * runs[1].seconds) for share in shares]
    num_killed = 0
    for moment in moments:
        new = 1 - contents.index(snapshot(path))
        num_killed += killer.run(codes[new], moment).killed
        assert snapshot(path) in contents, f"neither old nor new content after a kill at {moment}"
    killer.run(codes[0])
    assert sorted(path.parent.iterdir()) == names, "runs that were killed have left something"
    return num_killed


def _run_child(code: str, event: int | None, scope: dict[str, Any], report: int) -> None:
    seen = 0

    def hook(name: str, _: object) -> None:
        nonlocal seen
        if name in _EVENTS:
            if seen == event:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    status = 1
    try:
        sys.addaudithook(hook)
        exec(code, scope)
        os.write(report, str(seen).encode())
        status = 0
    except SystemExit as end:
        status = end.code or 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def _serve(setup: str) -> None:
    scope: dict[str, Any] = {}
    exec(setup, scope)
    sys.stdout, answers = sys.stderr, sys.stdout
    for line in sys.stdin:
        code, event, seconds = json.loads(line)
        read_end, write_end = os.pipe()
        begin = time.perf_counter()
        child = os.fork()
        if child == 0:
            _run_child(code, event, scope, write_end)
        os.close(write_end)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        taken = time.perf_counter() - begin
        events = int(os.read(read_end, 20) or 0)
        os.close(read_end)
        print(json.dumps([status, taken, events]), file=answers, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
