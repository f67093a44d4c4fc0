"""What is left in the place of a file: a Git LFS pointer, or the page of a failed download."""

from __future__ import annotations

import re
from pathlib import Path

from mxfp4moe._arguments import value_error

HEAD_BYTES = 1024  # by which it is known
_PATTERNS = {
    "a Git LFS pointer: the content has not been downloaded (git lfs pull does it)": (
        rb"version https://(git-lfs|hawser)\.github\.com/spec/"
    ),
    "an HTML page, as a failed download leaves it": (
        rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--[^>]*>\s*)*<(!doctype\s+html|html|head|body)\b"
    ),
    "an XML page, as a failed download leaves it": rb"(\xef\xbb\xbf)?\s*<\?xml\s",
}


def check_is_content(path: Path, head: bytes) -> None:
    """Raise if `head`, the first bytes of a file, is what is left in its place; no format begins so."""
    for name, pattern in _PATTERNS.items():
        if re.match(pattern, head, re.IGNORECASE):
            raise value_error(str(path), "the content of the file", name)
