"""Numbered cases in child processes, so that one that crashes or hangs is named and the others go on."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SEED = int(os.environ.get("MXFP4MOE_SEED", "0"))
SECONDS = 60  # a case takes milliseconds; one of so many seconds hangs, on a busy machine too
MAX_FAILURES = 20

Rng = np.random.Generator
Case = Callable[[Rng], str]
"""Raises if the case fails; the result says in a word what came of it, and is counted."""


class Campaign(NamedTuple):
    """Cases of one kind: `prepare` makes the function that runs a case, given a folder for its files."""

    name: str
    prepare: Callable[[Path], Case]
    max_bytes: int | None = None
    """Address space that a process may use beyond what it has when it is prepared."""


def command(name: str, number: int) -> str:
    """The shell command that runs a case alone."""
    return f"MXFP4MOE_SEED={SEED} PYTHONPATH=tests:tests/support python -m fuzz {name} --case {number}"


def make_rng(name: str, number: int) -> np.random.Generator:
    return np.random.default_rng([SEED, zlib.crc32(name.encode()), number])


def run_one(campaign: Campaign, number: int) -> None:
    """Run one case in this process; its files stay."""
    folder = Path(tempfile.mkdtemp(prefix=f"{campaign.name}-{number}-"))
    print(f"files: {folder}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        print(campaign.prepare(folder)(make_rng(campaign.name, number)))


def run_all(campaign: Campaign, count: int, num_workers: int) -> bool:
    """Run cases 0 to `count` - 1; whether all went well."""
    begin = time.monotonic()
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    workers = [_Worker(campaign, range(first, count, num_workers)) for first in range(num_workers)]
    while workers and len(failures) < MAX_FAILURES:
        wait([worker.messages for worker in workers], timeout=1)
        for worker in list(workers):
            found = worker.look(outcomes)
            failures += found
            print("\n".join(found), end="\n" if found else "", flush=True)
            if worker.done:
                workers.remove(worker)
    for worker in workers:
        worker.stop()
    seconds = time.monotonic() - begin
    print(f"{campaign.name}: {sum(outcomes.values())} cases in {seconds:.0f} s, {len(failures)} failures")
    print("".join(f"  {number:8d}  {outcome}\n" for outcome, number in sorted(outcomes.items())), end="")
    return not failures


class _Worker:
    """A process that runs some cases, and the ones that follow it if it dies."""

    def __init__(self, campaign: Campaign, numbers: Sequence[int]) -> None:
        self.done = False
        self._campaign, self._numbers = campaign, numbers
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self._folder = Path(tempfile.mkdtemp(prefix=f"{self._campaign.name}-", dir=_memory_folder()))
        self._position = context.RawValue("q", -1)  # not yet prepared
        self.messages, theirs = context.Pipe(duplex=False)
        arguments = self._campaign, self._numbers, self._folder, self._position, theirs
        self._process = context.Process(target=_work, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._seen, self._since = -2, time.monotonic()

    def look(self, outcomes: Counter[str]) -> list[str]:
        """The failures since the last look; `outcomes` of a worker that has ended are added."""
        failures = []
        ended = False
        try:
            while self.messages.poll():
                message = self.messages.recv()
                if isinstance(message, Counter):
                    outcomes.update(message)
                    self.done = True
                else:
                    failures.append(message)
        except EOFError:
            ended = not self.done
        position = self._position.value
        if position != self._seen:
            self._seen, self._since = position, time.monotonic()
        hangs = not self.done and time.monotonic() - self._since > SECONDS
        if hangs or ended:
            self.stop()
            number = self._numbers[max(position, 0)]
            what = f"no end after {SECONDS} s" if hangs else f"exit status {self._process.exitcode}"
            failures.append(
                f"{self._campaign.name} case {number}: {what}\n  {command(self._campaign.name, number)}"
            )
            outcomes["ended by a crash or hang"] += position + 1
            self._numbers = self._numbers[position + 1 :]
            if self._numbers and position >= 0:
                self._start()
            else:
                self.done = True
        elif self.done:
            self.stop()
        return failures

    def stop(self) -> None:
        if not self.done:
            self._process.kill()
        self._process.join()
        shutil.rmtree(self._folder, ignore_errors=True)


def _memory_folder() -> str | None:
    """Files in memory are written fastest."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _work(
    campaign: Campaign, numbers: Sequence[int], folder: Path, position: Any, messages: Connection
) -> None:
    warnings.simplefilter("error")
    case = campaign.prepare(folder)
    if campaign.max_bytes is not None and "ASAN_OPTIONS" not in os.environ:  # which needs terabytes
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + campaign.max_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    outcomes: Counter[str] = Counter()
    for index, number in enumerate(numbers):
        position.value = index
        try:
            outcomes[case(make_rng(campaign.name, number))] += 1
        except BaseException:
            outcomes["failed"] += 1
            how = command(campaign.name, number)
            messages.send(f"{campaign.name} case {number}:\n{traceback.format_exc()}  {how}")
    messages.send(outcomes)
    messages.close()
