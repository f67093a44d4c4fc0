"""Files and folders that are complete under their names: what is replaced, kept, removed and synced."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bfloat16_models import write_model
from packed_examples import make_experts

from mxfp4moe import _files
from mxfp4moe._files import atomic_file, atomic_folder, remove_abandoned
from mxfp4moe.checkpoint.safetensors import SafetensorsWriter, save_file
from mxfp4moe.cli import main
from mxfp4moe.cli._signals import interrupted_once


def write_experts(path: Path) -> None:
    make_experts(np.random.default_rng(0), "mxfp4").save(path)


def write_tensors(path: Path) -> None:
    save_file(path, {"x": np.arange(100), "y": np.ones(3, np.float32)})


def write_bytes(path: Path) -> None:
    with atomic_file(path) as file:
        file.write(b"content")


WRITERS = {"experts": write_experts, "tensors": write_tensors, "bytes": write_bytes}


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    """Each kind of file in turn."""
    return WRITERS[request.param]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- what is replaced ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder", "link to a pipe"])
def test_only_files_are_replaced(tmp_path: Path, write: Callable[[Path], None], kind: str) -> None:
    path = target = tmp_path / "a"
    if kind == "device":
        try:
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root makes devices")
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        os.mknod(path, 0o600 | stat.S_IFSOCK)
    else:
        target = tmp_path / "pipe" if "link" in kind else path
        os.mkfifo(target)
        if target != path:
            path.symlink_to(target.name)
    before, names = target.lstat(), names_in(tmp_path)
    with pytest.raises(OSError, match=f"(Not a regular file|Is a directory).*{target}"):
        write(path)
    assert names_in(tmp_path) == names
    assert target.lstat() == before


def test_commands_refuse_special_files_before_they_compute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    pipe = str(tmp_path / "pipe")
    for option in ("--json", "--plot"):
        assert main(["bench", option, pipe]) == 1
        assert f"{option}: expected a file in a folder that can be written to, got" in capsys.readouterr().err
    assert main(["run", "--checkpoint", "x", "--input", "x.npy", "--output", pipe]) == 1
    assert f"Not a regular file: '{pipe}'" in capsys.readouterr().err


def test_of_a_link_the_target_is_replaced(tmp_path: Path, write: Callable[[Path], None]) -> None:
    target = tmp_path / "folder" / "target"
    target.parent.mkdir()
    (tmp_path / "link").symlink_to("folder/target")
    for _ in range(2):  # what it points to need not be there
        write(tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        assert target.stat().st_size > 0
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "link", "target"]


@pytest.mark.parametrize("limit", [0, 100])
def test_a_header_that_cannot_be_written_leaves_nothing(tmp_path: Path, limit: int) -> None:
    specs = {f"tensor {i}": (np.dtype(np.uint8), (1,)) for i in range(500)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large.*a.safetensors"):
            SafetensorsWriter(tmp_path / "a.safetensors", specs).__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names_in(tmp_path) == []


# --- permissions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o666, 0o755])
def test_permissions_of_a_file_are_kept(tmp_path: Path, write: Callable[[Path], None], mode: int) -> None:
    write(tmp_path / "a")
    (tmp_path / "new").touch()
    assert mode_of(tmp_path / "a") == mode_of(tmp_path / "new")
    (tmp_path / "a").chmod(mode)
    write(tmp_path / "a")
    assert mode_of(tmp_path / "a") == mode


def test_what_replaces_a_private_file_is_private_while_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "a").touch(0o600)
    with atomic_file(tmp_path / "a") as file:
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600


def test_permissions_of_a_folder_and_its_files_are_kept(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "sub").mkdir()
        for name in ("b", "sub/c", "sub/d"):
            (folder / name).touch()

    with atomic_folder(tmp_path / "a") as folder:
        write(folder)
    modes = {"": 0o750, "b": 0o600, "sub": 0o711, "sub/c": 0o640}
    for name, mode in modes.items():
        (tmp_path / "a" / name).chmod(mode)
    (tmp_path / "a" / "sub" / "d").unlink()
    with atomic_folder(tmp_path / "a", replace=True) as folder:
        assert mode_of(folder) == 0o700
        write(folder)
    assert {name: mode_of(tmp_path / "a" / name) for name in modes} == modes
    assert (tmp_path / "a" / "sub" / "d").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files to others")
def test_owner_and_group_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a").touch(0o640)
    os.chown(tmp_path / "a", 12345, 23456)
    write_bytes(tmp_path / "a")
    status = (tmp_path / "a").stat()
    assert (status.st_uid, status.st_gid, mode_of(tmp_path / "a")) == (12345, 23456, 0o640)


@pytest.mark.parametrize(
    ("mode", "expected"), [(0o660, 0o600), (0o664, 0o644), (0o640, 0o600), (0o755, 0o755)]
)
def test_rights_of_a_group_are_not_given_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, expected: int
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    (tmp_path / "a").touch()
    (tmp_path / "a").chmod(mode)
    write_bytes(tmp_path / "a")
    assert mode_of(tmp_path / "a") == expected


# --- what killed runs have left -----------------------------------------------------------------------------


def test_what_killed_runs_have_left_is_removed(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "model[1].x"
    (tmp_path / ".model[1].x.01234567.tmp").write_bytes(b"half")
    (tmp_path / ".model[1].x.89abcdef.tmp" / "folder").mkdir(parents=True)
    (tmp_path / ".model[1].x.0a0a0a0a.old").mkdir()
    kept = [
        ".model1.x.01234567.tmp", ".model[1].x.0123456.tmp", ".model[1].x.01234567.tmp.x", "model[1].x.tmp",
        ".other.01234567.tmp",
    ]  # fmt: skip
    for name in kept:
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / ".model[1].x.0000000f.tmp")
    (tmp_path / ".model[1].x.0000000e.tmp").symlink_to(tmp_path / ".other.01234567.tmp")
    path.touch()
    write(path)
    special = [".model[1].x.0000000e.tmp", ".model[1].x.0000000f.tmp"]
    assert names_in(tmp_path) == sorted([*kept, *special, path.name])


def test_what_is_being_written_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with atomic_file(path) as first:
        first.write(b"first")
        with atomic_folder(path) as folder:
            write_bytes(path)
            assert len(names_in(tmp_path)) == 3
            path.unlink()
            (folder / "b").touch()
            remove_abandoned(path)
            assert folder.exists()
        shutil.rmtree(path)
    assert path.read_bytes() == b"first"
    assert names_in(tmp_path) == ["a"]


def test_the_former_folder_is_put_back_if_nothing_has_its_name(tmp_path: Path) -> None:
    (tmp_path / ".a.01234567.old").mkdir()
    (tmp_path / ".a.01234567.old" / "config.json").touch()
    remove_abandoned(tmp_path / "a")
    assert names_in(tmp_path) == ["a"]
    assert names_in(tmp_path / "a") == ["config.json"]


def test_names_that_begin_alike_are_told_apart(tmp_path: Path, write: Callable[[Path], None]) -> None:
    paths = [tmp_path / ("ä" * 120 + end) for end in ("a", "b")]
    with atomic_file(paths[0]):
        (hidden,) = tmp_path.iterdir()
    hidden.touch()  # as if that run had been killed
    write(paths[1])
    assert hidden.exists()
    write(paths[0])
    assert names_in(tmp_path) == sorted(path.name for path in paths)


def test_a_name_that_another_run_takes_for_abandoned_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a file is made and locked, another run may find it."""
    locked: list[int] = []

    def lock(descriptor: int, operation: int) -> None:
        if len(locked) < 3:
            remove_abandoned_by_another_run()
        locked.append(descriptor)
        flock(descriptor, operation)

    def remove_abandoned_by_another_run() -> None:
        for path in tmp_path.iterdir():
            path.unlink()

    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", lock)
    write_bytes(tmp_path / "a")
    assert len(locked) == 4
    assert names_in(tmp_path) == ["a"]


