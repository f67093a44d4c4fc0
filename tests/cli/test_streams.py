"""Standard streams of the command: closed, broken, or used for data; signals and variables at its start."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from packed_examples import K, make_layer

import mxfp4moe as mx
from mxfp4moe import cli

MODULE = [sys.executable, "-m", "mxfp4moe"]
SCRIPT = [str(Path(sysconfig.get_path("scripts"), "mxfp4moe"))]
COMMANDS = [
    MODULE,
    pytest.param(
        SCRIPT, marks=pytest.mark.skipif(not Path(*SCRIPT).exists(), reason="no script is installed")
    ),
]
VARIABLES = ("MXFP4MOE_ISA", "MXFP4MOE_NUM_THREADS", "OMP_NUM_THREADS")


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a line of the shell in which $M is the command; the status is that of the command."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment |= {"M": f"{sys.executable} -m mxfp4moe", **variables}
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )


# ---- closed and broken streams ----


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-", "2>&-"])
def test_closed_streams_are_quiet(closed: str) -> None:
    done = shell(f"$M info {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == (">&- " not in f"{closed} ".replace("2>&- ", ""))


def test_error_does_not_go_to_stdout_if_stderr_is_closed() -> None:
    done = shell("$M inspect /nowhere 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


@pytest.mark.parametrize("command", ["info", "--help", "bench --help", "inspect {layer}", "--version"])
def test_reader_that_stops_early_is_no_complaint(
    tmp_path: Path, rng: np.random.Generator, command: str
) -> None:
    make_layer(rng, "default").save(tmp_path / "layer")
    done = shell(f"$M {command.format(layer=tmp_path / 'layer')} | true")
    assert done.returncode in (0, 1)
    assert (done.stdout, done.stderr) == ("", "")
    assert shell(f"$M {command.format(layer=tmp_path / 'layer')} | head -1").stderr == ""


def test_full_device_is_one_line() -> None:
    done = shell("$M info >/dev/full")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr


def test_progress_that_nobody_reads_leaves_nothing(tmp_path: Path) -> None:
    small = "--hidden-size 32 --intermediate-size 32 --experts 2 --top-k 1 --tokens 1 --steps 1"
    done = shell(f"$M demo {small} 2>&1 >/dev/null | true", TMPDIR=str(tmp_path))
    assert done.returncode in (0, 1)
    assert (done.stdout, done.stderr) == ("", "")
    assert list(tmp_path.iterdir()) == []


# ---- the environment, and Ctrl-C before the command begins ----


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("variable", "value"),
    [("MXFP4MOE_ISA", "sse9"), ("MXFP4MOE_NUM_THREADS", "many"), ("MXFP4MOE_NUM_THREADS", "0")],
)
def test_wrong_variable_is_one_line(command: list[str], variable: str, value: str) -> None:
    environment = os.environ | {variable: value}
    done = subprocess.run([*command, "info"], capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"mxfp4moe: error: {variable}: expected ")
    assert done.stderr.endswith(f"got {value!r}\n")
    assert done.stderr.count("\n") == 1


def test_variable_of_others_is_ignored_if_it_is_wrong() -> None:
    assert shell("$M info", OMP_NUM_THREADS="many").returncode == 0


def test_wrong_variable_of_another_program_is_still_an_exception() -> None:
    done = shell(f"{sys.executable} -c 'import mxfp4moe' info", MXFP4MOE_NUM_THREADS="many")
    assert "Traceback" in done.stderr


SLOW_IMPORT = """
import sys, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            print("importing", file=sys.stderr, flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Slow())
"""


@pytest.mark.parametrize(
    "module", ["numpy", "ml_dtypes", "mxfp4moe._core", "mxfp4moe.cli", "mxfp4moe.cli.run"]
)
@pytest.mark.parametrize("command", COMMANDS)
def test_interrupt_during_imports(tmp_path: Path, command: list[str], module: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW_IMPORT.format(module=module))
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path}

    def interruptible() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        [*command, "info"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=interruptible,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, err) == ("", "mxfp4moe: interrupted\n")


# ---- run on standard streams ----


class Stream(io.TextIOWrapper):
    """A standard stream in memory."""

    def __init__(self, content: bytes = b"") -> None:
        super().__init__(io.BytesIO(content))

    @property
    def content(self) -> bytes:
        self.flush()
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_run_in_a_pipe(tmp_path: Path, rng: np.random.Generator, dtype: Any) -> None:
    layer = make_layer(rng, "default")
    layer.save(tmp_path / "layer")
    x = rng.standard_normal((5, K)).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    run = f"$M run --checkpoint {tmp_path / 'layer'} --input - --output -"
    isa = mx.active_isa()  # whose bits are compared
    done = shell(f"cat {tmp_path / 'x.npy'} | {run} | cat > {tmp_path / 'y.npy'}", MXFP4MOE_ISA=isa)
    assert (done.returncode, done.stderr) == (0, "")
    assert np.load(tmp_path / "y.npy").tobytes() == layer(x).tobytes()


def test_run_reads_token_ids_from_stdin(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make_layer(rng, "deepseek v4")
    layer.save(tmp_path / "layer")
    x, ids = rng.standard_normal((4, K), np.float32), np.array([3, 0, 1, 2])
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr(sys, "stdin", Stream(npy(ids)))
    monkeypatch.setattr(sys, "stdout", out := Stream())
    command = ["run", "--checkpoint", str(tmp_path / "layer"), "--input", str(tmp_path / "x.npy")]
    assert cli.main([*command, "--input-ids", "-", "--output", "-"]) == 0
    assert out.content == npy(layer(x, ids))


def test_file_that_is_called_dash(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make_layer(rng, "default")
    layer.save(tmp_path / "layer")
    x = rng.standard_normal((2, K), np.float32)
    (tmp_path / "-").write_bytes(npy(x))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "--checkpoint", "layer", "--input", "./-", "--output", "./-"]) == 0
    assert np.array_equal(np.load(tmp_path / "-"), layer(x))


WRONG_STREAMS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "standard input: expected an array in a .npy file, got "),
    "text": (b"hello\n", "standard input: expected an array in a .npy file, got "),
    "cut off": (npy(np.zeros((2, K), np.float32))[:-1], "standard input: expected an array in a .npy file"),
    "another size": (npy(np.zeros((2, K + 1), np.float32)), "standard input: hidden_states: expected shape "),
    "integers": (npy(np.zeros((2, K), np.int32)), "standard input: hidden_states: expected an array of "),
}


@pytest.mark.parametrize("case", WRONG_STREAMS)
def test_wrong_stdin_is_one_line(
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
    case: str,
) -> None:
    content, message = WRONG_STREAMS[case]
    make_layer(rng, "default").save(tmp_path / "layer")
    monkeypatch.setattr(sys, "stdin", Stream(content))
    assert cli.main(["run", "--checkpoint", str(tmp_path / "layer"), "--input", "-", "--output", "-"]) == 1
    out, err = capsysbinary.readouterr()
    assert out == b""
    assert err.startswith(f"mxfp4moe: error: {message}".encode())
    assert err.count(b"\n") == 1


def test_one_stream_for_two_inputs_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["run", "--checkpoint", "x", "--input", "-", "--input-ids", "-", "--output", "-"])
    assert exit_info.value.code == 2
    assert "--input-ids: expected a file, for --input is the standard input" in capsys.readouterr().err


def test_result_is_not_lost_on_a_closed_stdout_nor_put_on_a_terminal(
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_layer(rng, "default").save(tmp_path / "layer")
    run = f"run --checkpoint {tmp_path / 'layer'} --input - --output -"
    done = shell(f"$M {run} >&- </dev/null")
    assert done.returncode == 1
    message = "--output -: expected the standard output to be a file or a pipe, got a"
    assert done.stderr == f"mxfp4moe: error: {message} closed one\n"
    monkeypatch.setattr(sys, "stdout", out := Stream())
    monkeypatch.setattr(out, "isatty", lambda: True)
    assert cli.main(run.split()) == 1
    assert capsys.readouterr().err == f"mxfp4moe: error: {message} terminal\n"
    assert out.content == b""


def test_startup_knows_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from mxfp4moe._startup import is_command

    def started(argv: list[str], original: list[str]) -> bool:
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(sys, "orig_argv", original)
        return is_command()

    assert started(["-m", "info"], ["python", "-m", "mxfp4moe", "info"])
    assert started(["-m"], ["python", "-Wignore", "-mmxfp4moe"])
    assert started(["/usr/bin/mxfp4moe", "info"], ["python", "/usr/bin/mxfp4moe", "info"])
    assert not started(["-m", "mxfp4moe"], ["python", "-m", "pytest", "mxfp4moe"])
    assert not started(["-c"], ["python", "-c", "import mxfp4moe"])
    assert not started([""], ["python"])
    assert not started([], [])
    assert mx.__version__
