"""A progress bar on stderr."""

from __future__ import annotations

import shutil
import sys


class ProgressBar:
    """Shows how much of `total` is done: a bar on a terminal, a line each quarter elsewhere.

    The total is a number of bytes, unless `whole` says what the whole is.
    """

    _WIDTH = 40

    def __init__(self, label: str, total: int, whole: str | None = None) -> None:
        self._label, self._total = label, max(total, 1)
        self._whole = f"{total / 1e6:.1f} MB" if whole is None else whole
        self._done, self._shown = 0.0, 0
        self._terminal = sys.stderr.isatty()

    def advance(self, amount: float) -> None:
        """Count `amount` more as done."""
        self._done += amount
        percent = int(100 * self._done / self._total + 1e-6)  # sums of fractions may be a little short
        step = 1 if self._terminal else 25
        if percent // step == self._shown // step:
            return
        self._shown = percent
        text = f"{self._label} {percent:3d} % of {self._whole}"
        if self._terminal:
            # A line that is longer than the terminal would not be written over.
            width = min(self._WIDTH, shutil.get_terminal_size().columns - len(text) - 4)
            bar = f" [{'#' * (width * percent // 100):{width}}]" if width > 0 else ""
            text = f"\r{text}{bar}"
        end = "" if self._terminal and percent < 100 else "\n"
        print(text, end=end, file=sys.stderr, flush=True)
