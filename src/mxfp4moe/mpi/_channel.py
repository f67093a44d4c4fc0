"""What ranks send each other: collective operations that end, in an error if need be, after a time-out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import check_real, describe, type_error, value_error

_MESSAGE_BYTES = 2048
_OK, _FAILED, _ENDED = range(3)
_SPINS = 200  # looks at a request before the processor is left to others


class RankError(RuntimeError):
    """Another rank could not do its part of a call.

    Attributes
    ----------
    rank : int
        The first one that could not.

    Examples
    --------
    >>> from mxfp4moe.mpi import RankError
    >>> RankError(3, "ValueError: no").rank
    3
    """

    def __init__(self, rank: int, text: str) -> None:
        super().__init__(f"rank {rank}: {text}")
        self.rank = rank


class Ended(Exception):  # it is no error
    """There are no more calls."""


def import_mpi() -> Any:
    """The module MPI of mpi4py; a clear error where it is not installed."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        what = "is not installed" if isinstance(error, ImportError) else f"cannot be used: {error}"
        raise ImportError(f"the package mpi4py {what} (pip install 'mxfp4moe[mpi]', and an MPI)") from error
    return MPI


class Channel:
    """A communicator of its own for one layer.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
    timeout : float or None
        The seconds that an operation may take.
    """

    def __init__(self, comm: Any, timeout: float | None) -> None:
        self._mpi = import_mpi()
        if not isinstance(comm, self._mpi.Intracomm):
            raise type_error("comm", "a communicator of mpi4py", describe(comm))
        if timeout is not None and not 0 < (timeout := check_real("timeout", timeout)) < 1e9:
            raise value_error("timeout", "seconds above 0, or None", repr(timeout))
        self._timeout = timeout
        self._broken: str | None = None
        self.has_ended, self.is_shared = False, False
        self._abandoned: list[Any] = []
        own, request = comm.Idup()
        self._comm = own
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.wait(request)

    @property
    def is_broken(self) -> bool:
        """Whether an operation was left undone, after which ranks no longer do the same."""
        return self._broken is not None

    def check_usable(self) -> None:
        """Raise if an operation was left undone, after which ranks no longer do the same."""
        if self._broken is not None:
            raise RuntimeError(f"comm: expected a communicator in step, got one that is not: {self._broken}")

    def wait(self, request: Any, *buffers: Any) -> None:
        """Wait for a request; `buffers` are kept if it never ends."""
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        spins = 0
        try:
            while not request.Test():
                spins += 1
                if spins < _SPINS:
                    continue
                time.sleep(0 if spins < 2 * _SPINS else 5e-5)
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError(f"rank {self.rank}: other ranks did not answer in {self._timeout:g} s")
        except BaseException as error:
            self._give_up(str(error) or type(error).__name__, request, buffers)
            raise

    def _give_up(self, why: str, *what: Any) -> None:
        """Use this communicator no more; what MPI may still write to is kept, and the process will abort."""
        from mpi4py.run import set_abort_status

        self._broken = why
        self._abandoned.append(what)
        # MPI_Finalize would wait for operations that never end.
        set_abort_status(1)

    def gather(self, values: NDArray[Any]) -> NDArray[Any]:
        """The arrays of all ranks, which have one shape and dtype."""
        send = np.ascontiguousarray(values)
        result = np.empty((self.size, *send.shape), send.dtype)
        mpi = self._mpi
        spec = [send.view(np.uint8).reshape(-1), mpi.BYTE], [result.view(np.uint8).reshape(-1), mpi.BYTE]
        self.wait(self._comm.Iallgather(*spec), send, result)
        return result

    def transpose(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Send row r to rank r; return what came from each rank."""
        send, result = np.ascontiguousarray(values), np.empty_like(values)
        mpi = self._mpi
        spec = [send, send[0].size, mpi.INT64_T], [result, send[0].size, mpi.INT64_T]
        self.wait(self._comm.Ialltoall(*spec), send, result)
        return result

    def send_rows(
        self, rows: NDArray[Any], counts: NDArray[Any], out: NDArray[Any], out_counts: NDArray[Any]
    ) -> Callable[[], None]:
        """Begin to send some rows to each rank and to get others; what is returned waits for that."""
        kind = self._row_kind(out)
        request = self._comm.Ialltoallv(_spec(rows, counts, kind), _spec(out, out_counts, kind))
        kind.Free()
        return lambda: self.wait(request, rows, out)

    def gather_rows(
        self, rows: NDArray[Any], out: NDArray[Any], out_counts: NDArray[Any]
    ) -> Callable[[], None]:
        """Begin to send the same rows to all ranks and to get those of each; as `send_rows`."""
        kind = self._row_kind(out)
        send = [rows.view(np.uint8).reshape(-1), len(rows), kind]
        request = self._comm.Iallgatherv(send, _spec(out, out_counts, kind))
        kind.Free()
        return lambda: self.wait(request, rows, out)

    def _row_kind(self, array: NDArray[Any]) -> Any:
        """The MPI datatype of a row, so that counts are small numbers."""
        kind = self._mpi.BYTE.Create_contiguous(array.dtype.itemsize * int(np.prod(array.shape[1:])))
        kind.Commit()
        return kind

    @classmethod
    def of(cls, comm: Any, timeout: float | None) -> Channel:
        """A channel as it is, so that several layers share one; or a new one."""
        return comm if isinstance(comm, Channel) else cls(comm, timeout)

    def end(self) -> None:
        """Tell ranks that wait in a call with no tokens of their own that there are no more."""
        if not self.has_ended and not self.is_broken:
            self.has_ended = True
            self.gather(np.array([_ENDED, 0, 0], np.int64))

    def check_all(self, error: BaseException | None, first: int = 0, second: int = 0) -> NDArray[np.int64]:
        """Tell all ranks of an error, and raise if one has one; return both numbers of each rank."""
        status = self.gather(np.array([_OK if error is None else _FAILED, first, second], np.int64))
        if (status[:, 0] == _ENDED).any():
            raise Ended
        failed = np.flatnonzero(status[:, 0] == _FAILED)
        if failed.size:
            self.has_ended = self.is_shared
            text = "" if error is None else f"{type(error).__name__}: {error}"
            message = np.zeros(_MESSAGE_BYTES, np.uint8)
            data = text.encode("utf-8", "replace")[:_MESSAGE_BYTES]
            message[: len(data)] = np.frombuffer(data, np.uint8)
            texts = self.gather(message)
            if error is not None:
                raise error
            culprit = int(failed[0])
            raise RankError(culprit, bytes(texts[culprit]).rstrip(b"\0").decode("utf-8", "replace"))
        return status[:, 1:]


def _spec(array: NDArray[Any], counts: NDArray[Any], kind: Any) -> list[Any]:
    """Rows of several ranks, one after another, as MPI takes them."""
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
    return [array.view(np.uint8).reshape(-1), (counts.tolist(), starts.tolist()), kind]
