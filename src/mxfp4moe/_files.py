"""Files and folders that appear under their names only when they are complete, after a loss of power too.

Until then they have a hidden name beside their own and are locked. Whoever writes to the same name next
removes what runs that were killed have left; a lock shows that one is still at work.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mxfp4moe import _core, _unix

_NEW = "tmp"  # what is not yet complete, or no longer needed
_FORMER = "old"  # what had the name; only where two names cannot change places
_NUM_SPARES = 4  # A folder in a folder is removed with both opened and listed.
_ACCESS_LIST = "system.posix_acl_access"


def check_target(path: Path) -> Path:
    """The file that writing to `path` replaces: of a symbolic link, what it points to.

    An OSError that names it if that is a folder, a device or a pipe, or in a folder that is not there.
    """
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "Not a regular file", str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "No such folder", str(path.parent))
    return path


@contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Let an OSError name `path`, which the system does not tell when reading or writing fails."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` at the end; on an error nothing is left behind.

    What is replaced is as `check_target` says; its permissions are kept.
    """
    path = check_target(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    mode = 0o600 if path.exists() else 0o666
    with (
        errors_name(path),
        _temporary(path, lambda name: os.open(name, flags, mode)) as new,
    ):
        with os.fdopen(new.descriptor, "wb", closefd=False) as file:
            yield file
        new.spares.give_back()
        _finish(new.descriptor, path)
        os.replace(new.path, path)
        _sync(path.parent)


@contextmanager
def atomic_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Make a folder that gets the name `path` at the end; on an error nothing is left behind.

    With `replace` it takes the place of a folder of that name and keeps its permissions and those of its
    files; without, there must be none, or an empty one.
    """
    path = Path(os.path.realpath(path))  # `a/../a` would be nowhere while `a` has another name
    with _temporary(path, _folder_of(0o700 if path.exists() else 0o777)) as new:
        folder = new.path
        yield folder
        new.spares.give_back()
        for root, _, files in os.walk(folder, topdown=False):
            for entry in [*(Path(root, name) for name in files), Path(root)]:
                with _opened(entry) as descriptor:
                    _finish(descriptor, path / entry.relative_to(folder))
        if replace and path.is_dir():
            _replace_folder(path, folder)
        else:
            os.rename(folder, path)
            _sync(path.parent)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Make a folder beside `path` that is removed at the end if it is still there."""
    with _temporary(path, _folder_of(0o700)) as new:
        yield new.path


def _folder_of(mode: int) -> Callable[[Path], int]:
    """What makes a folder with these permissions and opens it."""

    def make(name: Path) -> int:
        name.mkdir(mode)
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC)

    return make


def remove_abandoned(path: Path) -> None:
    """Remove what killed runs that wrote to `path` have left; put back what had the name, if nothing has."""
    pattern = re.compile(rf"\.{re.escape(_stem(path))}\.[0-9a-f]{{8}}\.({_NEW}|{_FORMER})")
    names: list[str] = []
    with suppress(OSError):
        names += filter(pattern.fullmatch, os.listdir(path.parent))
    for name in names:
        with suppress(OSError):  # of another user, or gone by now
            _claim(path.with_name(name), path)


