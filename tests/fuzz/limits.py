"""Commands with few processes, little address space, few open files: they work, or one line says why not."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shutil
import signal
import sys
import traceback
from pathlib import Path

import numpy as np
from bfloat16_models import HIDDEN, write_model

from fuzz.cases import Campaign, Case, Rng
from mxfp4moe.cli import main

SECONDS = 50  # until a command is ended by SIGALRM, which is a failure
NOBODY = 65534  # processes of root are not limited in their number
LIMITS = {  # of what, and from which to which value, by the letters of ulimit
    "u": (resource.RLIMIT_NPROC, 1, 3),
    "v": (resource.RLIMIT_AS, 0, 200 << 20),  # beyond what the process has
    "n": (resource.RLIMIT_NOFILE, 3, 30),
    "f": (resource.RLIMIT_FSIZE, 0, 100_000),
}


def _prepare(folder: Path) -> Case:
    folder.chmod(0o777)
    write_model(_folder(folder / "model"), np.random.default_rng(0), "qwen3_moe")
    np.save(folder / "x.npy", np.ones((5, HIDDEN), np.float32))
    work = folder / "work"
    model, out = str(folder / "model"), str(work / "out")
    commands = {
        "info": ["info"],
        "inspect": ["inspect", model],
        "pack": ["pack", model, out],
        "quantize": ["quantize", model, out],
        "run": ["run", "--checkpoint", model, "--input", str(folder / "x.npy"), "--output", out + ".npy"],
    }
    # They run without a limit first: then what is imported late is there when files cannot be opened.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for arguments in commands.values():
            _folder(work)
            assert main([*arguments]) == 0

    def case(rng: Rng) -> str:
        letter, name = list(LIMITS)[rng.integers(len(LIMITS))], list(commands)[rng.integers(len(commands))]
        _, low, high = LIMITS[letter]
        _folder(work)
        status, text = _run(commands[name], letter, int(rng.integers(low, high)))
        _check(status, text, f"mxfp4moe {name} with -{letter}")
        left = [path.name for path in work.iterdir()]
        assert not status or not left, f"{name} failed and left {left}"
        return f"{name} with -{letter}: {'an error' if status else 'works'}"

    return case


def _folder(path: Path) -> Path:
    """An empty folder that everybody may write to."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    path.chmod(0o777)
    return path


def _run(arguments: list[str], letter: str, value: int) -> tuple[int, str]:
    """Exit status and output of a command in a child, which a signal gives a negative status."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _run_child(arguments, letter, value, write_end)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as output:
        text = output.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def _run_child(arguments: list[str], letter: str, value: int, output: int) -> None:
    status = 99
    try:
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        os.close(output)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        signal.alarm(SECONDS)
        if letter == "v":
            value += int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(LIMITS[letter][0], (value, value))
        if letter == "u" and os.getuid() == 0:
            os.setuid(NOBODY)
        status = main(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _check(status: int, text: str, what: str) -> None:
    lines = [line for line in text.splitlines() if line.startswith("mxfp4moe: ")]
    good = "Traceback" not in text and "Warning" not in text
    good &= status == 0 or (status == 1 and len(lines) == 1 and lines[0].startswith("mxfp4moe: error: "))
    assert good, f"{what} ended with status {status}:\n{text}"


LIMITED = Campaign("limits", _prepare)