def test_a_folder_is_replaced_only_if_that_is_asked_for(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "b").touch()
    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "a"):
        pass
    assert names_in(tmp_path / "a") == ["b"]
    assert names_in(tmp_path) == ["a"]


@pytest.mark.parametrize("exchanged", [True, False])
def test_a_folder_of_another_kind_that_comes_meanwhile_is_not_replaced(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, exchanged: bool
) -> None:
    from mxfp4moe.cli import pack

    if not exchanged:
        monkeypatch.setattr(_files._core, "exchange_names", lambda a, b: False)
    (tmp_path / "a").mkdir()
    write_model(tmp_path / "a", rng, "qwen3_moe")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").touch()

    class Progress:
        def __init__(self, *_: Any) -> None:
            (tmp_path / "b" / "config.json").rename(tmp_path / "b" / "letter.txt")

        def advance(self, amount: float) -> None:
            pass

    monkeypatch.setattr(pack, "ProgressBar", Progress)
    assert main(["pack", str(tmp_path / "a"), str(tmp_path / "b"), "--force"]) == 1
    assert names_in(tmp_path / "b") == ["letter.txt"]
    assert names_in(tmp_path) == ["a", "b"]


def test_a_failure_between_two_names_puts_the_former_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rename(source: Any, destination: Any) -> None:
        if Path(source).suffix == ".tmp":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, destination)

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "former").touch()
    real = os.rename
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(_files._core, "exchange_names", lambda a, b: False)
    with pytest.raises(OSError, match="Input/output error"), atomic_folder(tmp_path / "a", replace=True):
        pass
    assert names_in(tmp_path) == ["a"]
    assert names_in(tmp_path / "a") == ["former"]


