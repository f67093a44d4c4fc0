"""What every rank does at the same time: steps of one call, in which an error of one rank is one of all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxfp4moe.experts.fused import Slots
from mxfp4moe.layer_sum import Floats
from mxfp4moe.mpi._channel import Channel


class Collective(ABC):
    """Experts that ranks compute together: the frame of a call, whatever is exchanged in it.

    Parameters
    ----------
    channel : Channel
    chunk_tokens : int
        So many tokens of a rank are exchanged and computed at a time.
    """

    is_collective = True

    def __init__(self, channel: Channel, chunk_tokens: int) -> None:
        self._channel, self._chunk_tokens = channel, chunk_tokens
        self._open: list[Any] | None = None
        self._is_agreed = False
        self._error: BaseException | None = None
        self.traffic = np.zeros(3, np.int64)
        """Tokens of this rank, and the bytes of rows and of slots that it has sent to others."""

    @abstractmethod
    def begin(self, rows: NDArray[Any], slots: Slots, threads: int) -> Callable[[], Floats]:
        """Send away tokens for other ranks; what is returned computes, waits, and gives the sums."""

    @abstractmethod
    def _give_up(self) -> None:
        """Do what is left of the exchange of the chunks that are open, and raise the error of a rank."""

    @contextmanager
    def call(self) -> Iterator[None]:
        """What every rank does at the same time; an error inside of it is one of all ranks."""
        self._channel.check_usable()
        if self._is_agreed or self._open is not None:
            raise RuntimeError("ExpertParallelLayer: expected one call at a time, got another from a thread")
        try:
            yield
        except BaseException as error:
            self._share(error)
            raise
        finally:
            self._is_agreed, self._open, self._error = False, None, None

    def _share(self, error: BaseException) -> None:
        """Do what is left of a call that others are in, so that they learn of the error."""
        if self._channel.is_broken or (self._is_agreed and self._open is None):
            return
        if self._open is None:
            self._is_agreed = True
            self._channel.check_all(error)
        else:
            self._error = self._error or error
            self._give_up()

    def _guarded(self, step: Callable[[], Any]) -> Any:
        """Do a step of this rank alone, unless one has failed; an error waits until all ranks can have it."""
        if self._error is None:
            try:
                return step()
            except BaseException as error:
                self._error = error
        return None

    def _end(self) -> None:
        """Raise on all ranks if a step of one has failed."""
        self._open = None
        self._channel.check_all(self._error)

    def _num_chunks(self, counts: NDArray[np.int64]) -> int:
        """How many pieces the tokens of all ranks are cut into, of which some have `counts`."""
        return -(-int(counts.max()) // self._chunk_tokens)


def cut(count: int, num_parts: int) -> list[slice]:
    """`count` things as `num_parts` parts, as equal as can be."""
    bounds = [count * i // max(num_parts, 1) for i in range(num_parts + 1)]
    return [slice(first, last) for first, last in pairwise(bounds)]
