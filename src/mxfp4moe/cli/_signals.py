"""Signals: whatever ends a command, what it has half written is removed."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

_TERMINATIONS = (signal.SIGTERM, signal.SIGHUP)


def exit_on_termination() -> AbstractContextManager[None]:
    """Within it, SIGTERM and SIGHUP unwind like an exception, as SIGINT does of itself."""
    return _handle(_TERMINATIONS, lambda number, frame: sys.exit(128 + number))


def uninterrupted() -> AbstractContextManager[None]:
    """Within it, signals do nothing: for the removal of files, which a second Ctrl-C must not stop."""
    return _handle((signal.SIGINT, *_TERMINATIONS), signal.SIG_IGN)


@contextmanager
def _handle(numbers: Sequence[signal.Signals], handler: Any) -> Iterator[None]:
    """Handle the signals that are not ignored; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    active = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    previous = [signal.signal(number, handler) for number in active]
    try:
        yield
    finally:
        for number, former in zip(active, previous, strict=True):
            signal.signal(number, former)