# --- signals ------------------------------------------------------------------------------------------------


class Interrupt:
    """Raises `signals` one by one, each `distance` traced lines after the one before."""

    def __init__(self, signals: list[signal.Signals], distance: int) -> None:
        self._signals, self._distance, self._lines = list(signals), distance, 0

    @property
    def done(self) -> bool:
        return not self._signals

    def start(self) -> None:
        frame: Any = sys._getframe()
        while frame is not None:
            frame.f_trace, frame = self._trace, frame.f_back
        sys.settrace(self._trace)

    def _trace(self, frame: Any, event: str, argument: Any) -> Any:
        if self._signals and event == "line":
            self._lines += 1
            if self._lines % self._distance == 0:
                signal.raise_signal(self._signals.pop(0))
        return self._trace


@pytest.fixture
def default_interrupt() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("exchanged", [True, False])
@pytest.mark.usefixtures("default_interrupt")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_signal_breaks_off_the_removal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool, exchanged: bool
) -> None:
    """Signals at every line from the end of the block on: the new or the former content is there, no more."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # which would take most of the time
    if not exchanged:
        monkeypatch.setattr(_files._core, "exchange_names", lambda a, b: False)

    def write(content: str, interrupt: Interrupt | None) -> None:
        with interrupted_once(), atomic_folder(tmp_path / "a", replace=True) as folder:
            for name in ("b", "c"):
                (folder / name).write_text(content)
            if interrupt is not None:
                interrupt.start()
            if fails:
                raise OSError("no reason")

    distance, finished = 1, False
    while not finished:
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
        (tmp_path / "a").mkdir()
        for name in ("b", "c"):
            (tmp_path / "a" / name).write_text("former")
        interrupt = Interrupt([signal.SIGINT, signal.SIGTERM, signal.SIGINT], distance)
        try:
            write("new", interrupt)
        except (OSError, KeyboardInterrupt, SystemExit):
            pass
        finally:
            sys.settrace(None)
        if names_in(tmp_path) != ["a"]:
            gc.collect()  # a block whose `with` was broken off ends when it is collected
        assert names_in(tmp_path) == ["a"], distance
        contents = {(tmp_path / "a" / name).read_text() for name in ("b", "c")}
        assert contents in ({"former"}, {"new"}), distance
        finished = not interrupt.done and interrupt._lines < distance
        distance += 1 + distance // 40  # the number of lines is some hundreds
    assert distance > 50


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)])
def test_second_signal_leaves_no_folder(
    tmp_path: Path, rng: np.random.Generator, numbers: tuple[signal.Signals, signal.Signals]
) -> None:
    (tmp_path / "a").mkdir()
    write_model(tmp_path / "a", rng, "qwen3_moe")
    code = (
        "import os, shutil, signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from mxfp4moe.cli import main; from mxfp4moe._progress import ProgressBar\n"
        "ProgressBar.advance = lambda self, n: (print('working', flush=True), time.sleep(30))\n"
        "rmtree = shutil.rmtree\n"
        "def slowly(path): print('removing', flush=True); time.sleep(0.5); rmtree(path)\n"
        "shutil.rmtree = slowly\n"
        "sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "quantize", str(tmp_path / "a"), str(tmp_path / "b")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for number, line in zip(numbers, ("working\n", "removing\n"), strict=True):
            assert process.stdout.readline() == line
            process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if numbers[0] == signal.SIGINT else 143)
    assert "Traceback" not in err
    assert names_in(tmp_path) == ["a"]


# --- loss of power ------------------------------------------------------------------------------------------


class SyncRecorder:
    """Checks that what gets a name is on the disk before, and the name afterwards."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._synced: dict[tuple[int, int], object] = {}
        self.unsynced_names: set[Path] = set()
        self.renamed: list[Path] = []
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)
        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, self._checked(getattr(os, name)))
        exchange = _files._core.exchange_names
        monkeypatch.setattr(_files._core, "exchange_names", self._checked(exchange))

    def fsync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        status = os.fstat(descriptor)
        self._synced[status.st_dev, status.st_ino] = self._state(path)
        self.unsynced_names -= {name for name in self.unsynced_names if name.parent == path}

    def _checked(self, real: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def rename(source: Any, destination: Any) -> Any:
            top = Path(os.fsdecode(source))
            for path in [top, *top.rglob("*")]:
                status = path.stat()
                assert self._synced.get((status.st_dev, status.st_ino)) == self._state(path), path
            result = real(source, destination)
            self.renamed.append(Path(os.fsdecode(destination)))
            self.unsynced_names.add(self.renamed[-1])
            return result

        return rename

    @staticmethod
    def _state(path: Path) -> object:
        status = path.stat()
        return sorted(os.listdir(path)) if path.is_dir() else (status.st_size, status.st_mtime_ns)


def test_files_are_on_the_disk_before_and_after_they_get_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    recorder = SyncRecorder(monkeypatch)
    for _ in range(2):
        write(tmp_path / "a")
    assert recorder.renamed == [tmp_path / "a"] * 2
    assert not recorder.unsynced_names


@pytest.mark.parametrize("command", ["pack", "quantize"])
def test_models_are_on_the_disk_before_and_after_they_get_their_name(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "a").mkdir()
    write_model(tmp_path / "a", rng, "qwen3_moe")
    recorder = SyncRecorder(monkeypatch)
    former: list[Path] = []

    def remove(path: Path) -> None:
        former.append(path)
        assert not recorder.unsynced_names  # the former model goes when nothing can bring it back
        rmtree(path)

    rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", remove)
    for _ in range(2):
        assert main([command, str(tmp_path / "a"), str(tmp_path / "b"), "--force"]) == 0
    assert recorder.renamed.count(tmp_path / "b") == 2
    assert not recorder.unsynced_names
    assert len(former) == 1


def test_file_systems_that_sync_no_folders_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(error, os.strerror(error))
        real(descriptor)

    real, error = os.fsync, errno.EINVAL
    monkeypatch.setattr(os, "fsync", fsync)
    write(tmp_path / "a")
    error = errno.EIO
    with pytest.raises(OSError, match=f"Input/output error.*{tmp_path}"):
        write(tmp_path / "a")
