"""What Python offers on Unix systems alone: locks of files, limits of addresses, forks, ends of terminals."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
from collections.abc import Callable

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that end a process in the ordinary way."""


def lock(descriptor: int) -> None:
    """Lock an open file until it is closed; a BlockingIOError if another process has locked it."""
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def has_unlimited_addresses() -> bool:
    """Whether mapping files is not counted against a limit of this process."""
    return resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def call_in_forked_children(function: Callable[[], None]) -> None:
    """Let a function be called in each child of `os.fork`, whose only thread is the one that forked."""
    os.register_at_fork(after_in_child=function)
