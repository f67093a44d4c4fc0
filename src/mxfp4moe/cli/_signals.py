"""Signals: whatever ends a command, what it has half written is removed."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mxfp4moe._unix import ENDING_SIGNALS


@contextmanager
def interrupted_once() -> Iterator[None]:
    """Within it, the first signal that ends a process unwinds like an exception; those after it do nothing.

    So what is cleaned up on the way cannot be broken off by another Ctrl-C. Signals that are ignored stay so.
    """
    if threading.current_thread() is not threading.main_thread():  # where alone signals can be handled
        yield
        return
    former = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    active = [number for number, handler in former.items() if handler not in (signal.SIG_IGN, None)]

    def unwind(number: int, frame: Any) -> None:
        # SIG_IGN would make Python complain about one that has come and not been handled yet.
        for each in active:
            signal.signal(each, lambda number, frame: None)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    try:
        for number in active:
            signal.signal(number, unwind)
        yield
    finally:
        for number in active:
            signal.signal(number, former[number])


@contextmanager
def interrupted_each_time() -> Iterator[None]:
    """Within it, every Ctrl-C raises KeyboardInterrupt, not the first one alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