def _claim(found: Path, path: Path) -> None:
    """Remove `found`, which was to be `path`, or put it back, unless another run is still at work on it."""
    kind = stat.S_IFMT(found.lstat().st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        return
    # Over NFS only what is open for writing can be locked.
    access = os.O_RDONLY if kind == stat.S_IFDIR else os.O_RDWR
    descriptor = os.open(found, access | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _unix.lock(descriptor)
        if not _is_at(descriptor, found):
            return
        if found.suffix != f".{_FORMER}":
            _remove(found)
        elif not os.path.lexists(path):
            os.rename(found, path)
        else:
            # A part of it must never be taken for the whole.
            _remove(found.rename(_hidden_name(path, _NEW)))
    finally:
        os.close(descriptor)


class _Spares(list[int]):
    """Descriptors kept for finishing or removing a file or folder: both open more; there may be no more."""

    def give_back(self) -> None:
        while self:
            os.close(self.pop())


class _Temporary(NamedTuple):
    """A hidden name, and what is open there."""

    path: Path
    descriptor: int
    spares: _Spares


@contextmanager
def _temporary(path: Path, make: Callable[[Path], int]) -> Iterator[_Temporary]:
    """A new hidden name beside `path` and what `make` opened there, locked; in the end what is there goes."""
    remove_abandoned(path)
    names: list[Path] = []
    descriptor = -1
    spares = _Spares()

    def remove() -> None:
        spares.give_back()
        for name in names:
            with suppress(OSError):  # which would hide an error before it; the next run tries again
                _remove(name)

    try:
        with _always(remove):
            while descriptor < 0:
                names.append(_hidden_name(path, _NEW))
                descriptor = make(names[-1])
                if not (_lock(descriptor) and _is_at(descriptor, names[-1])):
                    # Another run has just taken it for abandoned.
                    taken, descriptor = descriptor, -1
                    os.close(taken)
            for _ in range(_NUM_SPARES):
                spares.append(os.dup(descriptor))
            yield _Temporary(names[-1], descriptor, spares)
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _replace_folder(path: Path, new: Path) -> None:
    """Give the folder `new` the name `path` and remove the one that had it."""
    with _opened(path) as descriptor:
        _lock(descriptor)  # under its hidden name it must not be taken for abandoned
        if not _core.exchange_names(os.fsencode(new), os.fsencode(path)):
            former = _hidden_name(path, _FORMER)

            def leave_no_former() -> None:
                if os.path.lexists(former):
                    os.rename(former, new if os.path.lexists(path) else path)

            with _always(leave_no_former):
                os.rename(path, former)
                os.rename(new, path)
        _sync(path.parent)
        _remove(new)


@contextmanager
def _always(clean: Callable[[], object]) -> Iterator[None]:
    """Call `clean` in the end, and again if an interrupt breaks in: a command is interrupted only once."""
    try:
        try:
            yield
        finally:
            clean()
    finally:
        clean()


def _lock(descriptor: int) -> bool:
    """Lock what is open as `descriptor` until it is closed; False if another run has it."""
    try:
        _unix.lock(descriptor)
    except BlockingIOError:
        return False
    except OSError:
        pass  # There are no locks on this file system, so nobody will take it for abandoned.
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether `path` is what is open as `descriptor`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        try:
            shutil.rmtree(path)
        except OSError:
            with suppress(OSError):
                path.rmdir()  # which opens nothing
                return
            raise
    else:
        path.unlink(missing_ok=True)


def _finish(descriptor: int, former: Path) -> None:
    """Give what is open as `descriptor` the permissions of `former`, if that exists, and sync it."""
    if os.path.lexists(former):
        _keep_permissions(descriptor, former)
    _fsync(descriptor)


def _keep_permissions(descriptor: int, former: Path) -> None:
    before, now = former.lstat(), os.fstat(descriptor)
    if stat.S_IFMT(before.st_mode) != stat.S_IFMT(now.st_mode):
        return
    mode = stat.S_IMODE(before.st_mode)
    for owner in (before.st_uid, -1):  # users may give a file to a group of theirs, but to nobody else
        with suppress(OSError):
            os.chown(descriptor, owner, before.st_gid)
            break
    else:
        mode &= ~0o070 | (mode & 0o007) << 3  # the rights of that group are not for another
    if stat.S_IMODE(now.st_mode) != mode:
        os.chmod(descriptor, mode)
    with suppress(OSError, AttributeError):  # Python has these functions on Linux alone
        os.setxattr(descriptor, _ACCESS_LIST, os.getxattr(former, _ACCESS_LIST))


def _sync(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk."""
    with suppress(PermissionError), _opened(folder) as descriptor:  # it may be writable and not readable
        _fsync(descriptor)


def _fsync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems have nothing to sync for folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor of the file or folder at `path`; errors name it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with errors_name(path):
            yield descriptor
    finally:
        os.close(descriptor)


def _hidden_name(path: Path, suffix: str) -> Path:
    return path.with_name(f".{_stem(path)}.{os.urandom(4).hex()}.{suffix}")


def _stem(path: Path) -> str:
    """What hidden names for `path` have in common; names are 255 bytes at most, on some file systems 143."""
    name = os.fsencode(path.name)
    return path.name if len(name) <= 100 else f"{path.name[:20]}-{zlib.crc32(name):08x}"
