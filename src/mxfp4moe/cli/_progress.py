"""A progress bar on stderr."""

from __future__ import annotations

import sys


class ProgressBar:
    """Shows how many of `total` bytes are done: a bar on a terminal, a line each quarter elsewhere."""

    _WIDTH = 40

    def __init__(self, label: str, total: int) -> None:
        self._label, self._total = label, max(total, 1)
        self._done, self._shown = 0, 0
        self._terminal = sys.stderr.isatty()

    def advance(self, num_bytes: int) -> None:
        """Count `num_bytes` more as done."""
        self._done += num_bytes
        percent = 100 * self._done // self._total
        step = 1 if self._terminal else 25
        if percent // step == self._shown // step:
            return
        self._shown = percent
        text = f"{self._label} {percent:3d} % of {self._total / 1e6:.1f} MB"
        if self._terminal:
            bar = "#" * (self._WIDTH * percent // 100)
            text = f"\r{text} [{bar:{self._WIDTH}}]"
        end = "" if self._terminal and percent < 100 else "\n"
        print(text, end=end, file=sys.stderr, flush=True)
