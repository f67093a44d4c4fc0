"""What may happen while the package is imported, if this process is the command ``mxfp4moe``.

The command's own `main` runs only when all is imported. Until then a wrong environment variable, a missing
package or Ctrl-C would end in a traceback. In any other process nothing changes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any


def is_command() -> bool:
    """Whether this process was started as ``mxfp4moe`` or ``python -m mxfp4moe``."""
    arguments = getattr(sys, "argv", None) or [""]
    if arguments[0] != "-m":
        return Path(arguments[0]).stem == "mxfp4moe"
    # While Python looks for the module, all that follows its name is in sys.argv already.
    module = sys.orig_argv[-len(arguments)] if len(sys.orig_argv) >= len(arguments) else ""
    return module in ("mxfp4moe", "-mmxfp4moe")


def _interrupt(number: int, frame: Any) -> None:
    """End at once: nothing is written yet, or no longer, and an exception may get lost in an import."""
    os.write(2, b"mxfp4moe: interrupted\n")
    os._exit(128 + number)


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, ImportError) and sys.stderr is not None:
        print(f"mxfp4moe: error: {' '.join(str(error).split())}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


if is_command() and threading.current_thread() is threading.main_thread():
    sys.excepthook = _report
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
